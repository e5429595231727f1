"""`laocoon lab bench`: measured, resumed, fitted and tabled by command; what cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laocoon.lab import text_bench

FOLDER = ("--modality", "text", "--rows", "rows", "--methods", "embedding_outlier")


def test_help(laocoon):
    for words in ((), ("measure",), ("fit",), ("table",)):
        ran = laocoon("lab", "bench", *words, "--help")
        assert ran.code == 0 and "Usage:" in ran.out and not ran.err


def test_rows_are_measured_resumed_fitted_and_tabled(laocoon, monkeypatch):
    monkeypatch.setattr(text_bench, "COUNTS", {"fusion": (8, 0), "calibration": (2, 0), "sealed": (1, 1)})
    monkeypatch.setattr(text_bench, "KINDS", {"phrase": text_bench.KINDS["phrase"]})
    monkeypatch.setattr(text_bench, "MORE_CORE", 0)
    monkeypatch.setattr(text_bench, "NETWORKS", {"bag": text_bench.NETWORKS["bag"]})
    monkeypatch.setattr(text_bench, "TRAIN", 300)
    monkeypatch.setattr(text_bench, "WEIGHTS", {"embedding_outlier.effect": 1.0})
    ran = laocoon("lab", "bench", "fit", *FOLDER, "--out", "r.json")
    assert ran.code == 2 and "too few clean models" in ran.text and not Path("r.json").exists()
    ran = laocoon("lab", "bench", "measure", *FOLDER)
    assert ran.code == 0 and ran.text.count("clean") == 10, ran.text
    assert laocoon("lab", "bench", "measure", *FOLDER).text.strip() == ""  # resumes
    assert laocoon("lab", "bench", "fit", *FOLDER, "--out", "r.json").code == 0
    fitted = json.loads(Path("r.json").read_text())
    assert len(fitted["clean"]) == 2 and "embedding_outlier.effect" in fitted["scales"]
    ran = laocoon("lab", "bench", "table", *FOLDER)
    assert ran.code == 2 and "no row of the sealed split" in ran.text
    assert laocoon("lab", "bench", "measure", *FOLDER, "--splits", "sealed").code == 0
    assert laocoon("lab", "bench", "table", *FOLDER, "--out", "t.md").code == 0
    page = Path("t.md").read_text()
    assert "| all | 1 |" in page and "| phrase |" in page


@pytest.mark.parametrize(("arguments", "says"), [
    (("measure", "--modality", "smell"), ("'smell'", "text, tabular")),
    (("measure", "--modality", "text", "--splits", "holdout"), ("'holdout'", "fusion, calibration or sealed")),
    (("measure", "--modality", "text", "--share", "2/2"), ("'2/2'", "K/N")),
    (("measure", "--modality", "text", "--data-root", "nowhere"), ("nowhere", "folder")),
    (("measure", "--modality", "text", "--methods", "text_inversio"), ("text_inversio", "text_inversion")),
    (("table", "--modality", "text", "--rows", "rows", "--split", "x"), ("'x'", "fusion, calibration or sealed")),
])
def test_what_cannot_be_used_is_named(laocoon, arguments, says):
    ran = laocoon("lab", "bench", *arguments)
    assert ran.code == 2 and all(part in ran.text for part in says), ran.text
