"""Numbers and names, as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from laocoon.core.report import Power, ScanReport
from laocoon.files.wording import printable
from laocoon.recipes.conformal import binomial_interval

SPACE = " "  # between a number and its unit


def percent(rate: float | None) -> str:
    """A rate as a percentage with the digits that it deserves; a dash where there is none."""
    if rate is None or not math.isfinite(rate):
        return "–"
    value = 100 * rate
    digits = 0 if value >= 1 or value == 0 else 1 if value >= 0.1 else 2
    shown = f"{value:.{digits}f}"
    return f"{'> 99.9' if shown == '100' and value < 100 else shown}{SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}" if abs(value) < 1e5 else f"{value:.2e}"


def amount(value: float) -> str:
    """61 k, 1.2 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{SPACE}{unit}" if scaled < 10 else f"{scaled:.0f}{SPACE}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 2 m 40 s, 1 h 5 m."""
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}m {whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60}{SPACE}m"


def p_sentence(report: ScanReport) -> str:
    """p = 0.008, 1 of 121 (120 clean references), alpha 0.05."""
    c = report.calibration
    if report.p_value is None:
        return f"no p-value, alpha {report.alpha:g}"
    if c is None:
        return f"p = {number(report.p_value, 2)}, alpha {report.alpha:g}"
    wide = f", widened {number(c.widened, 2)}-fold: {printable(c.note, 120)}" if c.widened > 1 else ""
    return (
        f"p = {number(report.p_value, 2)}, {c.rank} of {c.references + 1} ({c.references} clean references{wide}), "
        f"alpha {report.alpha:g}"
    )


def class_name(report: ScanReport, number: int) -> str:
    """class 7, or class 7 (horse)."""
    names = report.subject.get("class_names") or ()
    if isinstance(names, Sequence) and not isinstance(names, str) and number < len(names):
        name = printable(names[number], 60)
        if name and name != str(number):
            return f"class {number} ({name})"
    return f"class {number}"


def pooled(power: Sequence[Power]) -> Power | None:
    """The core kinds together, from the positive control where there is one, else from the reference models."""
    planted = [p for p in power if p.source.startswith("positive control")]
    rows = [p for p in (planted or power) if p.core]
    tried = sum(p.tried for p in rows)
    if not tried:
        return None
    found = sum(p.found for p in rows)
    low, high = binomial_interval(found, tried)
    return Power("all core kinds", found, tried, low, high, rows[0].source)


def shorter(reasons: Mapping[str, str]) -> str:
    """Why methods were skipped, each reason once."""
    said = []
    for method, reason in reasons.items():
        text = reason.removeprefix(f"{method} ").rstrip(".")
        said.append(printable(text[:1].lower() + text[1:], 100))
    return "; ".join(dict.fromkeys(said))
