"""From the statistics of all methods to one scalar and one score per class.

Every rule's statistic is put on the scale of the clean models of the fusion split: z = (s − location) / spread, where
location and spread describe a clean model's *largest* value over its classes (so the number of classes and the look
over all of them are paid for there). The location is a regression on what can be seen of a model whether or not one
class is planted: how many classes it has, whether its layers normalise, and how much its classes differ anyway, as
the quartile range of three of the statistics over classes. Models whose classes differ widely have large largest
values when clean; with one location for all, those models raised the false alarms and hid the weak backdoors of the
others. Grey and colour inputs have a scale of their own: what moves one hardly moves the other. z is clipped,
weighted, and combined over the rules that point to the same class by a p-norm: a sum lets the oddities that natural
classes share over methods add up to an accusation (MNIST's 8 is easy to reach by any trigger), a maximum forgets that
a planted class is odd to several methods. p = 3 was chosen on the fusion split. Rules that name no class stand alone.
The score is the largest; it says nothing about probability: that is the conformal step's work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from laocoon.core.report import Report

Statistics = Mapping[str, Sequence[float | None]]  # rule -> value per class, or one value for rules without a class


@dataclass(frozen=True)
class Scale:
    """What a rule's largest value looks like on clean models, and how much the rule counts."""

    location: float  # of a model whose covariates are the clean models' means
    spread: float
    weight: float = 1.0
    slopes: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # covariate -> slope, mean on clean models
    groups: Mapping[str, Scale] = field(default_factory=dict)  # of models with grey or colour inputs alone

    def counts(self, group: str) -> float:
        """The weight on a model with such inputs; a group's own is a factor, 0 where the rule is silent about it."""
        return self.weight * (self.groups[group].weight if group in self.groups else 1.0)

    def standard(self, value: float, known: Mapping[str, float], group: str = "") -> float:
        """z of a value on a model with these covariates; one that is not known is taken to be the mean."""
        own = self.groups.get(group, self)
        expected = own.location + sum(b * (known.get(k, mean) - mean) for k, (b, mean) in own.slopes.items())
        return (value - expected) / own.spread


# Rules whose quartile range over classes is a covariate: of a patch, of a perturbation and of a whole-image family.
SPREADS = {"patch": "trigger_inversion.patch", "additive": "trigger_inversion.additive",
           "tone": "whole_image_inversion.tone"}
LEAST_CLASSES = 4  # for a quartile range
KNOWN = "known."  # rows of a table that describe the model and accuse nobody (`traits.py`): covariates of the others


def covariates(table: Statistics, classes: int, group: str) -> dict[str, float]:
    """What is seen of a model whether or not one of its classes is planted. group: "grey", "colour" or ""."""
    # The largest of more classes is larger: the expected maximum of so many normal values (Blom, 1958).
    found = {"classes": NormalDist().inv_cdf((classes - 0.375) / (classes + 0.25))}
    if group:
        found["grey"] = float(group == "grey")
    found |= {rule.removeprefix(KNOWN): values[0] for rule, values in table.items()
              if rule.startswith(KNOWN) and values[0] is not None}
    for name, rule in SPREADS.items():
        values = [v for v in table.get(rule, ()) if v is not None]
        if len(values) >= LEAST_CLASSES:
            low, high = np.quantile(values, (0.25, 0.75))
            found[name] = float(high - low)
    return found


@dataclass(frozen=True)
class Fused:
    """score; per-class scores on the same scale; contributions of each rule to the score, largest first."""

    score: float
    classes: tuple[float, ...]
    target_classes: tuple[int, ...]
    contributions: tuple[tuple[str, float], ...]


def statistics(reports: Sequence[Report], classes: int) -> dict[str, list[float | None]]:
    """Per rule, the largest finding per class, [classes]; one value, [1], for rules that name no single class."""
    table: dict[str, list[float | None]] = {}
    for report in reports:
        for f in report.findings:
            if not math.isfinite(f.score) or f.conclusive:
                continue
            single = len(f.target_classes) == 1 and 0 <= f.target_classes[0] < classes
            row = table.setdefault(f.rule, [None] * classes if single else [None])
            place = f.target_classes[0] if single and len(row) == classes else 0
            old = row[place]
            row[place] = f.score if old is None else max(old, f.score)
    return table


def contrasted(table: Statistics) -> dict[str, list[float | None]]:
    """The same, and beside each rule with a value per class what a class has beyond the next: `RULE.contrast`.

    (v − next) / (max(next, 0) + 0.3): the other classes of the very same model are the natural control. Where models
    differ more in how far any class can be pushed than a plant adds (texts: a slur moves one network as far as a
    trigger moves another), only this tells. The constant was chosen on the fusion split of texts.
    """
    def beyond(value: float | None, other: float) -> float | None:
        return None if value is None else (value - other) / (max(other, 0.0) + LEVEL)

    found = {rule: list(values) for rule, values in table.items() if not rule.endswith(CONTRAST)}
    for rule, values in list(found.items()):
        known = [v for v in values if v is not None]
        if len(values) > 1 and len(known) > 1:
            first, second = sorted(known, reverse=True)[:2]
            found[rule + CONTRAST] = [beyond(v, second if v == first else first) for v in values]
    return found


CONTRAST = ".contrast"
LEVEL = 0.3  # of the next class, below which a contrast is a plain difference
POWER = 3.0  # of the norm over rules; 1 adds, infinity takes the largest


def fuse(table: Statistics, scales: Mapping[str, Scale], classes: int, group: str = "", *, lower: float = 0.0,
         upper: float = 12.0) -> Fused:
    """Combine what is there; a rule without a scale, or not computed, adds nothing."""
    known = covariates(table, classes, group)
    per_class = [0.0] * classes
    alone: list[float] = []
    parts: dict[str, float] = {}
    for rule, values in table.items():
        scale = scales.get(rule)
        if scale is None or not values:  # none: it does not apply to such inputs
            continue
        weight = scale.counts(group)
        if weight <= 0:
            continue
        z = [weight * min(max(scale.standard(v, known, group), lower), upper) if v is not None else 0.0
             for v in values]
        parts[rule] = max(z)
        if len(values) == classes and len(values) > 1:
            per_class = [(a**POWER + b**POWER) ** (1 / POWER) for a, b in zip(per_class, z, strict=True)]
        else:
            alone.append(max(z))
    score = max(per_class + alone, default=0.0)
    order = sorted(range(classes), key=lambda c: -per_class[c])
    named = tuple(c for c in order if per_class[c] > 0)[:5]
    ranked = tuple(sorted(((r, round(v, 3)) for r, v in parts.items() if v > 0), key=lambda item: -item[1]))
    return Fused(score, tuple(per_class), named, ranked)


def promise(fused: Fused, rule: str, success: float, targets: Sequence[int]) -> float:
    """How much a recovered trigger deserves to be verified: by what its rule, and its only target class, add."""
    parts = dict(fused.contributions)
    own = max(parts.get(rule, 0.0), parts.get(rule + CONTRAST, 0.0))
    return success * (own + (fused.classes[targets[0]] if len(targets) == 1 else own))
