"""What guards of text share: a watch that refuses what is no text, answers, and judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.methods import Checked
from laocoon.core.subject import Subject
from laocoon.recipes.consistency import CHUNK, LARGEST
from laocoon.recipes.requests import acceptable, nothing


@dataclass(frozen=True, eq=False)
class TextWatch:
    """One pass for the answer; the judge makes its own, as many a sample as `passes` says beyond that."""

    subject: Subject
    judge: Callable[[Tensor, Tensor], Tensor]  # ids and logits to [batch]; higher is more suspicious
    passes: float

    def check(self, batch: Tensor) -> Checked:
        subject = self.subject
        device = next((p.device for p in subject.module.parameters()), torch.device("cpu"))
        batch = acceptable(batch, subject.input_shape, subject.modality).to(device)
        if not len(batch):
            return nothing(subject.module, subject.input_shape, device, subject.modality)
        with torch.no_grad():
            logits, scores = [], []
            for part in batch.split(CHUNK):
                logits.append(subject.outputs(part).logits.float())
                scores.append(self.judge(part, logits[-1]).float().nan_to_num(LARGEST, LARGEST, -LARGEST))
        return Checked(torch.cat(logits), torch.cat(scores).clamp(-LARGEST, LARGEST))
