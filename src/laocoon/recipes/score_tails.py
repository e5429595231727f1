"""What the suspicion scores of a whole data set look like, in figures that compare from one data set to another.

Scores of a clean set have one hump and a tail; poison adds a second hump (gap), a heavier tail (tail), whose samples
share a label (class) and a direction in feature space (coherence), and which several methods see (agreement). Every
figure is free of the scale of the scores and, but for chance, of the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laocoon.recipes.false_discovery import LEVELS

SHARES = (0.01, 0.02, 0.05, 0.1)  # of the samples that make up a tail
TOP = 0.02  # share whose coherence and agreement are judged
LEAST = 5  # samples of a class in a tail, below which they have no direction


def standardised(scores: Tensor, known: Tensor | None = None, least: float = 0.0) -> Tensor:
    """(s − q₅₀) / (q₈₀ − q₅₀), [n]: units that a fifth of poison does not move. `known`: samples that set the scale.

    least: a smaller unit is not believed, where scores mean the same on every set.
    """
    base = scores if known is None or int(known.sum()) < 20 else scores[known]
    low, ten, middle, upper, ninety = np.quantile(base.double().cpu().numpy(), (0.0, 0.1, 0.5, 0.8, 0.9))
    unit = max(upper - middle, 0.1 * (ninety - ten), 1e-9 * max(1.0, abs(middle), abs(low)),
               least)
    found: Tensor = (scores.double() - float(middle)) / float(unit)
    return found.clamp(-1e6, 1e6)


def quantiles(z: Tensor) -> tuple[float, ...]:
    """The quantiles that `false_discovery.Tail` is made of."""
    return tuple(float(v) for v in np.quantile(z.double().cpu().numpy(), LEVELS))


def height(scores: Tensor) -> float:
    """The quantile of 0.995, of scores that mean the same on every set."""
    return float(np.quantile(scores.double().cpu().numpy(), 0.995))


def tail(z: Tensor) -> float:
    """Mean of log(1 + z) at the quantiles of 0.95, 0.98 and 0.99."""
    found = np.quantile(z.double().cpu().numpy(), (0.95, 0.98, 0.99))
    return float(np.log1p(np.maximum(found, 0.0)).mean())


def gap(z: Tensor) -> float:
    """Largest (m₂ − m₁) / (s₁ + s₂) over cuts with half of the samples or more below, and 0.5 % or more above.

    m, s: mean and standard deviation of each side, on asinh(z), so that a few enormous scores are no second hump by
    themselves. Otsu's criterion (1979) does not see a hump of a twentieth.
    """
    x = torch.asinh(z.double()).sort().values
    n = len(x)
    least = max(LEAST, math.ceil(0.005 * n))
    if n < 4 * least or float(x[-1] - x[0]) < 1e-9:
        return 0.0
    below = torch.arange(1, n, dtype=torch.float64)
    sums, squares = x.cumsum(0), x.square().cumsum(0)
    first, second = sums[:-1] / below, (sums[-1] - sums[:-1]) / (n - below)
    spread_first = (squares[:-1] / below - first.square()).clamp_min(0).sqrt()
    spread_second = ((squares[-1] - squares[:-1]) / (n - below) - second.square()).clamp_min(0).sqrt()
    found = (second - first) / (spread_first + spread_second + 0.05)
    return float(found[n // 2: n - least].max())


def concentration(z: Tensor, labels: Tensor) -> float:
    """How much one label is over-represented in a tail: largest log((found + 2) / (expected + 2)) over SHARES."""
    best = 0.0
    counts = torch.bincount(labels).double()
    for share in SHARES:
        inside = z >= z.quantile(1 - share) if len(z) < 1_000_000 else z >= float(np.quantile(z.numpy(), 1 - share))
        found = torch.bincount(labels[inside], minlength=len(counts)).double()
        expected = counts * float(inside.double().mean())
        best = max(best, float(((found + 2) / (expected + 2)).log().max()))
    return best


def coherence(z: Tensor, labels: Tensor, features: Tensor) -> float:
    """Mean cosine between the features of tail samples of one label, less their label's mean; the largest label's.

    Of k unit vectors with mean R it is (k |R|² − 1) / (k − 1); labels with few samples in the tail are left out.
    """
    count = max(LEAST, math.ceil(TOP * len(z)))
    inside = torch.zeros(len(z), dtype=torch.bool)
    inside[z.topk(min(count, len(z))).indices] = True
    best = 0.0
    for label in labels[inside].unique().tolist():
        members = labels == label
        chosen = members & inside
        k = int(chosen.sum())
        if k < LEAST or int((members & ~inside).sum()) < LEAST:
            continue
        away = functional.normalize(features[chosen].double() - features[members & ~inside].double().mean(0), dim=1)
        best = max(best, (k * float(away.mean(0).square().sum()) - 1) / (k - 1))
    return best


def agreement(many: Sequence[Tensor]) -> float:
    """How much more often two methods name the same samples than by chance: mean log lift of their top 2 %."""
    if len(many) < 2:
        return 0.0
    n = len(many[0])
    count = max(LEAST, math.ceil(TOP * n))
    tops = []
    for z in many:
        inside = torch.zeros(n, dtype=torch.bool)
        inside[z.topk(min(count, n)).indices] = True
        tops.append(inside)
    expected = count * count / n
    lifts = [math.log((int((a & b).sum()) + 1) / (expected + 1)) for a, b in combinations(tops, 2)]
    return sum(lifts) / len(lifts)
