"""Rows of a bench: measured once, resumed, merged, fitted into a reference that the scan reads, and tabled."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.methods import Attack
from laocoon.core.subject import Subject
from laocoon.detectors.model.text_inversion import TextInversion
from laocoon.lab.rows import Row, digest, fit, measure, measured, recorded
from laocoon.lab.rows_table import judged, table
from laocoon.lab.specimens import CLEAN, Made, Specification, Split
from laocoon.testing.twins import twins
from laocoon.triggers.tokens import Tokens
from laocoon.verdict.calibrate import Profile, calibrate, parse
from laocoon.verdict.fuse import contrasted
from laocoon.verdict.schedule import Schedule

RULE = "text_inversion.word"
QUICK = Schedule("deep", (TextInversion(steps=2, shortlist=2),), math.inf)


@dataclass
class Twofold:
    """The text twins, as a bench of two specimens a split. `made` are counted."""

    modality: str = "text"
    epochs: int = 20
    trained: list[Specification] = field(default_factory=list)

    core: tuple[str, ...] = ("word",)
    weights: Mapping[str, float] = field(default_factory=lambda: {RULE: 1.0})

    def attack(self, kind: str) -> Attack | None:
        return None

    def settings(self, specification: Specification) -> Mapping[str, Any]:
        return {"epochs": self.epochs}

    def specifications(self, split: Split) -> Iterator[Specification]:
        for seed, kind in enumerate((CLEAN, "word")):
            yield Specification("text", "reviews", "bag", kind, seed, split)

    def made(self, specification: Specification) -> Made:
        self.trained.append(specification)
        pair = twins("text")
        planted = specification.kind != CLEAN
        case = pair.planted if planted else pair.clean
        assert case.fit is not None
        return Made(specification, case.subject, case.fit, pair.plan.test, pair.plan.train,
                    pair.implant.poisoned, pair.implant.trigger if planted else None,
                    pair.success if planted else math.nan, pair.accuracy, pair.plan)

    def recovered(self, made: Made, candidate: Candidate) -> bool:
        assert made.trigger is not None and isinstance(made.trigger.family, Tokens)
        assert isinstance(candidate.family, Tokens)
        return torch.equal(candidate.family.tokens(candidate.trigger),
                           made.trigger.family.tokens(made.trigger.trigger))


def test_a_row_is_written_once_and_read_back(tmp_path: Path) -> None:
    bench = Twofold()
    rows = list(measure(bench, tmp_path, "fusion", QUICK))
    assert [row["kind"] for row in rows] == [CLEAN, "word"] and len(bench.trained) == 2
    assert RULE in rows[1]["table"] and rows[1]["targets"] == [1] and rows[1]["attack_success"] > 0.9
    assert "attack_success" not in rows[0]
    assert list(measure(bench, tmp_path, "fusion", QUICK)) == [] and len(bench.trained) == 2
    assert recorded(bench, tmp_path, "fusion", QUICK) == [r | {"table": contrasted(r["table"])} for r in rows]
    assert recorded(bench, tmp_path, "sealed", QUICK) == []


def test_other_settings_or_another_recipe_are_measured_anew(tmp_path: Path) -> None:
    bench = Twofold()
    list(measure(bench, tmp_path, "fusion", QUICK, limit=1))
    longer = Schedule("deep", (TextInversion(steps=3, shortlist=2),), math.inf)
    assert recorded(bench, tmp_path, "fusion", longer) == []
    assert len(list(measure(bench, tmp_path, "fusion", longer, limit=1))) == 1
    assert len(recorded(bench, tmp_path, "fusion", QUICK)) == 1, "the older row still stands for its settings"
    assert recorded(Twofold(epochs=5), tmp_path, "fusion", QUICK) == []


def test_half_a_line_is_measured_again(tmp_path: Path) -> None:
    bench = Twofold()
    list(measure(bench, tmp_path, "fusion", QUICK, limit=1))
    path = next(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text()[:40])
    assert recorded(bench, tmp_path, "fusion", QUICK) == []
    assert len(list(measure(bench, tmp_path, "fusion", QUICK, limit=1))) == 1
    assert len(recorded(bench, tmp_path, "fusion", QUICK)) == 1


def test_shares_divide_a_split(tmp_path: Path) -> None:
    parts = [list(measure(Twofold(), tmp_path, "fusion", QUICK, share=(k, 2))) for k in range(2)]
    assert [[row["kind"] for row in part] for part in parts] == [[CLEAN], ["word"]]
    assert len(recorded(Twofold(), tmp_path, "fusion", QUICK)) == 2


def test_the_row_holds_what_a_scan_would_find() -> None:
    whole = Schedule("deep", (TextInversion(),), math.inf)
    row = measured(Twofold(), next(s for s in Twofold().specifications("fusion") if s.kind == "word"), whole)
    assert max(range(2), key=lambda c: row["table"][RULE][c]) == 1
    assert any(c["part"] and c["targets"] == [1] for c in row["candidates"])


def made_up(split: Split, kind: str, number: int, bench: Twofold) -> Row:
    """A row of statistics near 1 for clean models, 5 for planted ones, whose target is class 0."""
    rng = torch.Generator().manual_seed(number + 1000 * len(split))
    usual = (1 + 0.2 * torch.randn(2, generator=rng)).tolist()
    specification = Specification("text", ("a", "b")[number % 2], ("bag", "gru")[number // 2 % 2], kind, number, split)
    row: Row = {**vars(specification), "digest": digest(bench, specification), "classes": 2, "per_class": 20,
                "accuracy": 0.9, "methods": {"text_inversion": "0"}, "seconds": {"text_inversion": 1.0}, "reasons": {},
                "spent": {}, "table": {RULE: usual}, "candidates": []}
    if kind != CLEAN:
        row |= {"table": {RULE: [5.0, usual[1]]}, "targets": [0], "attack_success": 0.5 if number == 3 else 1.0,
                "candidates": [{"method": "text_inversion", "rule": RULE, "targets": [k], "success": 0.9,
                                "part": k == 0, "shown": ""} for k in range(2)]}
    return row


@pytest.fixture
def rows() -> list[Row]:
    bench = Twofold()
    clean = [made_up(split, CLEAN, k, bench) for split in ("fusion", "calibration", "sealed") for k in range(40)]
    return [*clean, *(made_up(split, "word", k, bench) for split in ("fusion", "sealed") for k in range(8))]


def test_the_fitted_file_is_what_a_scan_reads(rows: list[Row]) -> None:
    reference = parse(fit(Twofold(), rows))
    assert len(reference.clean) == 40 and len(reference.planted) == 8 and reference.core == ("word",)
    assert {row.digest for row in reference.clean} == {r["digest"] for r in rows
                                                       if r["split"] == "calibration" and r["kind"] == CLEAN}
    planted = reference.restricted(reference.planted[0], frozenset({RULE}))
    p, _ = calibrate(planted, frozenset({RULE}), Profile("text", 2, 20.0, 0.9), reference, "text/deep")
    assert p == pytest.approx(1 / 41) and planted.target_classes[0] == 0


def test_sealed_rows_change_nothing_that_is_fitted(rows: list[Row]) -> None:
    without = [row for row in rows if row["split"] != "sealed"]
    assert fit(Twofold(), rows)[:1] == "{"
    a, b = (json.loads(fit(Twofold(), part)) for part in (rows, without))
    assert a["scales"] == b["scales"] and a["clean"] == b["clean"] and a["planted"] == b["planted"]


def test_the_table_counts_what_took_and_omits_no_kind(rows: list[Row]) -> None:
    never = [row | {"kind": "style", "attack_success": 0.1, "digest": row["digest"] + "x"}
             for row in rows if row["kind"] == "word"]
    page = table(Twofold(), [*rows, *never])
    assert "| word | 7 of 8 | 1.000" in page and "| style | 0 of 8 |" in page
    assert "| attack success under 90 %, all kinds | 9 of 9 |" in page
    assert "| all | 40 |" in page and "| gru | 20 |" in page and "| b | 20 |" in page


def test_judging_names_class_and_trigger(rows: list[Row]) -> None:
    found = [j for j in judged(Twofold(), rows, "sealed") if j.row["kind"] == "word"]
    assert len(found) == 8 and all(j.named and j.part and j.p <= 0.05 for j in found)
    wrong = [row | ({"targets": [1]} if row["kind"] == "word" else {}) for row in rows]
    assert not any(j.named for j in judged(Twofold(), wrong, "sealed") if j.row["kind"] == "word")


def test_the_text_bench_makes_the_same_specimen_twice() -> None:
    from laocoon.lab.text_bench import bench

    texts = bench(None)
    some = next(s for s in texts.specifications("fusion") if s.kind == "phrase" and s.architecture in ("bag", "textcnn"))
    first, again = texts.made(some), texts.made(some)
    assert isinstance(first.subject, Subject) and first.subject.fingerprint() == again.subject.fingerprint()
    assert first.success >= 0.9 and first.accuracy >= 0.9
    assert first.trigger is not None and texts.recovered(first, first.trigger)
    family = first.trigger.family
    assert isinstance(family, Tokens)
    other = replace(first.trigger, trigger=family.exactly(torch.full((1, family.count), 700)))
    assert not texts.recovered(first, other)


def test_the_splits_of_the_text_bench_share_no_model() -> None:
    from laocoon.lab.text_bench import bench

    texts = bench(None)
    seeds = [s.seed for split in ("fusion", "calibration", "sealed") for s in texts.specifications(split)]
    assert len(seeds) == len(set(seeds))
    sealed = list(texts.specifications("sealed"))
    assert sum(s.kind == CLEAN for s in sealed) == 200
    kinds = {s.kind for s in sealed}
    assert all(sum(s.kind == kind for s in sealed) >= 3 for kind in kinds)
