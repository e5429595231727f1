"""Area under the ROC curve and cluster-bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def auroc(planted: Sequence[float], clean: Sequence[float]) -> float:
    """P(planted > clean) + ½ P(equal); NaN when either is empty."""
    if not planted or not clean:
        return float("nan")
    a, b = np.asarray(planted)[:, None], np.asarray(clean)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def cluster_bootstrap(items: Sequence[T], cluster: Callable[[T], Hashable], figure: Callable[[Sequence[T]], float], *,
                      draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a figure when whole clusters are drawn with replacement."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(cluster(item), []).append(item)
    names, rng = list(groups), np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        sample = [item for k in rng.integers(0, len(names), len(names)) for item in groups[names[k]]]
        value = figure(sample)
        if np.isfinite(value):
            values.append(value)
    if not values:
        return float("nan"), float("nan")
    tail = (1 - level) / 2 * 100
    return float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail))
