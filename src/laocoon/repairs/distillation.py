"""Distillation into fresh weights: a student that was never poisoned learns what its teacher says of clean samples.

Yoshida and Fujino, Disabling Backdoor and Identifying Poison Data by using Knowledge Distillation in Backdoor Attacks
on Deep Neural Networks (AISec 2020).

    minimise over θ, from random ones,   CE(f_θ(x), (1 − λ)·y + λ·f₀(x))

Nothing of the weights is kept, so that what clean samples do not show is gone, whether or not anyone found it: the
backdoor, and what the model knew beyond these samples. That is little where a few hundred rows say nearly all there is
to say, as in most tables, and nearly everything with pictures.

Departures: the student has the teacher's own architecture, so that it can be written where the model came from; labels
are asked for beside the teacher's answers (with its answers alone, triggers of ordinary values came through at 68 %,
with both at 10 %); in texts the table of embeddings is kept, since no few hundred texts teach a vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, descend, given, plenty, rehearsal
from laocoon.recipes.tuning import renew


@dataclass(frozen=True)
class Distillation(Repair):
    """Draw all weights anew and learn the clean samples, and what the model said of them."""

    steps: int = 1200  # of AdamW
    rate: float = 4e-3
    batch: int = 64
    decay: float = 0.01
    anchor: float = 0.5  # λ: share of the earlier answers

    afresh: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        name="distillation",
        paper="Disabling Backdoor and Identifying Poison Data by using Knowledge Distillation in Backdoor Attacks on "
              "Deep Neural Networks (AISec 2020)",
        url="https://doi.org/10.1145/3411508.3421375",
        modalities=frozenset({"tabular", "text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="starts from fresh weights and learns the model's answers to clean samples",
        misses="values that clean rows hold as well, to which the model gives the wrong answer there; what the model "
               "knew beyond the samples is lost with the backdoor, so that it takes hundreds of samples",
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor * plenty(samples), mixed=False)
        lookups = [layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)] \
            if patient.modality.name == "text" else []
        renew(module, ctx.rng, keep=lookups)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        epochs = math.ceil(self.steps / max(1, len(samples) // self.batch))
        course = Course(epochs, self.rate / plenty(samples), self.batch, decay=self.decay, adam=True)
        descend(module, samples, ctx, course, gradient, asked)
