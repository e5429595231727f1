"""The report of a file that was not loaded, because loading it would run code or reach outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from laocoon import __version__
from laocoon.core.errors import LaocoonError, UnsafeFile
from laocoon.core.report import Finding, ScanReport, Verdict
from laocoon.files.open import digest, inspect, recognise

if TYPE_CHECKING:
    from laocoon.cli.scan_options import ScanOptions

CHECK = "file_checks"
UNLOADED = "the file was not loaded"


def unsafe_report(error: UnsafeFile, path: str, told: ScanOptions, seconds: float) -> ScanReport:
    """SUSPICIOUS, with every finding of the static checks."""
    place = Path(path)
    told_by_error = Finding(error.rule, place.name, 1.0, error.problem, conclusive=True)
    try:
        findings = tuple(f for f in inspect(place) if f.conclusive) or (told_by_error,)
        facts = {"path": place.name, "format": recognise(place), "sha256": digest(place)}
    except LaocoonError:  # found on the way, where the static checks saw nothing
        findings, facts = (told_by_error,), {"path": place.name, "sha256": digest(place) if place.exists() else ""}
    return ScanReport(
        verdict=Verdict.SUSPICIOUS,
        reason=str(error),
        p_value=None,
        score=max(f.score for f in findings),
        alpha=told.alpha,
        target_classes=(),
        findings=findings,
        evidence=(),
        power=(),
        calibration=None,
        class_scores=(),
        reports=(),
        examined=(CHECK,),
        skipped={"all other methods": UNLOADED},
        misses={},
        subject=facts,
        budget=told.budget,
        spent=0.0,
        seconds=seconds,
        seed=told.seed,
        version=__version__,
    )
