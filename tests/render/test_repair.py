"""What the report of a repair says in a terminal, as JSON and as a page, whatever stands in it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from io import StringIO

import jsonschema
import pytest
import torch
from rich.console import Console

from laocoon.core.candidate import Candidate
from laocoon.core.goal import all_to_one
from laocoon.core.repaired import (
    Check,
    Drop,
    Rate,
    Reactivation,
    RepairReport,
    Residue,
    Scanned,
    Status,
    Trial,
    TriggerChange,
)
from laocoon.render.repair_html import to_html
from laocoon.render.repair_json import schema, to_json
from laocoon.render.repair_terminal import show
from laocoon.triggers.patch import Patch

EVIL = "<script>alert(1)</script>\x1b[31m"


def rate(hits: int, tried: int) -> Rate:
    value = hits / tried if tried else math.nan
    return Rate(hits, tried, value, max(0.0, value - 0.1) if tried else 0.0, min(1.0, value + 0.1) if tried else 1.0)


@pytest.fixture
def report() -> RepairReport:
    trigger = Candidate(Patch(), {"mask": torch.zeros(1, 1, 8, 8), "pattern": torch.ones(1, 3, 8, 8)}, all_to_one(3, 10), 2.0,
                        1.0, "trigger_inversion")
    trigger.trigger["mask"][0, 0, :2, :2] = 1
    before, after = Residue(rate(98, 100), 2.0, 1.0, 14.0), Residue(rate(1, 100), 17.5, 0.9, 15.0)
    change = TriggerChange("class 3", (3,), "patch", EVIL, 2.0, "px", before, after, rate(2, 100), rate(0, 0))
    drop = Drop(0.011, -0.01, 0.03)
    trials = (Trial("pam", 1, "", {}, "", rate(97, 100), drop, (after,), 0.05, 10.0, 1.0, True),
              Trial("anp", 1, "", {}, f"anp failed: {EVIL}", None, None, (), None, 0.0, 0.1))
    return RepairReport(
        Status.REMOVED, f"class 3: gone {EVIL}", (Check("rescan", True, EVIL), Check("search", None, "x")), ("pam",),
        Scanned("SUSPICIOUS", EVIL, 0.01, 3.0, 0.05, (3,)), Scanned("NO_EVIDENCE", "none", 0.5, math.nan, 0.05, ()),
        (change,), (Reactivation("class 3", 5, rate(3, 100), rate(2, 100)),), rate(98, 100), rate(97, 100), drop, 0.02,
        trials, {"pam": EVIL}, {"path": EVIL, "sha256": "0" * 64, "class_names": [EVIL]},
        {"fit": 200, "choose": 100, "prove": 100, "seen": 0}, (EVIL,), "quick", 1e4, 12.0, 0, "0.1.0", f"laocoon {EVIL}",
        {"path": "out.onnx", "format": "onnx", "sha256": "1" * 64, "notes": [EVIL], "difference": 0.0},
        candidates=(trigger,), found_after=(None,), pictures=torch.rand(3, 3, 8, 8))


def told(report: RepairReport) -> str:
    page = StringIO()
    show(report, Console(file=page, width=100, force_terminal=False), written=["r.html"])
    return page.getvalue()


@pytest.mark.parametrize("status", list(Status))
def test_each_status_in_each_form(status: Status, report: RepairReport) -> None:
    report = replace(report, status=status)
    assert told(report).startswith(status.value.upper())
    jsonschema.validate(json.loads(to_json(report)), schema())
    assert f"{status.value}</h1>" in to_html(report)


def test_nothing_from_a_file_gets_through(report: RepairReport) -> None:
    page = to_html(report)
    assert "<script" not in page and "\x1b" not in page and "\x1b" not in told(report)
    assert "default-src 'none'" in page and not re.findall(r'(?:src|href)="(?!data:)', page)


def test_figures(report: RepairReport) -> None:
    text, page = told(report), to_html(report)
    for said in ("0.01 → 0.5", "re-activation with 5 poisoned samples", "written: out.onnx (onnx)", "pam: trigger 1", "−1.1"):
        assert said in text, said
    for said in ("98 % → 1 %", "17.5", "could not be judged", "chosen", "meaningless"):
        assert said in page.replace("\u202f", " ").replace("\u00a0", " "), said
    assert page.count("data:image/png;base64,") >= 3


def test_bare(report: RepairReport) -> None:
    """A report of nothing done."""
    bare = replace(report, status=Status.INCONCLUSIVE, checks=(), repairs=(), scan_after=None, triggers=(), reactivations=(),
                   trials=(), misses={}, written={}, candidates=(), found_after=(), pictures=None, notes=())
    assert "nothing was written" in told(bare) and "What was tried" not in to_html(bare)
    jsonschema.validate(json.loads(to_json(bare)), schema())


def test_every_field_is_described() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    hidden = {"mended", "candidates", "found_after", "pictures"}
    assert {f.name for f in fields(RepairReport)} - hidden <= set(schema()["properties"])
    for name, kind in (("rate", Rate), ("drop", Drop), ("check", Check), ("scanned", Scanned), ("residue", Residue),
                       ("trigger", TriggerChange), ("reactivation", Reactivation), ("trial", Trial)):
        assert {f.name for f in fields(kind)} == set(schema()["$defs"][name]["properties"])


def test_ease() -> None:
    assert Residue(rate(0, 1), 7.0, 1.0, 14.0).ease == 0.5 and Residue(rate(0, 1), 20.0, 1.0, 14.0).ease == 0.0
    assert Residue(rate(0, 1)).ease == 0.0, "nothing was searched"
