"""Extreme values of label-only adversarial directions: AEVA (Guo et al., ICLR 2022, arXiv 2110.14880).

Towards the class t of a backdoor the shortest way across the decision boundary leads through the trigger: the
adversarial direction peaks on few pixels. With labels alone the direction is estimated as in HopSkipJump: between a
sample x of another class and one of class t the boundary is found by halving; there, with φ = 1 where the answer is t
and −1 elsewhere,

    v_t = mean over x and u of  (φ(b_x + δ·u) − mean φ)·u,         u random directions,

and the statistic is the global adversarial peak, the largest |v_t| over its mean.

Departures: u is drawn on a coarse grid and enlarged, as in the paper; one estimate at the boundary instead of many
steps along it; the peak is compared with the other classes as log(own / median) instead of with an outlier index.
"""

from __future__ import annotations

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
from laocoon.recipes.asking import Ask, asking, bystanders, shuffled


@dataclass(frozen=True)
class Aeva(Detector):
    """Estimate every class's adversarial direction from labels, and how much it peaks."""

    grid: int = 9  # cells of a direction along a side
    pairs: int = 4  # of a sample of another class and one of the class itself
    halvings: int = 8  # of the way between them
    draws: int = 120  # directions at each boundary
    reach: float = 0.4  # δ, root mean square of a pixel's change
    most: int = 12  # classes that are examined, drawn where there are more

    card: ClassVar[Card] = Card(
        name="aeva", paper="AEVA: black-box backdoor detection using adversarial extreme value analysis (ICLR 2022)",
        url="https://arxiv.org/abs/2110.14880", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        summary="Compares how much adversarial directions, estimated from labels, peak on few pixels.",
        misses="triggers that are spread over the picture; classes of which no clean sample is given; at these "
               "settings most patches too: AUROC 0.19 on 3 planted and 9 clean models of the fusion split",
        quick={})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        subject, fit = case.subject, shuffled(case.fit, ctx.rng)
        there = fit.labels.unique().cpu()
        if len(there) < 3:
            raise NotApplicable(f"aeva needs clean samples of three classes, there are {len(there)}.")
        if len(there) > self.most:
            there = there[torch.randperm(len(there), generator=ctx.rng)[:self.most]].sort().values
        ask = asking(subject, ctx)
        rows = bystanders(fit, subject.classes, self.pairs)[there]
        own = torch.stack([(fit.labels == t).nonzero().flatten().repeat(self.pairs)[:self.pairs] for t in there])
        edge = self._boundary(ask, fit.inputs[rows], fit.inputs[own], there)
        ctx.progress(self.card.name, 0.2, "estimating directions from labels")
        peaks = self._peaks(ask, edge, there, ctx)
        logs = peaks.log()
        score = logs - logs.quantile(0.5)
        for arm in score.argsort(descending=True, stable=True).tolist():
            target = int(there[arm])
            yield Finding(
                "aeva.peak", f"class {target}", float(score[arm]), target_classes=(target,),
                explanation=f"the adversarial direction towards class {target} peaks at {float(peaks[arm]):.3g} times "
                            f"its mean; the median class at {float(peaks.quantile(0.5)):.3g}",
                numbers={"peak": float(peaks[arm])})

    def _boundary(self, ask: Ask, away: Tensor, own: Tensor, arms: Tensor) -> Tensor:
        """The points [arms, pairs, …] where the way from `away` to `own` enters the class."""
        low = torch.zeros(*away.shape[:2], 1, 1, 1, device=away.device)
        high = torch.ones_like(low)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            inside = _is(ask, away + middle * (own - away), arms).view(low.shape)
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        return away + high * (own - away)

    def _peaks(self, ask: Ask, edge: Tensor, arms: Tensor, ctx: Context) -> Tensor:
        """Largest |v| over its mean, [arms]; the same directions for all classes and pairs."""
        shape = (self.draws // 2, edge.shape[2], self.grid, self.grid)
        coarse = torch.randn(shape, generator=ctx.rng).to(edge)
        coarse = torch.cat([coarse, -coarse])
        total = torch.zeros(len(arms), *shape[1:], device=edge.device)
        for pair in range(edge.shape[1]):
            wide = functional.interpolate(coarse, edge.shape[-2:], mode="bilinear", align_corners=False)
            points = (edge[:, pair, None] + self.reach * wide).clamp(0, 1)
            inside = _is(ask, points, arms).float() * 2 - 1  # [arms, draws]
            worth = inside - inside.mean(1, keepdim=True)
            total += torch.einsum("ad,dchw->achw", worth, coarse) / len(coarse)
        size = total.square().sum(1).sqrt().flatten(1)
        return (size.amax(1) / size.mean(1).clamp_min(1e-9)).clamp_min(1e-3)


def _is(ask: Ask, points: Tensor, arms: Tensor) -> Tensor:
    """Which of the points [arms, n, …] the model says are of the arm's class."""
    said = ask(points.flatten(0, 1)).argmax(-1).unflatten(0, points.shape[:2])
    return said == arms.to(said.device)[:, None]
