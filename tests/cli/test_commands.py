"""Help, doctor, demo and the lab's commands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from laocoon import __version__
from laocoon.cli import doctor
from laocoon.cli.scan import OPTIONS
from laocoon.verdict.portfolio import available as repairs
from laocoon.verdict.schedule import available

COMMANDS = ((), ("scan",), ("doctor",), ("demo",), ("lab",), ("lab", "zoo"), ("lab", "demo-models"),
            *(("lab", "zoo", c) for c in ("build", "measure", "fit", "table")))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: " ".join(w) or "laocoon")
def test_help(words, laocoon):
    ran = laocoon(*words, "--help")
    assert ran.code == 0 and "Usage:" in ran.out and not ran.err
    assert laocoon(*words, "-h").out == ran.out


def test_help_of_scan_names_every_option(laocoon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = laocoon("scan", "--help").text
    assert len(OPTIONS) > 20
    for option in OPTIONS:
        assert re.search(rf"{option.flag}[ ,]", told) and option.help, option
    assert "Exit codes: 0 no evidence, 1 findings, 2 usage or failure, 3 inconclusive." in told


def test_no_arguments_is_help(laocoon):
    assert "Usage:" in laocoon().text


def test_doctor(laocoon):
    ran = laocoon("doctor")
    assert ran.code == 0 and __version__ in ran.out and f"torch {torch.__version__.split('+')[0]}" in ran.text
    for name in available():
        assert name in ran.out, name
    for word in ("ONNX", "TorchScript", "Keras", "Parquet", "cpu", "Isolation", "time limit", f"{len(repairs())} of `laocoon repair`",
                 "spectral_signatures", "marabou_absence", "the guard as a service"):
        assert word in ran.text, word


def test_doctor_says_what_to_install(laocoon, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    told = laocoon("doctor").text
    for extra in ("timm", "transformers", "keras", "hub", "lab", "ray", "serve", "otel", "dp", "verify"):
        assert f"pip install 'laocoon[{extra}]'" in told
    assert "✗ Keras" in told and "✓ ONNX" in told


def test_demo(laocoon, monkeypatch):
    """What the scans say is tested elsewhere; here, that the demo says whether they said the right thing."""
    commands = []

    def answer(codes):
        def run(command, check):
            commands.append(command[3:])
            name = Path(command[4]).name
            return subprocess.CompletedProcess(command, codes[name])

        return run

    monkeypatch.setattr("laocoon.cli.demo.subprocess.run", answer({"clean.onnx": 0, "backdoored.onnx": 1}))
    ran = laocoon("demo", "--out", "here")
    assert ran.code == 0 and ran.text.count(" as expected ") == 2, ran.text
    assert Path("here/digits.npz").is_file()
    assert [Path(c[1]).is_file() for c in commands] == [True, True] and all(c[0] == "scan" for c in commands)
    monkeypatch.setattr("laocoon.cli.demo.subprocess.run", answer({"clean.onnx": 0, "backdoored.onnx": 3}))
    ran = laocoon("demo", "--out", "here")
    assert ran.code == 1 and "EXPECTED SUSPICIOUS" in ran.text and "INCONCLUSIVE" in ran.text


# ---------------------------------------------------------------- the lab
BUILD = ("lab", "zoo", "build", "--zoo", "zoo", "--data", "digits", "--splits", "calibration")


def test_zoo_is_built_measured_and_fitted(laocoon, monkeypatch):
    monkeypatch.setattr("laocoon.lab.reference.WEIGHTS", {"mm_bd.margin": 1.0})  # one cheap method
    ran = laocoon(*BUILD, "--limit", "1")
    assert ran.code == 0 and "1 specimens built" in ran.text and "clean" in ran.text, ran.text
    (facts,) = (json.loads(p.read_text()) for p in Path("zoo").glob("*/facts.json"))
    assert facts["clean_accuracy"] > 0.9 and facts["specification"]["split"] == "calibration"
    before = {p: p.stat().st_mtime_ns for p in Path("zoo").rglob("*")}
    assert "0 specimens built" in laocoon(*BUILD, "--limit", "1").text  # resumes
    assert {p: p.stat().st_mtime_ns for p in Path("zoo").rglob("*")} == before
    ran = laocoon("lab", "zoo", "fit", "--zoo", "zoo", "--out", "r.json")
    assert ran.code == 2 and "was measured" in ran.text and not Path("r.json").exists()
    ran = laocoon("lab", "zoo", "measure", "--zoo", "zoo", "--splits", "calibration", "--data", "digits")
    assert ran.code == 0 and "calibration" in ran.text and "digits" in ran.text
    assert laocoon("lab", "zoo", "fit", "--zoo", "zoo", "--out", "r.json").code == 0
    fitted = json.loads(Path("r.json").read_text())
    assert len(fitted["clean"]) == 1 and fitted["provenance"]["data"] == ["digits"]
    ran = laocoon("lab", "zoo", "table", "--zoo", "zoo", "--split", "calibration", "--out", "t.md")
    assert ran.code == 0 and "| all | 1 |" in Path("t.md").read_text()


@pytest.mark.parametrize(("arguments", "says"), [
    ((*BUILD[:-1], "holdout"), ("--splits", "'holdout'", "fusion, calibration or sealed")),
    (("lab", "zoo", "build", "--data", "imagenet"), ("--data", "'imagenet'", "digits, mnist|digits,mnist")),
    ((*BUILD, "--share", "3"), ("--share", "'3'", "K/N")),
    ((*BUILD, "--share", "2/2"), ("--share", "'2/2'", "K/N")),
    ((*BUILD, "--limit=-1"), ("--limit", "0")),
    (("lab", "zoo", "measure", "--zoo", "nowhere"), ("nowhere", "no specimens", "build")),
    (("lab", "zoo", "fit", "--zoo", "nowhere", "--out", "r.json"), ("nowhere", "no specimens", "build")),
    (("lab", "zoo", "table", "--zoo", "nowhere"), ("nowhere", "no specimens", "build")),
    (("lab", "zoo", "table", "--subsets", "many"), ("--subsets", "'many'", "few")),
    (("lab", "zoo", "fit", "--subsets", "../x", "--out", "r.json"), ("--subsets", "'../x'", "several")),
    (("lab", "zoo", "build", "--zoo", "zoo", "--data", "mnist", "--splits", "fusion", "--limit", "1"), ("mnist",)),
], ids=lambda a: " ".join(a))
def test_lab_arguments(arguments, says, laocoon):
    ran = laocoon(*arguments)
    assert ran.code == 2, ran.text
    for word in says:
        assert any(option in ran.text for option in word.split("|")), ran.text
    assert not Path("r.json").exists()
