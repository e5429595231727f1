"""Plain training: every sample is believed. The baseline that the other trainers are measured against.

AdamW (Loshchilov and Hutter, ICLR 2019) under a one-cycle schedule minimises the mean cross-entropy

    min over θ of  1/n Σ_i −log softmax(f_θ(x_i))[y_i].

Departures: gradients are clipped at norm 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, finished, material, pupil, teach


@dataclass(frozen=True)
class Plain(Trainer):
    """Ordinary training on everything."""

    epochs: int = 20  # passes over the data
    batch: int = 64  # samples a step
    rate: float = 3e-3  # peak learning rate
    shift: int = 0  # px of random translation, of images
    flip: bool = False  # random mirroring, of images

    card: ClassVar[Card] = Card(
        name="plain",
        paper="Decoupled Weight Decay Regularization (ICLR 2019)",
        url="https://arxiv.org/abs/1711.05101",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="everything: it is the baseline and defends against nothing.",
        summary="ordinary training that believes every sample",
        quick={"epochs": 14},
        fails={"check_weakens_a_backdoor": "it believes every sample, poison included; that is what it is for."},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        samples, subject = material(case, ctx), pupil(case, ctx)
        teach(subject.module, samples, Lesson(self.epochs, self.batch, self.rate, self.shift, self.flip), ctx)
        return finished(subject, self.card.name, {"samples": len(samples)}), None
