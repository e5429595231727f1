"""Arguments that cannot be used: exit code 2 and the flag, the value and the remedy, before any work is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def model(place, colours):
    return colours(place.inputs / "colours.onnx")


@pytest.fixture
def data(place):
    images = np.random.default_rng(0).integers(0, 100, (30, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(30) % 3
    images[np.arange(30), :, :, labels] += 120
    np.savez(place.inputs / "clean.npz", images=images, labels=labels)
    return place.inputs / "clean.npz"


@dataclass(frozen=True)
class Case:
    """`neighbour`: the same option with a value that can be used."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]
    neighbour: tuple[str, ...]


CASES = (
    Case(("--alpha", "0"), ("--alpha is 0.0", "between 0 and 1"), ("--alpha", "0.01")),
    Case(("--alpha", "2"), ("--alpha is 2.0", "between 0 and 1"), ("--alpha", "0.5")),
    Case(("--alpha", "nan"), ("--alpha is nan", "between 0 and 1"), ("--alpha", "1e-1")),
    Case(("--alpha=-0.1",), ("--alpha is -0.1", "between 0 and 1"), ("--alpha", ".1")),
    Case(("--alpha", "small"), ("--alpha", "'small' is not a number"), ("--alpha", "0.05")),
    Case(("--budget", "banana"), ("'banana'", "quick, default, deep"), ("--budget", "quick")),
    Case(("--budget=-3",), ("'-3.0'|'-3'", "at least 1"), ("--budget", "3")),
    Case(("--budget", "inf"), ("'inf'", "at least 1"), ("--budget", "1000")),
    Case(("--budget", "nan"), ("'nan'", "at least 1"), ("--budget", "1e3")),
    Case(("--methods", "weight_sanitty"), ("'weight_sanitty'", "Did you mean weight_sanity"), ("--methods", "trodo")),
    Case(("--methods", "a,,b"), ("'a'", "Methods: "), ("--methods", "trodo,,mm_bd")),
    Case(("--methods", "../../evil"), ("'../../evil'", "Methods: "), ("--methods=-trodo",)),
    Case(("--methods", "weight_sanity,-weight_sanity"), ("no method is left",), ("--methods", "weight_sanity,-trodo")),
    Case(("--seed", "seven"), ("--seed", "'seven' is not a whole number"), ("--seed", "7")),
    Case(("--seed=-1",), ("--seed is -1", "from 0"), ("--seed", "0")),
    Case(("--seed", str(2**70)), ("--seed is 118", "2^63"), ("--seed", str(2**62))),
    Case(("--device", "cuda:99"), ("cuda:99", "Use "), ("--device", "cpu")),
    Case(("--device", "abacus"), ("abacus", "cpu, cuda"), ("--device", "cpu:0")),
    Case(("--power=-1",), ("--power is -1", "0 for none"), ("--power", "0")),
    Case(("--power", "many"), ("--power", "'many' is not a whole number"), ("--power", "0")),
    Case(("--samples-per-class", "0"), ("--samples-per-class is 0", "at least 1"), ("--samples-per-class", "1")),
    Case(("--samples-per-class", "x"), ("--samples-per-class", "'x' is not a whole"), ("--samples-per-class", "1000000")),
    Case(("--size", "big"), ("--size is 'big'", "HEIGHTxWIDTH"), ("--size", "8x8")),
    Case(("--size", "0x8"), ("size is (0, 8)", "height and a width"), ("--size", "8")),
    Case(("--size", "99999999x9"), ("99999999", "height and a width"), ("--size", "8,8")),
    Case(("--size", "9x9"), ("8 x 8, not 9 x 9", "Drop"), ("--size", "8×8")),
    Case(("--mean", "a,b"), ("--mean is 'a,b'", "A,B"), ("--mean", "0,0,0")),
    Case(("--mean", "0,0"), ("mean is (0.0, 0.0)", "each channel"), ("--mean", "0")),
    Case(("--std", "0"), ("std is (0.0,)", "above 0"), ("--std", "1")),
    Case(("--std", "nan"), ("std is (nan,)", "finite"), ("--std", "1,1,1")),
    Case(("--input-range", "0-7"), ("input_range is '0-7'", "0-255"), ("--input-range", "0-1")),
    Case(("--layout", "CHWN"), ("layout is 'CHWN'", "NHWC"), ("--layout", "NCHW")),
    Case(("--channels", "CMYK"), ("channels is 'CMYK'", "BGR"), ("--channels", "RGB")),
    Case(("--image-channels", "2"), ("image_channels is 2", "1, 3, 4"), ("--image-channels", "3")),
    Case(("--image-channels", "1"), ("takes 3 channels, not 1", "Drop"), ("--image-channels", "3")),
    Case(("--classes", "7"), ("each of 7 classes", "'scores' [3]", "Drop"), ("--classes", "3")),
    Case(("--output", "nowhere"), ("no output 'nowhere'", "scores"), ("--output", "scores")),
    Case(("--output", "9"), ("no output 9|no output '9'", "scores"), ("--output", "0")),
    Case(("--activation", "magic"), ("activation is 'magic'", "softmax"), ("--activation", "logits")),
    Case(("--data-range", "0-7"), ("--data-range is '0-7'", "0-65535"), ("--data-range", "0-255")),
    Case(("--image-key", "nothing"), ("no array 'nothing'", "images, labels"), ("--image-key", "images")),
    Case(("--label-key", "nothing"), ("no array 'nothing'", "images, labels"), ("--label-key", "labels")),
    Case(("--teleport",), ("--teleport",), ("--html", "none")),
    Case(("--html", "missing/report.html"), ("missing/report.html", "does not exist", "Make it"), ("--html", "r.html")),
    Case(("--json", "."), ("--json .", "is a folder", "file name"), ("--json", "r.json")),
    Case(("--sarif", ""), ("--sarif is ''", "file name"), ("--sarif", "r.sarif")),
    Case(("--json", "-", "--sarif", "-"), ("two reports", "standard output"), ("--json", "-", "--sarif", "r.sarif")),
    Case(("--json", "same", "--sarif", "./same"), ("two reports", "same file"), ("--json", "one", "--sarif", "two")),
    Case(("--baseline", "missing.toml"), ("missing.toml", "cannot be read", "Check the path"), ("--html", "none")),
)


