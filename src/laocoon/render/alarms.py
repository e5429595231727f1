"""What carries a SUSPICIOUS verdict, one by one, each with a fingerprint that a person can accept in a baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from laocoon.core.report import ScanReport, Verdict

BEHAVIOUR = "backdoor"  # the rule of the fused verdict; conclusive findings bring their own


@dataclass(frozen=True)
class Alarm:
    """One reason for the verdict."""

    rule: str
    where: str
    message: str
    fingerprint: str
    target_classes: tuple[int, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def alarms(report: ScanReport) -> tuple[Alarm, ...]:
    """The alarms of a report, the most certain first; none unless the verdict is SUSPICIOUS."""
    if report.verdict is not Verdict.SUSPICIOUS:
        return ()
    found = [
        Alarm(f.rule, f.where, f.explanation, fingerprint(report, f.rule, f.where), f.target_classes, f.numbers)
        for f in report.findings
        if f.conclusive
    ]
    if (report.p_value is not None and report.p_value <= report.alpha) or not found:
        where = f"class {report.target_classes[0]}" if report.target_classes else "the model"
        best = report.evidence[0] if report.evidence else None
        message = report.reason if not found or best is None else f"{best.goal}: a {best.family} trigger was recovered"
        found.append(Alarm(BEHAVIOUR, where, message, fingerprint(report, BEHAVIOUR, where), report.target_classes))
    return tuple({a.fingerprint: a for a in found}.values())


def proven_by_the_file(report: ScanReport) -> bool:
    """Does the verdict rest on what the file holds alone? Then the triggers that searches recovered carry nothing."""
    raised = alarms(report)
    return bool(raised) and all(a.rule != BEHAVIOUR for a in raised)


def fingerprint(report: ScanReport, rule: str, where: str) -> str:
    """Stable over seeds, budgets and versions; another as soon as the model's bytes change."""
    told = "\0".join(("laocoon-finding/1", str(report.subject.get("sha256", "")), rule, where))
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def exit_code(report: ScanReport) -> int:
    """The report's exit code; 0 where a baseline accepts every alarm."""
    raised = alarms(report)
    if raised and all(a.fingerprint in report.accepted for a in raised):
        return 0
    return report.exit_code
