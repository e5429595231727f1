"""FT-SAM: fine-tuning with sharpness-aware minimisation.

Zhu et al., Enhancing Fine-Tuning based Backdoor Defense with Sharpness-Aware Minimization (ICCV 2023, arXiv
2304.11823). Planted neurons have large weights; a minimum that stays one when every weight is disturbed in proportion
to itself has smaller ones.

    minimise  max over ‖ε / |w|‖ ≤ ρ  of  CE(f_{w+ε}(x), y)

Departures: beside the labels, smoothed as in the paper, the answers of the model before the repair; pictures are
varied.
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
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, descend, given, rehearsal, trainable
from laocoon.recipes.sharpness import ascent, displaced


@dataclass(frozen=True)
class FTSAM(Repair):
    """All weights, on clean samples, at the worst place near by."""

    epochs: int = 30
    rate: float = 0.02
    radius: float = 2.0  # ρ
    smooth: float = 0.1  # of labels
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="ft_sam",
        paper="Enhancing Fine-Tuning based Backdoor Defense with Sharpness-Aware Minimization (ICCV 2023)",
        url="https://arxiv.org/abs/2304.11823",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="fine-tunes towards minima that stay ones when every weight is disturbed in proportion to itself",
        misses="backdoors that share their neurons with clean classes; the radius that removes a stubborn one costs "
               "accuracy when clean samples are few: with 200 of them on CIFAR-10 3 to 6 points, and 15 % of a patch, "
               "74 % of a warp are left",
        quick={"epochs": 20},
        fails={
            "check_success_falls": "on the digit twins success falls to 63 % only, with 8 samples a class",
            "check_harmless_on_clean": "now and then: the clean digit twin loses 2.04 points, a hair too many",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples, weights = given(case.fit, module), trainable(module)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor, smooth=self.smooth)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(2 * len(x))
            slopes = torch.autograd.grad(cross_entropy(module(x), wanted), weights, allow_unused=True)
            steps = ascent(weights, [torch.zeros_like(w) if g is None else g
                                     for w, g in zip(weights, slopes, strict=True)], self.radius)
            with displaced(weights, steps):
                cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        descend(module, samples, ctx, Course(self.epochs, self.rate), gradient, asked)
