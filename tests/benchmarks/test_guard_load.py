"""The load test's comparison accuses a service that answers unchecked, unrecorded or otherwise than recorded."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def guard_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import guard_load  # type: ignore[import-not-found]

    yield guard_load
    sys.modules.pop("guard_load", None)


SEEN = {"sent": "a", "status": 200, "samples": 2, "request": "r", "decision": "passed,passed", "answered": True}
LINE = {"event": "request", "client_request": "a", "request": "r", "status": 200,
        "samples": [{"decision": "passed", "flagged": False}] * 2}
GONE = {"sent": "b", "status": 0, "samples": 1, "request": None, "decision": None, "answered": False}


def test_an_honest_service(guard_load: ModuleType) -> None:
    assert guard_load.compare([SEEN, GONE], {"a": LINE}) == {200: 1, 0: 1}
    blocked = {**SEEN, "status": 403, "answered": False, "decision": "blocked"}
    samples = [{"decision": "blocked", "flagged": True}, {"decision": "refused", "flagged": False}]
    assert guard_load.compare([blocked], {"a": {**LINE, "status": 403, "samples": samples}}) == {403: 1}


@pytest.mark.parametrize("change", [
    {"line": None}, {"decision": None}, {"decision": "passed"}, {"status": 500}, {"request": "other"}, {"samples": 3},
    {"line": {"samples": [{"decision": "passed", "flagged": True}] * 2}}, {"line": {"status": 403}},
    {"line": {"samples": [{"decision": "blocked", "flagged": False}] * 2}}, {"answered": False},
], ids=str)
def test_cheats(guard_load: ModuleType, change: dict[str, object]) -> None:
    change = copy.deepcopy(change)
    lines = {"a": {**LINE, **(change.pop("line", {}) or {})}} if change.get("line", 0) is not None else {}
    change.pop("line", None)
    with pytest.raises((AssertionError, KeyError)):
        guard_load.compare([{**SEEN, **change}], lines)


def test_a_line_cut_by_a_kill_is_counted_and_twice_is_too_often(guard_load: ModuleType, tmp_path: Path) -> None:
    path, text = tmp_path / "audit.jsonl", json.dumps(LINE)
    path.write_text(f'{text}\n{text[:20]}\n{{"event": "started"}}\n')
    assert guard_load.recorded(path) == ({"a": LINE}, 1)
    path.write_text(f"{text}\n{text}\n")
    with pytest.raises(AssertionError, match="two lines"):
        guard_load.recorded(path)
