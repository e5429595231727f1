"""What a clean model's largest statistic is expected to be, fitted on the clean models of a fusion split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np

from laocoon.core.methods import Detector
from laocoon.verdict.fuse import covariates

FLOOR = 0.2  # least spread: a few references may agree by chance
LEAST = 8  # clean models: with fewer a rule, or a group of inputs, gets no scale of its own
RIDGE = 1.0  # of the regression of a rule's location, in models' worth


def settings_digest(methods: Sequence[Detector]) -> str:
    """Changes when a method's parameters do, so that old measurements are not mistaken for new ones."""
    text = json.dumps([[m.card.name, asdict(m)] for m in methods], sort_keys=True)  # type: ignore[call-overload]
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def names_digest(names: Sequence[str]) -> str:
    """Of the specimens of a split, in any order."""
    return hashlib.sha256("".join(sorted(names)).encode()).hexdigest()[:16]


def scales(clean: Sequence[Mapping[str, Any]], weights: Mapping[str, float], groups: Sequence[str] = (),
           silent: Mapping[str, Sequence[str]] = MappingProxyType({})) -> dict[str, list[Any]]:
    """Per rule: what a clean model's largest value is expected to be, its spread, the weight, and the same per group.

    clean: rows as the reference file holds them. groups: kinds of input that are fitted alone where there are enough.
    silent: rule -> groups for which it does not count.
    """
    found: dict[str, list[Any]] = {}
    for rule, weight in weights.items():
        quiet = silent.get(rule, ())
        rows = [row for row in clean  # an empty row: the rule does not apply to such inputs
                if row["table"].get(rule) and row["group"] not in quiet]
        if len(rows) < LEAST:
            continue
        members = {group: [row for row in rows if row["group"] == group] for group in groups}
        own = {group: _fitted(rule, each) for group, each in members.items() if len(each) >= LEAST}
        own |= {group: [] for group in quiet}
        location, spread, slopes = _fitted(rule, rows)
        found[rule] = [location, spread, weight, slopes, own]
    return found


def _fitted(rule: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Location, spread and slopes of a rule's largest value."""
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
    slope = {n: [round(float(b), 4), round(means[n], 4)]
             for n, b, wide in zip(names, slopes, x.std(0), strict=True) if wide > 0}
    return [round(float(np.median(rest)), 4), round(max(_spread(rest), FLOOR), 4), slope]


def _spread(values: np.ndarray) -> float:
    """Of the upper half, as a standard deviation: false alarms come from there."""
    return float(np.quantile(values, 0.9) - np.median(values)) / 1.2816
