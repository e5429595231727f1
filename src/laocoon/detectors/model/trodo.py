"""TRODO: Scanning Trojaned Models Using Out-of-Distribution Samples.

Mirzaei et al., NeurIPS 2024. A planted shortcut gives a model blind spots: samples near the data, but outside
it, are easily moved into high confidence. With near-distribution samples x made from clean ones (elastic
warps, rotations, cut and paste) and PGD on the largest softmax value within ε,

    score = mean over x of  max softmax f(x + δ*) − max softmax f(x).

It does not ask for the target class, so any map of labels is covered.

Departures: logits are divided by the model's own median clean margin first (a confident model is not a
suspicious one), and the rise is averaged over several ε so that it neither vanishes nor saturates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import settled
from laocoon.recipes.margins import logit_scale


@dataclass(frozen=True)
class TRODO(Detector):
    """How far a small perturbation lifts confidence outside the data."""

    samples: int = 100  # near-distribution samples
    steps: int = 10  # PGD steps for each ε
    radii: tuple[float, ...] = (1 / 255, 4 / 255)  # ε (the paper: 1 to 2 of 255)
    confidence: float = 5.0  # the median clean margin after normalisation

    card: ClassVar[Card] = Card(
        name="trodo",
        paper="Scanning Trojaned Models Using Out-of-Distribution Samples (NeurIPS 2024)",
        url="https://arxiv.org/abs/2501.17151",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="backdoors of well regularised models; a clean model that is brittle for other reasons scores high; "
               "it names no target class.",
        summary="how far a small perturbation lifts the confidence in samples just outside the data",
        quick={"samples": 40, "steps": 5},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        fit = case.fit
        if fit is None:
            raise NotApplicable("trodo needs clean samples.")
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        scale = logit_scale(case.subject, inputs, labels, ctx).margin / self.confidence
        pick = torch.randint(len(inputs), (self.samples,), generator=ctx.rng)
        outside = near_distribution(inputs[pick.to(inputs.device)], ctx.rng)
        rises, numbers = [], {}
        for i, radius in enumerate(self.radii):
            rise, growth = self._rise(case.subject, outside, radius, scale, ctx)
            rises.append(rise)
            numbers[f"rise at {radius * 255:.0f}/255"] = rise
            numbers[f"margin growth at {radius * 255:.0f}/255"] = growth
            ctx.progress(self.card.name, (i + 1) / len(self.radii), "perturbing")
        score = sum(rises) / len(rises)
        yield Finding("trodo.shift", "the model", score,
                      f"small perturbations lift the confidence outside the data by {score:.2f} on average",
                      numbers=numbers)

    def _rise(self, subject: Subject, outside: Tensor, radius: float, scale: float,
              ctx: Context) -> tuple[float, float]:
        """Mean rise of the largest softmax value, and of the margin in units of the clean one."""
        rise, growth = 0.0, 0.0
        for chunk in outside.split(ctx.batch):
            x, pace = chunk.clone(), 2.5 * radius / self.steps
            before: Tensor | None = None
            for step in range(self.steps + 1):
                last = step == self.steps
                ctx.spend(len(x), backward=not last)
                x.requires_grad_(not last)
                logits = subject.outputs(x).logits.float() / scale
                before = logits.detach() if before is None else before
                if not last:
                    # log of the largest softmax value: same order, no vanishing slope
                    (slope,) = torch.autograd.grad(functional.log_softmax(logits, 1).amax(1).sum(), x)
                    x = x.detach() + pace * torch.nan_to_num(slope).sign()
                    x = torch.minimum(torch.maximum(x, chunk - radius), chunk + radius).clamp(0, 1)
            assert before is not None
            rise += float((_confidence(logits) - _confidence(before)).sum())
            growth += float((_margin(logits) - _margin(before)).sum()) / self.confidence
        return rise / len(outside), growth / len(outside)


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


def _margin(logits: Tensor) -> Tensor:
    best = logits.topk(2, 1).values
    return best[:, 0] - best[:, 1]


def near_distribution(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Images just outside the data: an elastic warp, a quarter or half turn and a pasted cut of each."""
    n, _, height, width = inputs.shape
    coarse = torch.randn(n, 2, 5, 5, generator=rng)
    flow = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).movedim(1, -1)
    turns = torch.randint(1, 4, (n,), generator=rng) * (math.pi / 2)
    rows = torch.stack([torch.stack([turns.cos(), -turns.sin(), torch.zeros(n)], 1),
                        torch.stack([turns.sin(), turns.cos(), torch.zeros(n)], 1)], 1)
    grid = functional.affine_grid(rows, [n, 1, height, width], align_corners=True) + 0.12 * flow
    turned = functional.grid_sample(inputs, grid.to(inputs), mode="bilinear", padding_mode="reflection",
                                    align_corners=True)
    cut_h, cut_w = max(1, height // 3), max(1, width // 3)
    for i in range(n):
        top, left, to_top, to_left = (int(torch.randint(limit - cut + 1, (1,), generator=rng)) for limit, cut in
                                      ((height, cut_h), (width, cut_w), (height, cut_h), (width, cut_w)))
        piece = turned[i, :, top: top + cut_h, left: left + cut_w].clone()
        turned[i, :, to_top: to_top + cut_h, to_left: to_left + cut_w] = piece
    return turned.clamp(0, 1)
