"""Intervals for the lab's figures: paired differences, means, medians, areas under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm, t

Interval = tuple[float, float]


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Interval:
    """Interval of P(first) − P(second) on the same samples, by Bonett and Price (2012).

    One is added to both counts of disagreement, so that the interval has a width even where nothing disagrees:
    d̃ ± z √((p₁₂ + p₂₁ − (p₁₂ − p₂₁)²) / (n + 2)).
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n = len(a)
    if n == 0:
        return -1.0, 1.0
    only_first, only_second = (int((a & ~b).sum()) + 1) / (n + 2), (int((b & ~a).sum()) + 1) / (n + 2)
    centre = only_first - only_second
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt((only_first + only_second - centre**2) / (n + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean; (−∞, ∞) for fewer than two values."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + level) / 2, len(found) - 1)) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return float(found.mean()) - half, float(found.mean()) + half


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Order statistics that hold the median with at least the level, whatever the distribution.

    Where there are too few values for the level, the smallest and the largest.
    """
    found = np.sort(np.asarray(values, dtype=float))
    n = len(found)
    if n == 0:
        return -math.inf, math.inf
    below = max(0, int(binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return float(found[below]), float(found[n - 1 - below])


def auroc_interval(area: float, planted: int, clean: int, level: float = 0.95) -> Interval:
    """Newcombe's fifth method (2006): the areas θ from which the one found is z standard errors away.

    Hanley and McNeil's variance, taken at θ, so that an area of 1 has an interval too. (0, 1) where one side is empty.
    """
    if planted == 0 or clean == 0 or not math.isfinite(area):
        return 0.0, 1.0
    z, extra = float(norm.ppf((1 + level) / 2)), (planted + clean) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + extra * (1 - theta) / (2 - theta) + extra * theta / (1 + theta))
        return (theta - area) ** 2 - z * z * variance / (planted * clean)

    edge = 1e-12  # θ = area is no crossing, but at an area of 1 (or 0) it is a root: look beside it
    low = 0.0 if area <= 1e-6 else float(brentq(excess, edge, area - 1e-7))
    high = 1.0 if area >= 1 - 1e-6 else float(brentq(excess, area + 1e-7, 1 - edge))
    return low, high
