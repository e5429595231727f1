"""P-values of scores and how many of the samples named by them are named wrongly. Tensors in, tensors out.

Benjamini and Hochberg (1995); over families of samples, here classes, Benjamini and Bogomolov (2014). P-values of
several dependent tests of one sample are put together by Cauchy's law (Liu and Xie, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_P = 1e-12
LEVELS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # quantiles that a tail is described by
MOST_P = 0.9  # larger p-values count as this one: in Cauchy's law a p-value of 1 would outweigh every small one


def benjamini_hochberg(p: Tensor) -> Tensor:
    """q-values [n]: the smallest false-discovery rate at which a sample is named, min over t ≥ pᵢ of n t / #{p ≤ t}."""
    n = len(p)
    if n == 0:
        return p.clone()
    order = p.argsort(descending=True, stable=True)
    ranks = torch.arange(n, 0, -1, dtype=torch.float64)
    q = (p[order].double() * n / ranks).clamp(max=1).cummin(0).values
    found = torch.empty(n, dtype=torch.float64)
    found[order] = q
    return found


def by_group(p: Tensor, groups: Tensor) -> Tensor:
    """q-values within each group by itself, [n]."""
    found = torch.ones(len(p), dtype=torch.float64)
    for group in groups.unique().tolist():
        members = groups == group
        found[members] = benjamini_hochberg(p[members])
    return found


def discoveries(p: Tensor, groups: Tensor, rate: float) -> Tensor:
    """Samples named at a false-discovery rate on average over the groups that are named at all, bool [n].

    Benjamini and Bogomolov: groups are selected by Benjamini-Hochberg on their Simes p-values; of R selected groups
    out of K, each is tested at rate · R / K. A group's Simes p-value is the smallest of its q-values.
    """
    q, kinds = by_group(p, groups), groups.unique()
    simes = torch.stack([q[groups == k].min() for k in kinds]) if len(kinds) else torch.zeros(0)
    selected = kinds[benjamini_hochberg(simes) <= rate]
    within = rate * len(selected) / max(1, len(kinds))
    return torch.isin(groups, selected) & (q <= within)


def cauchy(p: Tensor, weights: Tensor | None = None) -> Tensor:
    """One p-value a sample from those of several tests, [tests, n] to [n], whatever their dependence in the tail.

    weights: [tests], summing to 1; else all tests count alike.
    """
    p = p.double().clamp(LEAST_P, MOST_P)
    parts = torch.tan((0.5 - p) * math.pi)
    mean = parts.mean(0) if weights is None else (weights.double()[:, None] * parts).sum(0)
    # arctan loses its digits for large values: there the tail of Cauchy's law is 1 / (π t).
    whole = 0.5 - torch.arctan(mean) / math.pi
    return torch.where(mean > 1e6, 1 / (math.pi * mean.clamp_min(1.0)), whole).clamp(LEAST_P, 1)


@dataclass(frozen=True)
class Tail:
    """How clean scores are spread, in units where the median is 0 and the quantile of 0.8 is 1: the quantiles LEVELS.

    Between them the logarithm of the share above is linear, and beyond the last it falls as it did before.
    """

    values: tuple[float, ...]

    @staticmethod
    def exponential() -> Tail:
        """Of scores whose upper half is exponential: what is assumed where nothing was measured."""
        return Tail(tuple(math.log(0.5 / (1 - level)) / math.log(2.5) for level in LEVELS))

    @staticmethod
    def of(scores: Tensor) -> Tail:
        """Of standardised scores."""
        return Tail(tuple(float(v) for v in np.quantile(scores.double().cpu().numpy(), LEVELS)))

    def share_above(self, scores: Tensor) -> Tensor:
        """P(clean score ≥ z), [n]."""
        places = np.maximum.accumulate(np.array([0.0, 1.0, *self.values]))
        places += 1e-6 * np.arange(len(places))
        logs = np.log10(np.array([0.5, 0.2, *(1 - level for level in LEVELS)]))
        z = scores.double().cpu().numpy()
        found = np.interp(z, places, logs)
        slope = (logs[3] - logs[-1]) / max(places[-1] - places[3], 0.25)  # from the quantile of 0.95 on
        found = np.where(z > places[-1], logs[-1] - slope * (z - places[-1]), found)
        share = np.where(z < 0, np.clip(0.5 - 0.5 * z, 0.5, 1.0), 10.0 ** np.maximum(found, math.log10(LEAST_P)))
        return torch.from_numpy(share)


def mixture_share(scores: Tensor, tails: Sequence[Tail]) -> Tensor:
    """P(clean score ≥ z) for a clean set drawn among several: the mean over their tails, [n]."""
    total = torch.zeros(len(scores), dtype=torch.float64)
    for tail in tails:
        total += tail.share_above(scores)
    return (total / len(tails)).clamp(LEAST_P, 1)


def mirrored(scores: Tensor, null: Tensor) -> Tensor:
    """P-values of scores whose clean law is symmetric, its upper half unknown because it may hold the discoveries.

    `null`: bool [n], samples taken for clean. The lower half of their deviations from their median is reflected;
    beyond what was seen, the tail goes on as a normal one of the same spread. [n]
    """
    centre = scores[null].median()
    low = (centre - scores[null & (scores <= centre)]).double().sort().values
    spread = (low.quantile(0.68) if len(low) < 1_000_000 else low[:: len(low) // 100_000].quantile(0.68)).clamp_min(
        1e-12)
    apart = (scores - centre).double()
    seen = len(low) - torch.searchsorted(low, apart)
    empirical = 0.5 * (1 + seen) / (len(low) + 1)
    normal = 0.5 * torch.erfc(apart / spread / math.sqrt(2))
    beyond = apart > low[-1] if len(low) else torch.ones(len(scores), dtype=torch.bool)
    above = torch.where(beyond, torch.minimum(empirical, normal), empirical)
    return torch.where(apart > 0, above, torch.ones_like(above)).clamp(LEAST_P, 1)
