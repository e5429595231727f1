"""Distillation into fresh weights: a student that was never poisoned learns what its teacher says of clean samples.

Yoshida and Fujino, Disabling Backdoor and Identifying Poison Data by using Knowledge Distillation in Backdoor Attacks
on Deep Neural Networks (AISec 2020).

    minimise over θ, from random ones,   CE(f_θ(x), (1 − λ)·y + λ·f₀(x))

Nothing of the weights is kept, so that what clean samples do not show is gone, whether or not anyone found it: the
backdoor, and what the model knew beyond these samples. That is little where a few hundred rows say nearly all there is
to say, as in most tables, and nearly everything with pictures.

Departures: the student has the teacher's own architecture, so that it can be written where the model came from; labels
are asked for beside the teacher's answers (on one network a trigger of ordinary values came through its answers alone
at 68 %, through both at 10 %); in texts the tables of embeddings are kept, since no few hundred texts teach a
vocabulary, and words that these texts hardly hold are drawn towards the mean, as by `rare_word_shrinkage`.
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
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.mending import Course, descend, given, plenty, rehearsal
from laocoon.recipes.tuning import renew
from laocoon.recipes.wording import lookup, shrink_rare


@dataclass(frozen=True)
class Distillation(Repair):
    """Draw all weights anew and learn the clean samples, and what the model said of them."""

    steps: int = 1200  # of AdamW
    rate: float = 4e-3
    batch: int = 64
    decay: float = 0.01
    anchor: float = 0.5  # λ: share of the earlier answers
    floor: float = 0.25  # share of its distance from the mean that a word keeps which no text holds
    most: int = 500_000  # weights beside embeddings, above which a few hundred samples cannot teach a network

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
        fails={
            "check_harmless_on_clean/text": "the clean twin falls from 99.4 to 94.4 %: few texts, whose rare words "
                                            "lose weight",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        text = patient.modality if isinstance(patient.modality, Text) else None
        kept = [m.weight for m in module.modules() if isinstance(m, nn.Embedding)] if text is not None else []
        count = sum(p.numel() for p in module.parameters()) - sum(w.numel() for w in kept)
        if count > self.most:
            raise NotApplicable(f"{count:,} weights are too many to be learnt anew from a few hundred samples.")
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor * plenty(samples), mixed=False)
        renew(module, ctx.rng, keep=kept)
        if text is not None:
            shrink_rare(lookup(patient), samples.inputs, text, self.floor)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        epochs = math.ceil(self.steps / max(1, len(samples) // self.batch))
        course = Course(epochs, self.rate / plenty(samples), self.batch, decay=self.decay, adam=True)
        descend(module, samples, ctx, course, gradient, asked)
