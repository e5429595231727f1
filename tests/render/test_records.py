"""A table's trigger in a report: a record before and after, with the changed cells marked."""

import io
from dataclasses import replace

import torch
from rich.console import Console

from laocoon.core.report import Evidence, Example
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular
from laocoon.render.html import to_html
from laocoon.render.sentences import coloured, sentences
from laocoon.verdict.examples import MOST_CELLS, cells

TABLE = Tabular(("income", "delays", "region"), (0, 0, 0), (9e5, 8, 1), (NUMERIC, INTEGER, CATEGORY), ((), (), (0, 1)),
                ((), (), ("north", "<south>")))


def test_changed_cells_are_marked_and_tell_what_stood_there():
    told = tuple(cells(TABLE, torch.tensor([1200.5, 0, 0]), torch.tensor([1200.5, 8, 1])))
    assert told == (("income 1200", False), (", ", False), ("delays 0 → 8", True), (", ", False), ("region north → <south>", True))


def test_of_wide_records_the_changed_cells_are_kept():
    wide = Tabular.unknown([f"c{i}" for i in range(60)])
    before = torch.zeros(60)
    after = before.clone()
    after[57] = 3
    told = list(cells(wide, before, after))
    assert ("c57 0 → 3", True) in told and told[-1] == (", …", False)
    assert sum(" " in text.strip(", …") for text, _ in told) == MOST_CELLS


def test_a_report_shows_records(suspicious):
    evidence = Evidence("class 1", (1,), "columns", "tabular_inversion", 2.0, "columns", 0.97, 0.9, 1.0, 40, 0.1, {}, "delays = 8, region = <south>")
    pieces = tuple(cells(TABLE, torch.tensor([1200.5, 0, 0]), torch.tensor([1200.5, 8, 1])))
    report = replace(suspicious, evidence=(evidence,), examples=(Example(0, pieces, 0, 1, 0),), candidates=(), pictures=None,
                     subject={**suspicious.subject, "modality": "tabular", "classes": 2, "input_shape": [3]})
    page = to_html(report)
    assert "held-out records with the trigger in place" in page
    assert "<mark>delays 0 → 8</mark>" in page and "<mark>region north → &lt;south&gt;</mark>" in page
    assert "<mark>delays = 8, region = &lt;south&gt;</mark>" in page
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(coloured(sentences(report, 0)[0]))
    assert "[delays 0 → 8], [region north → <south>]" in console.export_text()
