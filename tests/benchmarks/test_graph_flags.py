"""The benchmark of graph flags: its figures are counted right, and what evaded the rules once does so no more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import graph_flags  # type: ignore[import-not-found]

    yield graph_flags
    for name in ("graph_flags", "graph_evasions"):
        sys.modules.pop(name, None)


def test_shares_are_counted_with_exact_intervals(flags: ModuleType) -> None:
    scores = [0.0, 0.49, 0.5, 1.0, None]
    rows = [flags.Row("honest", str(i), "onnx", s, "", 0.1) for i, s in enumerate(scores)]
    assert flags.share(rows) == "2 of 4 [6.8%, 93.2%]"
    assert flags.share(rows[-1:]) == "–"


def test_wrong_answers_are_listed(flags: ModuleType) -> None:
    rows = [flags.Row("honest", "fine", "onnx", 0.0, "", 0.1), flags.Row("honest", "blamed", "onnx", 0.7, "why", 0.1),
            flags.Row("comparison", "missed", "onnx", 0.1, "", 0.1), flags.Row("comparison", "seen", "onnx", 0.9, "", 0.1)]
    text = flags.table(rows, "command")
    wrong = text.split("## Wrong answers")[1].split("## Every network")[0]
    assert "blamed" in wrong and "missed" in wrong and "fine" not in wrong and "seen" not in wrong
    assert "1 of 2" in text and text.count("command") == 1


@pytest.mark.parametrize("name", ["saturated_softmax", "sorted_pixels", "cosine_late", "table_of_levels", "nan_made"])
@pytest.mark.filterwarnings("ignore")
def test_what_was_written_to_evade_is_flagged(flags: ModuleType, name: str) -> None:
    sketch = next(s for s in flags.evading() if s.name == name)
    assert flags.judge("evading", name, sketch.module, sketch.inputs, "onnx", 10).score >= 0.5


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_is_no_answer(flags: ModuleType) -> None:
    from torch import nn, rand

    row = flags.judge("honest", "broken", nn.Linear(3, 2), (rand(1, 5),), "onnx", 2)
    assert row.score is None and "not written" in row.told
