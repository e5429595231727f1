"""I-BAU: unlearning universal perturbations, by the implicit hypergradient.

Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient (ICLR 2022, arXiv 2110.03735).

    minimise over θ   CE(f_θ(x + δ*(θ)), y) + CE(f_θ(x), y)   where   δ*(θ) maximises CE(f_θ(x + δ), y) over ‖δ‖ ≤ C

δ is one perturbation for all samples; what a change of weights does to it counts as well
(`recipes/hypergradient.py`). Departures: δ starts from noise in every round, is bounded in root mean square per
pixel, and climbs by normalised steps; the answers of the model before the repair are part of what is asked for;
pictures are varied.
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
from laocoon.recipes.hypergradient import hypergradient
from laocoon.recipes.mending import Course, descend, given, rehearsal, trainable


@dataclass(frozen=True)
class IBAU(Repair):
    """Train against the universal perturbation that harms most, round after round."""

    epochs: int = 10
    rate: float = 2e-4  # AdamW (the paper: Adam, 1e-4, 5 rounds on 25 times as many samples)
    batch: int = 40
    climbs: int = 4  # steps of the perturbation in each batch
    size: float = 0.06  # C: bound of the perturbation, root mean square per value in [0, 1]
    iterations: int = 2  # of the hypergradient (the paper: 5)
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="i_bau",
        paper="Adversarial Unlearning of Backdoors via Implicit Hypergradient (ICLR 2022)",
        url="https://arxiv.org/abs/2110.03735",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.GRADIENT, Capability.CLEAN}),
        summary="fine-tunes against one perturbation that misleads most samples, with the implicit hypergradient",
        misses="triggers that no single perturbation of bounded size imitates: warps, input-aware ones, small opaque "
               "patches; with 200 samples on CIFAR-10, what left 31 % of a patch (size 0.15, rate 5e-4) cost 8 points, "
               "and what cost one point left 85 %",
        quick={"epochs": 8},
        fails={
            "check_success_falls":
                "on the digit twins success stays at 100 %: a perturbation of all pixels is not the opaque "
                "square",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples, weights = given(case.fit, module), trainable(module)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            start = torch.randn(1, *x.shape[1:], generator=ctx.rng).to(x)
            delta = self._bounded(start * self.size / 4)
            for _ in range(self.climbs - 1):
                delta = self._climbed(module, x, wanted, delta, ctx, graph=False).detach()
            delta.requires_grad_(True)
            inner = self._climbed(module, x, wanted, delta, ctx, graph=True)
            ctx.spend((2 + self.iterations) * len(x))
            outer = cross_entropy(module((x + delta).clamp(0, 1)), wanted)
            outer = outer + cross_entropy(module(x), wanted)
            found = hypergradient(outer, inner, delta, weights, iterations=self.iterations)
            for weight, slope in zip(weights, found, strict=True):
                weight.grad = slope

        course = Course(self.epochs, self.rate, self.batch, adam=True, statistics=False)
        descend(module, samples, ctx, course, gradient, asked)

    def _climbed(self, module: torch.nn.Module, x: Tensor, wanted: Tensor, delta: Tensor, ctx: Context, *,
                 graph: bool) -> Tensor:
        """One step up the loss: the map whose fixed point is the perturbation."""
        if not graph:
            delta = delta.detach().requires_grad_(True)
        ctx.spend(len(x))
        harm = cross_entropy(module((x + delta).clamp(0, 1)), wanted)
        (slope,) = torch.autograd.grad(harm, delta, create_graph=graph)
        pace = self.size / 2 / slope.detach().square().mean().sqrt().clamp_min(1e-12)
        return self._bounded(delta + pace * slope)

    def _bounded(self, delta: Tensor) -> Tensor:
        return delta * (self.size / delta.square().mean().sqrt().clamp_min(1e-12)).clamp_max(1.0)
