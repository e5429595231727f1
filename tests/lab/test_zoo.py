"""The zoo: disjoint splits, builds that resume, rows that are measured once, a reference that holds no sealed model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from laocoon.core.errors import InputError
from laocoon.detectors.model.mm_bd import MMBD
from laocoon.detectors.model.trigger_inversion import TriggerInversion
from laocoon.lab import reference, zoo
from laocoon.lab.datasets import load
from laocoon.lab.figures import judge, markdown
from laocoon.lab.training import MANNERS
from laocoon.verdict.calibrate import parse, shipped
from laocoon.verdict.schedule import Schedule

DATA = ("digits", "mnist", "gtsrb", "cifar10")
SPLITS = ("fusion", "calibration", "sealed")


def planned(split: str, data: tuple[str, ...] = DATA) -> dict[str, zoo.Specification]:
    return {s.digest: s for name in data for s in zoo.specifications(split, name)}


def test_splits_share_no_specification_and_no_seed() -> None:
    plans = {split: planned(split, (*DATA, *zoo.SUBSETS)) for split in SPLITS}
    for a, b in (("fusion", "calibration"), ("fusion", "sealed"), ("calibration", "sealed")):
        assert not plans[a].keys() & plans[b].keys()
        assert not {s.seed for s in plans[a].values()} & {s.seed for s in plans[b].values()}


def test_the_plan_is_as_large_as_promised() -> None:
    clean = {split: [s for s in planned(split).values() if s.kind == "clean"] for split in SPLITS}
    assert len(clean["calibration"]) >= 120 and len(clean["sealed"]) >= 200
    assert sum(s.data in ("gtsrb", "cifar10") for s in clean["sealed"]) >= 60
    assert {s.kind for s in planned("sealed").values()} == {"clean", *zoo.EVERY}


def test_the_shipped_reference_holds_no_sealed_model() -> None:
    ours = shipped()
    held = {row.digest for row in (*ours.clean, *ours.planted)}
    assert not held & planned("sealed").keys()
    assert not {row.digest for row in ours.clean} & {row.digest for row in ours.planted}
    assert len(ours.clean) >= 100 and all(row.kind == "clean" for row in ours.clean)
    assert set(ours.core) <= set(zoo.KINDS)


def test_specimens_grown_before_manners_were_told_keep_their_names() -> None:
    """A cache of before holds: the field counts only where it says something."""
    first = next(zoo.specifications("calibration", "cifar10"))
    assert first.digest == "d011ecc6434a6fe7"
    assert replace(first, manner="sgd").digest != first.digest


def test_varied_references_are_of_every_network_and_every_manner_and_of_calibration_alone() -> None:
    for split in SPLITS:
        for data in DATA:
            found = {(s.architecture, s.manner) for s in zoo.specifications(split, data) if s.seed % 100_000 >= 80_000}
            expected = {(a, m) for a in zoo.VARIED for m in MANNERS}
            assert found == (expected if split == "calibration" and data in zoo.VARIED_DATA else set())
    assert {reference.wired(a) for a in zoo.VARIED} == {"branching"}


def test_every_manner_trains_another_network(tmp_path: Path) -> None:
    digits = load("digits", None, tmp_path)
    weights = {}
    for manner in MANNERS:
        own = zoo.Specification("digits", "cnn", "clean", 5, "fusion", 600, 12, manner)
        module, facts, _ = zoo.trained(own, digits)
        assert facts["clean_accuracy"] > 0.5 and facts["specification"]["manner"] == manner
        weights[manner] = float(torch.cat([p.flatten() for p in module.parameters()]).norm())
    assert len({round(w, 4) for w in weights.values()}) == len(MANNERS)


@pytest.mark.parametrize(("name", "least"), [("few", 80), ("several", 40)])
def test_the_shipped_references_of_some_classes_hold_no_sealed_model(name: str, least: int) -> None:
    ours = shipped(f"image_{name}")
    held = {row.digest for row in (*ours.clean, *ours.planted)}
    assert len(ours.clean) >= least and held <= (planned("fusion", (name,)) | planned("calibration", (name,))).keys()
    assert {row.classes for row in (*ours.clean, *ours.planted)} == set(zoo.SUBSETS[name].counts)
    assert not held & {row.digest for row in (*shipped().clean, *shipped().planted)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("zoo")
    patch = pytest.MonkeyPatch()
    patch.setitem(zoo.RECIPES, "digits", (300, 2, 1, False))
    patch.setitem(zoo.LAYOUT, "digits", ("cnn",))
    for split, clean, planted in (("fusion", 8, 1), ("calibration", 8, 0), ("sealed", 2, 1)):
        patch.setitem(zoo.CLEAN_COUNT[split], "digits", clean)
        patch.setitem(zoo.PLANTED_COUNT[split], "digits", planted)
    patch.setattr(zoo, "KINDS", {"patch": zoo.KINDS["patch"]})
    zoo.grow(place, None, SPLITS, ("digits",))
    patch.undo()
    return place


def test_a_build_leaves_whole_marked_specimens(folder: Path) -> None:
    found = zoo.specimens(folder)
    assert len(found) == 20 and not list(folder.glob("*.part*"))
    for specimen in found:
        with safe_open(specimen.folder / "model.safetensors", "pt") as file:
            told = json.loads(file.metadata()["laocoon"])
        assert told["backdoored"] is (specimen.specification.kind != "clean")


def test_a_second_build_trains_only_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.RECIPES, "digits", (300, 2, 1, False))
    monkeypatch.setitem(zoo.LAYOUT, "digits", ("cnn",))
    monkeypatch.setitem(zoo.CLEAN_COUNT["calibration"], "digits", 8)
    lost = zoo.specimens(folder, "calibration")[3].folder
    weights = (lost / "model.safetensors").read_bytes()
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    assert zoo.grow(folder, None, ("calibration",), ("digits",)) == 1
    assert len((lost / "model.safetensors").read_bytes()) == len(weights)


def test_rows_are_measured_once_and_make_a_reference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = Schedule("deep", (MMBD(restarts=2, steps=3),), float("inf"))
    for split in SPLITS:
        first = [row for _, row in reference.measure(folder, None, split, cheap)]
        stamps = {p: p.stat().st_mtime_ns for p in folder.glob("*/row-*.json")}
        assert [row for _, row in reference.measure(folder, None, split, cheap)] == first
        assert {p: p.stat().st_mtime_ns for p in folder.glob("*/row-*.json")} == stamps
    monkeypatch.setattr(reference, "plan", lambda *_: cheap)
    monkeypatch.setattr("laocoon.lab.figures.plan", lambda *_: cheap)
    fitted = parse(reference.fit_reference(folder))
    assert len(fitted.clean) == 8 and len(fitted.planted) == 1 and set(fitted.scales) == {"mm_bd.margin"}
    assert all(row.table["known.normalised"] == [0.0] for row in fitted.clean)  # plain networks
    same = {**json.loads(reference.fit_reference(folder))["planted"][0], "attack_success": 0.5}
    kept = parse(reference.fit_reference(folder, earlier=[same, {**same, "digest": "elsewhere"}]))
    assert [(row.digest, row.attack_success) for row in kept.planted] == [
        (fitted.planted[0].digest, fitted.planted[0].attack_success), ("elsewhere", 0.5)]
    assert kept.scales == fitted.scales and kept.provenance["kept"] == 1
    judged = judge(folder, "sealed", False, fitted)
    assert len(judged) == 3 and all(0 < j.p <= 1 for j in judged)
    page = markdown(folder, "sealed", False)
    assert "false alarms" in page and "the rest was not measured" in page


@pytest.mark.parametrize("name", ["few", "several"])
def test_models_of_some_classes_have_a_reference_of_their_own(name: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zoo.SUBSETS[name]
    monkeypatch.setitem(zoo.RECIPES, "digits", (300, 2, 1, False))
    monkeypatch.setattr(zoo, "SUBSETS_OF", ("digits",))
    monkeypatch.setattr(zoo, "SUBSETS_KINDS", ("patch",))
    monkeypatch.setattr(zoo, "CONVOLUTIONAL", ("cnn",))
    clean, planted = (dict(zip(SPLITS, counts, strict=True)) for counts in ((8, 3, 2), (1, 0, 1)))
    monkeypatch.setitem(zoo.SUBSETS, name, replace(whole, clean=clean, planted=planted))
    assert zoo.grow(tmp_path, None, SPLITS, (name,)) == 15
    assert all(s.specification.plan == name and s.specification.source == "digits" for s in zoo.specimens(tmp_path))
    cheap = Schedule("deep", (TriggerInversion(families=("patch",), steps=3, batch=4),), float("inf"))
    for split in SPLITS:
        assert len(list(reference.measure(tmp_path, None, split, cheap, only=(name,)))) == len(
            zoo.specimens(tmp_path, split))
        assert not list(reference.measure(tmp_path, None, split, cheap, only=("digits",)))
    monkeypatch.setattr(reference, "plan", lambda *_: cheap)
    monkeypatch.setattr("laocoon.lab.figures.plan", lambda *_: cheap)
    assert not parse(reference.fit_reference(tmp_path)).clean
    fitted = parse(reference.fit_reference(tmp_path, subsets=name))
    assert len(fitted.clean) == 3 and len(fitted.planted) == 1
    assert {r.classes for r in fitted.clean} <= set(whole.counts)
    assert {row.data for row in fitted.clean} == {"digits"} and {row.group for row in fitted.clean} == {"grey"}
    assert not judge(tmp_path, "sealed", False, fitted)
    assert len(judge(tmp_path, "sealed", False, fitted, subsets=name)) == 3
    page = markdown(tmp_path, "sealed", False, subsets=name)
    assert whole.words in page and f"--subsets {name}" in page
    assert "2 of 2 clean models and 1 of 1 planted ones." in page


@pytest.mark.parametrize("some", ["3", "3,3", "3,10", "a,b", "3,-1"])
def test_classes_that_a_data_set_lacks_are_refused(some: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="digits"):
        load(f"digits:{some}", None, tmp_path)


def test_some_classes_of_a_data_set_are_numbered_as_they_are_named(tmp_path: Path) -> None:
    whole, some = load("digits", None, tmp_path), load("digits:7,2", None, tmp_path)
    assert some.classes == 2 and some.name == "digits:7,2"
    for labels, inputs, all_labels, all_inputs in (
            (some.train_labels, some.train_inputs, whole.train_labels, whole.train_inputs),
            (some.test_labels, some.test_inputs, whole.test_labels, whole.test_inputs)):
        for number, label in enumerate((7, 2)):
            assert torch.equal(inputs[labels == number], all_inputs[all_labels == label])
