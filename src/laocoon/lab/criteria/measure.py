"""A figure with its unit, its 95 % interval and the number of samples behind it; JSON there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.intervals import auroc_interval, mean_interval, median_interval, paired_difference
from laocoon.recipes.ranking import auroc

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """value is None where nothing could be measured; `note` says why. low, high: 95 %, None where there is none."""

    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    count: int = 0
    note: str = ""


def _known(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def rate(hits: Tensor | Sequence[bool], note: str = "") -> Measure:
    """A share of samples, Clopper-Pearson."""
    tried = len(hits)
    if tried == 0:
        return absent("share", note or "no sample that it speaks of")
    found = int(torch.as_tensor(hits).sum())
    low, high = binomial_interval(found, tried)
    return Measure(round(found / tried, 6), "share", round(low, 6), round(high, 6), tried, note)


def median(values: Tensor, unit: str, note: str = "") -> Measure:
    """A median, with order statistics around it."""
    if len(values) == 0:
        return absent(unit, note or "no sample")
    low, high = median_interval(values.tolist())
    return Measure(_known(float(values.double().quantile(0.5))), unit, _known(low), _known(high), len(values), note)


def mean(values: Tensor, unit: str, note: str = "") -> Measure:
    """A mean, Student's interval."""
    if len(values) == 0:
        return absent(unit, note or "no sample")
    low, high = mean_interval(values.tolist())
    return Measure(_known(float(values.double().mean())), unit, _known(low), _known(high), len(values), note)


def area(planted: Sequence[float], clean: Sequence[float], note: str = "") -> Measure:
    """An area under the ROC curve, Newcombe's fifth interval."""
    if not planted or not clean:
        return absent("AUROC", note or "one side is empty")
    value = auroc(planted, clean)
    low, high = auroc_interval(value, len(planted), len(clean))
    return Measure(_known(value), "AUROC", _known(low), _known(high), len(planted) + len(clean), note)


def difference(first: Tensor, second: Tensor, note: str = "") -> Measure:
    """Difference of two shares on the same samples, Bonett and Price."""
    if len(first) == 0:
        return absent("difference of shares", note or "no sample")
    low, high = paired_difference(first.tolist(), second.tolist())
    value = float(first.float().mean() - second.float().mean())
    return Measure(_known(value), "difference of shares", _known(low), _known(high), len(first), note)


def exact(value: float, unit: str, note: str = "", count: int = 0) -> Measure:
    """Counted, not estimated: no interval."""
    return Measure(_known(value), unit, None, None, count, note)


def absent(unit: str, note: str) -> Measure:
    return Measure(None, unit, note=note)


_MEASURE = {f.name for f in fields(Measure)}


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of measures as JSON-able data."""
    found: dict[str, Any] = asdict(value)
    return found


def restored(kind: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass that `plain` was given. Unknown keys are refused, missing ones take their default."""
    return kind(**{name: _value(value) for name, value in data.items()})


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Measure(**value) if set(value) == _MEASURE else {k: _value(v) for k, v in value.items()}
    return tuple(_value(v) for v in value) if isinstance(value, list | tuple) else value
