"""What a clean model's largest statistic is expected to be, fitted on the clean models of a fusion split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from laocoon.core.methods import Detector
from laocoon.verdict.fuse import covariates

FLOOR = 0.2  # least spread: a few references may agree by chance
LEAST = 8  # clean models: with fewer a rule gets no scale
SHRINK = 5  # pooled models' worth that a group's own spread is drawn towards the pooled one
RIDGE = 1.0  # of the regression of a rule's location, in models' worth


def settings_digest(methods: Sequence[Detector]) -> str:
    """Changes when a method's parameters do, so that old measurements are not mistaken for new ones."""
    text = json.dumps([[m.card.name, asdict(m)] for m in methods], sort_keys=True)  # type: ignore[call-overload]
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def names_digest(names: Sequence[str]) -> str:
    """Of the specimens of a split, in any order."""
    return hashlib.sha256("".join(sorted(names)).encode()).hexdigest()[:16]


def scales(clean: Sequence[Mapping[str, Any]], weights: Mapping[str, float],
           groups: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Per rule: what a clean model's largest value is expected to be, its spread, and the weight.

    clean: rows as the reference file holds them. groups: kinds of input with a spread of their own.
    """
    found: dict[str, list[Any]] = {}
    for rule, weight in weights.items():
        rows = [row for row in clean if rule in row["table"]]
        if len(rows) < LEAST:
            continue
        largest = np.array([max((v for v in row["table"][rule] if v is not None), default=0.0) for row in rows])
        known = [covariates(row["table"], row["classes"], row["group"]) for row in rows]
        names = sorted({name for k in known for name in k})
        means = {name: float(np.mean([k[name] for k in known if name in k])) for name in names}
        x = np.array([[k.get(name, means[name]) - means[name] for name in names] for k in known])
        scale = x.std(0) + 1e-9
        unit = x / scale
        # Ridge regression in standard units: few models, and the covariates are related.
        squares = unit.T @ unit + RIDGE * np.eye(len(names))
        slopes = np.linalg.solve(squares, unit.T @ (largest - largest.mean())) / scale
        rest = largest - x @ slopes
        location, pooled = float(np.median(rest)), _spread(rest)
        spreads = {}
        for group in groups:
            own = rest[[row["group"] == group for row in rows]]
            if len(own):
                share = len(own) / (len(own) + SHRINK)
                spreads[group] = round(max(share * _spread(own) + (1 - share) * pooled, FLOOR), 4)
        slope = {n: [round(float(b), 4), round(means[n], 4)] for n, b in zip(names, slopes, strict=True)}
        found[rule] = [round(location, 4), round(max(pooled, FLOOR), 4), weight, slope, spreads]
    return found


def _spread(values: np.ndarray) -> float:
    """Of the upper half, as a standard deviation: false alarms come from there."""
    return float(np.quantile(values, 0.9) - np.median(values)) / 1.2816
