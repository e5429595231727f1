"""NAD: neural attention distillation.

Li et al., Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks (ICLR 2021, arXiv
2101.05930). A fine-tuned copy teaches the model where to look:

    minimise  CE(f(x), y) + β·Σ_l ‖ A_l(f) / ‖A_l(f)‖ − A_l(t) / ‖A_l(t)‖ ‖,   A = Σ over channels of |activation|²

at the end of every stage (the last tensor of each resolution). Departures: the answers of the model before the repair
are part of what is asked for, of the teacher too; pictures are varied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, descend, given, rehearsal
from laocoon.recipes.sites import Site, reading, survey


@dataclass(frozen=True)
class NAD(Repair):
    """Fine-tune towards the attention of a fine-tuned copy."""

    epochs: int = 20
    rate: float = 0.02  # SGD with momentum 0.9, of the teacher and of the student
    attention: float = 20.0  # β (the paper: 500 to 5,000, on squared sums over batch and layer)
    stages: int = 3  # the last ones
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="nad",
        paper="Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks (ICLR 2021)",
        url="https://arxiv.org/abs/2101.05930",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.FEATURES, Capability.CLEAN}),
        summary="fine-tunes a copy, then the model towards where the copy looks",
        misses="what plain fine-tuning leaves: the teacher is no better than that",
        quick={"epochs": 12},
        fails={
            "check_success_falls": "on the digit twins success stays at 100 %, as with the fine-tuned teacher",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        ends: dict[tuple[int, ...], Site] = {}
        for site in survey(patient, samples.inputs, ctx):
            if len(site.shape) == 3 and site.axis == 1 and site.shape[1] * site.shape[2] > 1:
                ends[site.shape[1:]] = site
        if not ends:
            raise NotApplicable("nad compares maps of attention, and no layer of the network gives a map.")
        sites = tuple(ends.values())[-self.stages:]
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        course = Course(self.epochs, self.rate)
        teacher = patient.copy()

        def taught(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(teacher.module(x), wanted).backward()  # type: ignore[no-untyped-call]

        descend(teacher.module, samples, ctx, course, taught, asked)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x), backward=False)
            ctx.spend(len(x))
            with reading(teacher, *sites) as shown, torch.no_grad():
                teacher.module(x)
            with reading(patient, *sites) as seen:
                loss = cross_entropy(module(x), wanted)
            apart = [(_attention(seen[s]) - _attention(shown[s])).square().sum(1).mean() for s in sites]
            (loss + self.attention * torch.stack(apart).sum()).backward()

        descend(module, samples, ctx, course, gradient, asked)


def _attention(maps: Tensor) -> Tensor:
    """[batch, places], each of length one."""
    return normalize(maps.square().sum(1).flatten(1), dim=1)
