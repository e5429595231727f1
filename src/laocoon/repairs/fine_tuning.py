"""Fine-tuning on clean samples: what is not rehearsed is forgotten.

Liu, Xie and Srivastava, Neural Trojans (ICCD 2017, arXiv 1710.00942); settings after BackdoorBench (2022).

    minimise  CE(f(x), (1 − λ)·y + λ·f₀(x))

Departure: λ of what is asked for are the answers of the model before the repair to the same (clean) sample, and
pictures are moved, or mirrored; with labels alone a few hundred samples are learnt by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, descend, given, rehearsal


@dataclass(frozen=True)
class FineTuning(Repair):
    """All weights, on clean samples."""

    epochs: int = 40
    rate: float = 0.025  # SGD with momentum 0.9
    anchor: float = 0.5  # λ: share of the earlier answers

    card: ClassVar[Card] = Card(
        name="fine_tuning",
        paper="Neural Trojans (ICCD 2017)",
        url="https://arxiv.org/abs/1710.00942",
        modalities=frozenset({"image", "tabular", "text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="trains all weights further on clean samples",
        misses="weights that clean samples do not use are hardly moved: on our "
               "CIFAR-10 models (200 samples) a warp keeps 79 % and an input-aware trigger 67 %, at 3 to 5 points of "
               "accuracy; on GTSRB (860 samples) three attacks of six fall under 5 % and accuracy rises",
        quick={"epochs": 20},
        fails={
            "check_success_falls": "on the digit twins success stays at 100 %, with 8 samples a class",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor, mixed=False)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        descend(module, samples, ctx, Course(self.epochs, self.rate), gradient, asked)
