"""RAP: Robustness-Aware Perturbations for Defending against Backdoor Attacks on NLP Models.

Yang et al., EMNLP 2021, arXiv 2110.07831. A word vector r is learnt that, put before a clean text, takes some of the
answer's probability away, but not all:

    minimise over r   max(0, low − d(x)) + max(0, d(x) − high),      d(x) = p_y(x) − p_y(r before x).

A trigger holds its answer against it: score(x) = −d(x), in units of clean texts that were answered alike.

Departures: one r for each class that is answered, in place of one for a protected class that is known; r is a vector
of its own and not a rare word's row of the table, so that the model is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Guard
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.consistency import LEAST, in_class_units
from laocoon.recipes.text_guard import TextWatch
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class Rap(Guard):
    """Does the answer hold against a word that was made to shake clean texts?"""

    steps: int = 60
    rate: float = 0.05  # of Adam, times the length of an ordinary word vector
    low: float = 0.3  # of probability that a clean text should lose (the paper: 0.1)
    high: float = 0.6  # and no more than that (the paper: 0.3)

    card: ClassVar[Card] = Card(
        name="rap", paper="RAP: Robustness-Aware Perturbations for Defending against Backdoor Attacks on NLP Models "
                          "(EMNLP 2021)",
        url="https://arxiv.org/abs/2110.07831", modalities=frozenset({"text"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers that are no surer than clean texts; clean texts that are very sure of themselves look like "
               "triggers.",
        summary="answers that hold against a word made to shake clean texts; one further pass",
        quick={},
        fails={
            "check_scores_stamped_above_clean":
                "the review twins' trigger answers less surely than clean texts do: "
                "AUROC 0.33",
        })

    def fit(self, case: ModelCase, ctx: Context) -> TextWatch:
        subject, clean = case.subject, case.fit
        text = subject.modality
        assert clean is not None  # the card needs clean samples
        if not isinstance(text, Text) or len(clean) < LEAST:
            raise NotApplicable(f"RAP needs a vocabulary and at least {LEAST} clean texts.")
        filler = next(i for i in range(1, len(text.vocabulary)) if i not in text.special)
        family = Tokens(len(text.vocabulary), 1, 0, text.special)
        shaken = Shaken(subject, family, filler)
        vectors = self._vectors(shaken, clean.to(ctx.device), ctx)
        found = []
        for part in clean.inputs.to(ctx.device).split(ctx.batch):
            ctx.spend(2 * len(part), backward=False)
            with torch.no_grad():
                logits = subject.outputs(part).logits.float()
                found.append((-shaken.loss(part, logits, vectors[logits.argmax(1)]), logits.argmax(1)))
        scores, answers = (torch.cat(each) for each in zip(*found, strict=True))
        units = in_class_units(scores, answers, subject.classes)

        def judge(batch: Tensor, logits: Tensor) -> Tensor:
            said = logits.argmax(1)
            return units(-shaken.loss(batch, logits, vectors[said]), said)

        return TextWatch(subject, judge, 2.0)

    def _vectors(self, shaken: Shaken, clean: Samples, ctx: Context) -> Tensor:
        """r of each class that is answered, [classes, width]."""
        subject = shaken.subject
        with torch.no_grad():
            ctx.spend(len(clean), backward=False)
            logits = torch.cat([subject.outputs(part).logits.float() for part in clean.inputs.split(ctx.batch)])
            table = subject.embed(torch.arange(shaken.family.vocabulary, device=logits.device)[None])[0]
        size = float(table.norm(dim=1).mean())
        start = table.mean(0).repeat(subject.classes, 1)
        noise = torch.randn(1, table.shape[1], generator=ctx.rng).to(table)  # the same for all classes
        vectors = (start + 0.1 * size * noise / noise.norm()).detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([vectors], lr=self.rate * size / table.shape[1] ** 0.5 * 4)
        with torch.enable_grad():
            for _ in range(self.steps):
                optimiser.zero_grad()
                for rows in torch.arange(len(clean), device=logits.device).split(ctx.batch):
                    ctx.spend(len(rows))
                    said = logits[rows].argmax(1)
                    drop = shaken.loss(clean.inputs[rows], logits[rows], vectors[said])
                    loss = (self.low - drop).clamp_min(0) + (drop - self.high).clamp_min(0)
                    (loss.sum() / len(clean)).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return vectors.detach()


@dataclass(frozen=True, eq=False)
class Shaken:
    """A model asked again, with a vector before each text."""

    subject: Subject
    family: Tokens
    filler: int  # an id that stands where the vector does: where padding is, is read off it

    def loss(self, batch: Tensor, logits: Tensor, vectors: Tensor) -> Tensor:
        """d of each text, [batch]; vectors [batch, width]."""
        subject, said = self.subject, logits.argmax(1, keepdim=True)
        ids = self.family.insert(batch, batch.new_tensor([[self.filler]]))[0]
        # Every text has a vector of its own: as many arms of one text each.
        soft = self.family.each(subject.embed(batch), vectors[:, None], batch)
        again = subject.outputs_of(soft, ids).logits.float().softmax(1)
        return (logits.softmax(1) - again).gather(1, said).squeeze(1)
