"""Text and tables score through the same `scan` as images; without reference models the answer is INCONCLUSIVE."""

from __future__ import annotations

import math

import pytest

from laocoon.core.report import ScanReport, Verdict
from laocoon.testing.twins import twins
from laocoon.verdict.calibrate import Reference
from laocoon.verdict.scan import scan


def scanned(modality: str, which: str, reference: Reference | None = None) -> ScanReport:
    pair = twins(modality)
    case = pair.planted if which == "planted" else pair.clean
    report = scan(case.subject, pair.corpus.test, budget="default", seed=0, reference=reference)
    assert isinstance(report, ScanReport)
    return report


@pytest.mark.parametrize("modality", ["text", "tabular"])
def test_scan_scores_the_planted_twin_above_the_clean_one(modality: str) -> None:
    planted, clean = scanned(modality, "planted"), scanned(modality, "clean")
    for report in (planted, clean):
        assert report.reason.strip()
        assert f"{modality}_inversion" in report.examined
        assert math.isfinite(report.score)
    assert planted.score > clean.score
    if modality == "text":  # in the table of tumours the search names the other class: see its `misses`
        assert planted.target_classes[0] == twins(modality).plan.target


@pytest.mark.parametrize("modality", ["text", "tabular"])
def test_without_references_nothing_is_concluded(modality: str) -> None:
    report = scanned(modality, "planted", Reference({}, (), (), (), {}, ""))
    assert report.verdict is Verdict.INCONCLUSIVE and report.p_value is None and report.exit_code == 3
    assert f"no reference models for {modality}" in report.reason
