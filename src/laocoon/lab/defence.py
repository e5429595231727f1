"""A defence at work. It is given a model and a few clean samples, as its user would give them, and nothing else:
what was planted, and whether, is not here to be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.core.report import ScanReport
from laocoon.core.subject import Provenance, Subject
from laocoon.verdict.examination import prepare, run
from laocoon.verdict.scan import scan
from laocoon.verdict.schedule import Schedule


@dataclass(frozen=True)
class WholeScan:
    """The scan as a user runs it, instead of one detector."""

    budget: str = "default"
    methods: tuple[str, ...] = ()
    alpha: float = 0.05


Defence = Detector | WholeScan


@dataclass(frozen=True)
class Answer:
    """What a defence says of one subject; plain data."""

    score: float | None  # higher is more suspicious; None: nothing was found, or (not complete) no answer
    statistics: Mapping[str, float] = field(default_factory=dict)  # largest score by rule
    target_classes: tuple[int, ...] = ()  # most suspected first
    complete: bool = True
    reason: str = ""
    spent: float = 0.0
    p_value: float | None = None
    verdict: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)  # the whole, canonical


def anonymous(subject: Subject) -> Subject:
    """Nothing but the model: no path, no metadata, no note that would tell where it comes from."""
    origin = Provenance(format=subject.provenance.format, sha256=subject.fingerprint())
    return replace(subject, provenance=origin)


def examine(subject: Subject, given: Samples | None, defence: Defence, seed: int) -> Answer:
    """By the same code as `laocoon scan`."""
    nameless = anonymous(subject)
    if isinstance(defence, WholeScan):
        return _scanned(scan(nameless, given, alpha=defence.alpha, budget=defence.budget, seed=seed,
                             methods=defence.methods or None))
    prepared = prepare(lambda x: nameless.outputs(x).logits, given, seed, nameless.classes)
    case = ModelCase(nameless, prepared.fit, prepared.held, graph=nameless.graph)
    report = run(Schedule("lab", (defence,), math.inf), case, Context(seed=seed)).reports[0]
    best = max(report.findings, key=lambda f: f.score, default=None)
    return Answer(
        score=_finite(report.score) if report.complete else None,
        statistics={k: v for k, v in report.statistics().items() if math.isfinite(v)},
        target_classes=best.target_classes if best is not None else (), complete=report.complete,
        reason=report.reason, spent=report.spent, report=report.canonical())


def _scanned(report: ScanReport) -> Answer:
    return Answer(score=_finite(report.score), target_classes=report.target_classes, reason=report.reason,
                  spent=report.spent, p_value=report.p_value, verdict=report.verdict.value, report=report.canonical())


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
