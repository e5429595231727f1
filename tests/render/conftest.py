"""Reports of every verdict, made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.goal import all_to_one
from laocoon.core.report import Calibration, Evidence, Finding, Power, Report, ScanReport, Verdict
from laocoon.triggers.patch import Patch

FINDING = Finding("trigger_inversion.patch", "class 7", 2.4, "a patch of 11 px sends 98% of images to class 7", (7,))
EVIDENCE = Evidence("class 7", (7,), "patch", "trigger_inversion", 11.2, "px", 0.96, 0.92, 0.98, 60, 0.04,
                    {"after JPEG 75": 0.95, "before the trigger": math.nan})


def _method(name: str, *findings: Finding, reason: str = "", skipped: bool = False, complete: bool = True) -> Report:
    return Report(method=name, params={"steps": 100}, findings=findings, examined=() if skipped else (name,),
                  skipped=(name,) if skipped else (), reason=reason, subject="9f2c" * 16, seed=0, spent=5200.0, seconds=12.4,
                  version="0.1.0", complete=complete)


@pytest.fixture
def suspicious() -> ScanReport:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 5:7, 5:7] = 1.0
    trigger = {"mask": mask, "pattern": torch.ones(1, 3, 8, 8)}
    return ScanReport(
        verdict=Verdict.SUSPICIOUS, reason="class 7: a patch trigger of 11.2 px sends 96% [92%, 98%] of held-out images there",
        p_value=1 / 121, score=7.7, alpha=0.05, target_classes=(7, 2), findings=(FINDING,), evidence=(EVIDENCE,),
        power=(Power("patch", 21, 22, 0.77, 1.0, "similar reference models"),
               Power("blended", 14, 17, 0.57, 0.96, "similar reference models"),
               Power("warped", 4, 9, 0.14, 0.79, "similar reference models", False)),
        calibration=Calibration("image/default", 120, 1, 1.0, 0.0, "3f2a9c81"),
        class_scores=(0.3, 0.8, 1.9, 0.2, 0.4, 0.1, 0.6, 7.9, 0.3, 0.5),
        reports=(_method("trigger_inversion", FINDING), _method("trodo", reason="the budget is spent.", complete=False),
                 _method("ban", reason="ban needs a batch-norm layer.", skipped=True)),
        examined=("trigger_inversion", "trodo"), skipped={"ban": "ban needs a batch-norm layer."},
        misses={"trigger_inversion": "warps and photo filters", "trodo": "models trained with outliers"},
        subject={"path": "vendor.onnx", "format": "onnx", "sha256": "9f2c" * 16, "notes": ["assumed: pixels from 0 to 1"],
                 "modality": "image", "classes": 10, "class_names": [], "input_shape": [3, 8, 8], "parameters": 272474,
                 "samples": 200, "samples_fit": 133, "samples_held": 67, "accuracy": 0.874, "capabilities": ["gradient"]},
        budget="default", spent=61234.0, seconds=160.0, seed=0, version="0.1.0", command="laocoon scan vendor.onnx",
        candidates=(Candidate(Patch(), trigger, all_to_one(7, 10), 4.0, 0.98, "trigger_inversion"),),
        pictures=torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def no_evidence(suspicious: ScanReport) -> ScanReport:
    calibration = Calibration("image/default", 120, 37, 1.0, 0.0, "3f2a9c81")
    return replace(suspicious, verdict=Verdict.NO_EVIDENCE, reason="no evidence of a backdoor", p_value=37 / 121, score=1.1,
                   calibration=calibration)


@pytest.fixture
def inconclusive(suspicious: ScanReport) -> ScanReport:
    return replace(suspicious, verdict=Verdict.INCONCLUSIVE, reason="the model is right on 2 of 200 labelled samples",
                   p_value=None, score=-math.inf, target_classes=(), findings=(), evidence=(), power=(), calibration=None,
                   class_scores=(), candidates=(), pictures=None, reports=(), examined=(), misses={})


@pytest.fixture
def unsafe(suspicious: ScanReport) -> ScanReport:
    finding = Finding("pickle-code", "model.pt", 1.0, "loading it would run code (GLOBAL posix system)", conclusive=True)
    return replace(suspicious, verdict=Verdict.SUSPICIOUS, reason="model.pt: loading it would run code.", p_value=None,
                   score=1.0, target_classes=(), findings=(finding,), evidence=(), power=(), calibration=None, class_scores=(),
                   candidates=(), pictures=None, reports=(), examined=("file_checks",), misses={},
                   subject={"path": "model.pt", "format": "pickle", "sha256": "ab" * 32})


@pytest.fixture(params=["suspicious", "no_evidence", "inconclusive", "unsafe"])
def report(request: pytest.FixtureRequest) -> ScanReport:
    """Each of them in turn."""
    return request.getfixturevalue(request.param)
