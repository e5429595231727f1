"""FST: feature shift tuning.

Min et al., Towards Stable Backdoor Purification through Feature Shift Tuning (NeurIPS 2023, arXiv 2310.01875). Where
poison is rare, features of poisoned and clean samples are not apart, and fine-tuning leaves them where they are. So the
head is drawn anew and kept away from the old one, and the features have to move with it.

    minimise  CE(f(x), y) + α·⟨w, w₀⟩ / ‖w₀‖²   subject to  ‖w‖ = ‖w₀‖

Departures: the product is divided by ‖w₀‖², so that α means the same for every head; what is asked for is mostly the
model's own earlier answers (`Rehearsal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.mending import Course, descend, given, rehearsal
from laocoon.recipes.pruning import AFFINE
from laocoon.recipes.tuning import renew


@dataclass(frozen=True)
class FST(Repair):
    """All weights, with a head that starts anew and may not become what it was."""

    epochs: int = 40  # the paper: 10, on ten times as many samples
    rate: float = 0.02  # SGD with momentum 0.9
    shift: float = 0.2  # α
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="fst",
        paper="Towards Stable Backdoor Purification through Feature Shift Tuning (NeurIPS 2023)",
        url="https://arxiv.org/abs/2310.01875",
        modalities=frozenset({"image", "tabular"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="draws the head anew, away from the old one, so that features move when the network is fine-tuned",
        misses="a new head has to be learnt from the clean samples: with 200 of them it cost 2 to 7 points on "
               "CIFAR-10, and left 20 % of a patch and 86 % of a warp",
        quick={"epochs": 30},
        fails={
            "check_success_falls": "on the digit twins success falls to 75 % only, with 8 samples a class",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        head = module.get_submodule(linear_head(patient, ctx).layer)
        if not isinstance(head, AFFINE):
            raise NotApplicable(f"the head is a {type(head).__name__}, which cannot be drawn anew.")
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        old = head.weight.detach().clone()
        renew(head, ctx.rng)
        size = old.norm().clamp_min(1e-12)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            alike = (head.weight * old).sum() / size.square()
            (cross_entropy(module(x), wanted) + self.shift * alike).backward()

        @torch.no_grad()
        def resized() -> None:
            head.weight.mul_(size / head.weight.norm().clamp_min(1e-12))

        resized()
        descend(module, samples, ctx, Course(self.epochs, self.rate), gradient, asked, after=resized)
