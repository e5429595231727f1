"""TRODO: Scanning Trojaned Models Using Out-of-Distribution Samples.

Mirzaei et al., NeurIPS 2024. A planted shortcut gives a model blind spots: samples near the data, but outside
it, are easily moved into high confidence. With near-distribution samples x made from clean ones (elastic
warps, rotations, cut and paste) and PGD on the largest softmax value within ε,

    score = mean over x of  max softmax f(x + δ*) − max softmax f(x).

It does not ask for the target class, so any map of labels is covered.

Departures: logits are divided by the model's own median clean margin first (a confident model is not a
suspicious one), and the rise is taken over a row of growing ε so that it neither vanishes nor saturates. A second
rule divides the growth of margins outside the data by the fall of clean margins under an equal attack inside it:
a model that is merely brittle is brittle in both places.
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
from laocoon.recipes.margins import logit_scale, margin_towards


@dataclass(frozen=True)
class TRODO(Detector):
    """How far a small perturbation lifts confidence outside the data."""

    samples: int = 100  # near-distribution samples, and clean ones for comparison
    radii: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # ε in 1/255 (the paper: 1 to 2)
    steps: int = 3  # PGD steps at each ε
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
        quick={"samples": 40, "steps": 2},
        fails={"check_scores_planted_above_clean":
               "on small networks the rise tells nothing: 0.075 with a planted patch, 0.086 without."},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        fit = case.fit
        if fit is None:
            raise NotApplicable("trodo needs clean samples.")
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        scale = logit_scale(case.subject, inputs, labels, ctx).margin / self.confidence
        pick = torch.randint(len(inputs), (self.samples,), generator=ctx.rng)
        inside, right = inputs[pick.to(inputs.device)], labels[pick.to(inputs.device)]
        outside = near_distribution(inside, ctx.rng)
        away = self._attacked(case.subject, outside, None, scale, ctx)
        ctx.progress(self.card.name, 0.5, "perturbed outside the data")
        home = self._attacked(case.subject, inside, right, scale, ctx)
        rise = sum(a.rise for a in away) / len(away)
        numbers = {f"rise at {r:g}/255": a.rise for r, a in zip(self.radii, away, strict=True)}
        yield Finding("trodo.shift", "the model", rise,
                      f"small perturbations lift the confidence outside the data by {rise:.2f} on average",
                      numbers=numbers)
        ratios = [math.log(max(a.growth, 1e-4) / max(-h.growth, 1e-4)) for a, h in zip(away, home, strict=True)]
        score = sum(ratios) / len(ratios)
        yield Finding("trodo.relative", "the model", score,
                      f"margins grow outside the data {math.exp(score):.2f} times as fast as they fall inside it",
                      numbers={f"ratio at {r:g}/255": v for r, v in zip(self.radii, ratios, strict=True)}
                      | {f"fall at {r:g}/255": -h.growth for r, h in zip(self.radii, home, strict=True)}
                      | {f"growth at {r:g}/255": a.growth for r, a in zip(self.radii, away, strict=True)})

    def _attacked(self, subject: Subject, inputs: Tensor, labels: Tensor | None, scale: float,
                  ctx: Context) -> list[Moved]:
        """What each ε moves: towards confidence, or (with labels) away from the label."""
        totals = [[0.0, 0.0] for _ in self.radii]
        for rows in torch.arange(len(inputs), device=inputs.device).split(ctx.batch):  # type: ignore[no-untyped-call]
            chunk, y = inputs[rows], None if labels is None else labels[rows]
            x, before = chunk.detach().clone(), None  # a leaf of its own: the chunk bounds every later step
            for i in range(len(self.radii) * self.steps + 1):
                last = i == len(self.radii) * self.steps
                ctx.spend(len(x), backward=not last)
                x.requires_grad_(not last)
                logits = subject.outputs(x).logits.float() / scale
                now = logits.detach()
                before = now if before is None else before
                if i and i % self.steps == 0:
                    totals[i // self.steps - 1][0] += float((_confidence(now) - _confidence(before)).sum())
                    totals[i // self.steps - 1][1] += float((_margin(now, y) - _margin(before, y)).sum())
                if not last:
                    # log of a softmax value: the order of the value, but its slope does not vanish
                    chances = functional.log_softmax(logits, 1)
                    aim = chances.amax(1) if y is None else -chances.gather(1, y[:, None])
                    (slope,) = torch.autograd.grad(aim.sum(), x)
                    radius = self.radii[i // self.steps] / 255
                    x = x.detach() + 2.0 * radius / self.steps * torch.nan_to_num(slope).sign()
                    x = torch.minimum(torch.maximum(x, chunk - radius), chunk + radius).clamp(0, 1)
        return [Moved(a / len(inputs), b / len(inputs) / self.confidence) for a, b in totals]


@dataclass(frozen=True)
class Moved:
    """Mean rise of the largest softmax value, and growth of the margin in units of the clean one."""

    rise: float
    growth: float


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


def _margin(logits: Tensor, y: Tensor | None) -> Tensor:
    return margin_towards(logits, logits.argmax(1) if y is None else y)


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
