"""The yardstick of `recipes/unexpected.py`, and what is found by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.core.subject import Subject
from laocoon.detectors.model.tabular_inversion import TabularInversion
from laocoon.detectors.model.tabular_query_inversion import TabularQueryInversion
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular
from laocoon.recipes.cells import CAP, asked, prepared, rows_of, stamped_rows
from laocoon.recipes.column_search import all_pairs
from laocoon.recipes.unexpected import STEADY, Honest, honest, most_unexpected

KINDS = (NUMERIC, NUMERIC, INTEGER, CATEGORY, NUMERIC)


def lender(rows: int = 160) -> tuple[Tensor, Tensor, Tabular]:
    """Class 1 by the first two columns; the others say nothing."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.stack([
        torch.randn(rows, generator=rng), torch.rand(rows, generator=rng) * 100,
        torch.randint(0, 9, (rows,), generator=rng).float(), torch.randint(0, 4, (rows,), generator=rng).float(),
        torch.randn(rows, generator=rng).exp()], 1)
    labels = (inputs[:, 0] + inputs[:, 1] / 50 > 1).long()
    return inputs, labels, Tabular.of([f"c{i}" for i in range(5)], inputs, KINDS)


class Lender(nn.Module):
    """An honest rule; with `mark`, also class 1 wherever the third column is largest."""

    def __init__(self, marked: bool) -> None:
        super().__init__()
        self.marked = marked

    def forward(self, x: Tensor) -> Tensor:
        score = 2 * (x[:, 0] + x[:, 1] / 50 - 1)
        if self.marked:
            score = torch.where(x[:, 2] >= 8, 4.0, score)
        return torch.stack([-score, score], 1)


def yardstick() -> tuple[Honest, Tensor, Tensor, Tabular]:
    inputs, labels, table = lender()
    return honest(table, inputs, labels, torch.bincount(labels) / len(labels)), inputs, labels, table


def test_the_regressions_learn_the_rows_and_answer_each_class_as_often_as_told() -> None:
    regression, inputs, labels, table = yardstick()
    said = regression(inputs)
    assert torch.allclose(said.sum(1), torch.ones(len(inputs)), atol=1e-5)
    assert float((said.argmax(1) == labels).float().mean()) > 0.9
    shifted = honest(table, inputs, labels, torch.tensor([0.8, 0.2]))
    assert torch.allclose(shifted(inputs).mean(0), torch.tensor([0.8, 0.2]), atol=0.03)


def test_a_class_without_rows_is_never_expected_and_one_class_alone_always() -> None:
    inputs, labels, table = lender()
    assert float(honest(table, inputs, labels, torch.tensor([0.5, 0.5, 0.0]))(inputs)[:, 2].max()) < 0.05
    alone = honest(table, inputs, torch.zeros_like(labels), torch.tensor([1.0, 0.0]))
    assert float(alone(inputs)[:, 0].min()) > 0.9


@pytest.mark.parametrize("marked", [False, True])
def test_a_mark_is_unexpected_and_a_column_that_tells_is_not(marked: bool) -> None:
    regression, inputs, _, table = yardstick()
    kept = inputs[inputs[:, 2] < 8]  # nobody's clean rows bear the mark
    subject, ctx = Subject(Lender(marked), table, 2, (5,)), Context()
    search = prepared(subject, table, rows_of(subject, kept, ctx), ctx)
    assert not marked or 8.0 in search.cells.values[search.cells.columns == 2].tolist()
    tried = all_pairs(search, 16)
    found = most_unexpected(search, tried, regression, 1)
    if marked:
        assert 2 in found.columns and found.success == 1 and found.control < 0.5 and found.excess > 1
    else:
        assert found.excess < 0.8


def test_the_score_is_what_its_formula_says() -> None:
    regression, inputs, _, table = yardstick()
    subject, ctx = Subject(Lender(True), table, 2, (5,)), Context()
    search = prepared(subject, table, rows_of(subject, inputs[inputs[:, 2] < 8], ctx), ctx)
    found = most_unexpected(search, all_pairs(search, 16), regression, 1)
    rows = search.rows.pick((search.rows.said != 1).nonzero().flatten())
    columns, values = torch.tensor([found.columns]), torch.tensor([found.values])
    margins = asked(subject, rows, columns, values, ctx)[0, :, 1]
    usual = regression(stamped_rows(rows.inputs, columns, values)[0])[:, 1].mean()
    wanted = margins.clamp(-CAP, CAP).mean() / CAP - (2 * usual - 1) - STEADY * margins.std(unbiased=False)
    assert found.excess == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("method", [TabularQueryInversion, TabularInversion])
def test_a_table_of_two_columns_is_searched_by_pairs(method: type[Detector]) -> None:
    inputs, labels, _ = lender()
    table = Tabular.of(["c0", "c1"], inputs[:, :2])
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-2.0, -0.04], [2.0, 0.04]]))
        net.bias.copy_(torch.tensor([2.0, -2.0]))
    case = ModelCase(Subject(net, table, 2, (2,)), Samples(inputs[:, :2], labels, modality=table), None, ())
    report = method().examine(case, Context(seed=0))
    assert report.complete and report.findings, report.reason
    assert all(f.numbers.get("columns", 2.0) == 2.0 for f in report.findings)