def said(words: tuple[str, ...], text: str) -> list[str]:
    """The words that are missing; a | stands between wordings of which one will do."""
    return [w for w in words if not any(option in text for option in w.split("|"))]


@pytest.mark.parametrize("case", CASES, ids=lambda c: " ".join(c.arguments))
def test_hostile(case, place, refused, model, data):
    ran = refused(model, "--data", data, *case.arguments)
    assert not said(case.says, ran.text), ran.text
    assert not list(place.out.iterdir()), "a refused command leaves nothing"
    assert ran.seconds < 10


@pytest.mark.parametrize("neighbour", dict.fromkeys(c.neighbour for c in CASES), ids=" ".join)
def test_benign_neighbour(neighbour, place, laocoon, model, data):
    narrow = () if any("--methods" in n for n in neighbour) else ("--methods", "weight_sanity")
    narrow += () if "--html" in neighbour else ("--html", "none")
    ran = laocoon("scan", model, "--data", data, *neighbour, *narrow)
    assert ran.code == 3 and "error" not in ran.err, ran.text
    written = [n for n in neighbour if n.startswith(("r.", "one", "two"))]
    assert sorted(p.name for p in place.out.iterdir()) == sorted(written)


def test_device_that_is_not_there(refused, model, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(model, "--device", "cuda", says=("'cuda'", "no CUDA device", "--device cpu"))


def test_power_without_samples(refused, model):
    refused(model, "--power", "3", says=("--power needs clean samples", "--data"))


def test_report_over_the_model(place, refused, model, data):
    refused(model, "--json", str(model), says=("--json", "would overwrite what is to be scanned", "another file"))
    refused(model, "--data", data, "--html", str(data), says=("--html", "would overwrite"))
    (place.out / "link").symlink_to(model)
    refused(model, "--sarif", "link", says=("--sarif", "would overwrite"))


def test_report_of_somebody_else_stays(place, laocoon, model):
    (place.out / "report.html").write_text("my thesis")
    assert laocoon("scan", model, "--methods", "weight_sanity").code == 3
    assert (place.out / "report.html").read_text() == "my thesis"
    assert "Laocoon" in (place.out / "report-1.html").read_text()


def test_report_where_nothing_can_be_written(refused, model, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("laocoon.cli.outputs.tempfile.TemporaryFile", refuse)
    refused(model, "--json", "r.json", says=("r.json", "cannot be written (Permission denied)", "another place"))


def test_full_disk(refused, model, monkeypatch):
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    refused(model, "--json", "r.json", says=("r.json", "1000 bytes are free", "make room"))


# ---------------------------------------------------------------- baselines
GOOD = {"fingerprint": "0" * 32, "owner": "Ada", "reason": "a false alarm", "expires": "2999-01-31"}


def listing(**change: object) -> str:
    return json.dumps({"accepted": [{k: v for k, v in {**GOOD, **change}.items() if v is not None}]})


BASELINES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "no syntax": ("accepted = [", ("neither TOML nor JSON", "fingerprint, owner")),
    "bytes": (b"\xff\xfe\x00", ("neither TOML nor JSON",)),
    "deep": ('{"accepted":' + "[" * 100_000, ("neither TOML nor JSON",)),
    "a list": ("[1, 2]", ("accepted.json",)),
    "no list": ('{"accepted": 3}', ('no list "accepted"',)),
    "another key": ('{"accepted": [], "all": true}', ('no list "accepted", or more',)),
    "not an entry": ('{"accepted": [7]}', ("entry 1", "int")),
    "nobody's": (listing(owner=None), ("entry 1", "no owner")),
    "blank owner": (listing(owner=" "), ("entry 1", "no owner")),
    "no reason": (listing(reason=None), ("entry 1", "no reason")),
    "for ever": (listing(expires=None), ("entry 1", "no expires")),
    "no day": (listing(expires="2027-02-31"), ("entry 1", "2027-02-31", "2027-01-31")),
    "wildcard": (listing(fingerprint="*"), ("entry 1", "'*'", "32 hexadecimal digits")),
    "unknown field": (listing(verdict="NO_EVIDENCE"), ("entry 1", "'verdict'")),
    "large": ('{"accepted": []}' + " " * 2**20, ("more than 1048576 bytes",)),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baseline(name, place, refused, model):
    text, says = BASELINES[name]
    path = place.inputs / "accepted.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(model, "--baseline", path, says=says)


def test_benign_baseline(place, laocoon, model):
    path = place.inputs / "accepted.json"
    path.write_text(listing())
    assert laocoon("scan", model, "--methods", "weight_sanity", "--baseline", path).code == 3
    path = place.inputs / "accepted.toml"
    path.write_text(f"[[accepted]]\nfingerprint = '{'0' * 32}'\nowner = 'Ada'\nreason = 'x'\nexpires = 2999-01-31\n")
    assert laocoon("scan", model, "--methods", "weight_sanity", "--baseline", path).code == 3


# ---------------------------------------------------------------- a folder to resume from
def other_scan(place: Path) -> None:
    (place / "scan.json").write_text('{"subject": "another", "seed": 0, "version": "0"}')


def damaged_marker(place: Path) -> None:
    (place / "scan.json").write_text("{")


def damaged_report(place: Path) -> None:
    (place / "weight_sanity.json").write_text('{"method": "weight_sanity"')


def foreign_report(place: Path) -> None:
    (place / "weight_sanity.json").write_text('{"findings": [], "examined": [], "skipped": [], "__class__": "os"}')


def truncated_candidates(place: Path) -> None:
    (place / "weight_sanity.safetensors").write_bytes(b"\xff" * 12)


def deep_report(place: Path) -> None:
    (place / "weight_sanity.json").write_text("[" * 100_000)


@pytest.mark.parametrize("change", [other_scan, damaged_marker, damaged_report, foreign_report, truncated_candidates,
                                    deep_report], ids=lambda c: c.__name__)
def test_resume_from_what_is_not_ours(change: Callable[[Path], None], place, laocoon, refused, model):
    arguments = (model, "--methods", "weight_sanity", "--html", "none", "--resume", "kept")
    assert laocoon("scan", *arguments).code == 3
    assert laocoon("scan", *arguments).code == 3  # the benign neighbour: what is there is taken
    change(place.out / "kept")
    refused(*arguments, says=("kept" if "scan" in change.__name__ or "marker" in change.__name__ else "weight_sanity",
                              "resume folder"))


def test_resume_with_another_seed_or_model(place, laocoon, refused, model, colours):
    arguments = ("--methods", "weight_sanity", "--html", "none", "--resume", "kept")
    assert laocoon("scan", model, *arguments).code == 3
    refused(model, *arguments, "--seed", "5", says=("kept", "another scan", "empty folder"))
    refused(colours(place.inputs / "other.onnx", classes=5), *arguments, says=("kept", "another scan"))
    (place.out / "file").write_text("")
    refused(model, "--resume", "file", says=("--resume file", "is a file"))


def test_no_such_command(laocoon):
    ran = laocoon("scna", "x")
    assert ran.code == 2 and "scna" in ran.text
    ran = laocoon("scan")
    assert ran.code == 2 and "MODEL" in ran.text.upper()


def test_path_with_a_null_byte(refused):
    refused("a\0b", says=("not a path",))
    refused("", says=("not a path",))


def test_name_that_is_too_long(refused, model):
    refused("x" * 5000, says=("cannot be read", "Check the path"))
    refused(model, "--data", "y" * 5000, says=("cannot be read",))
    refused(model, "--html", "z" * 300, says=("--html", "cannot be written"))
    assert os.listdir() == []
