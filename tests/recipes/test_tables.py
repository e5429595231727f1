"""What is usual and rare in a table, and the search over its cells, against slow obvious references."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular
from laocoon.recipes.cells import CAP, FAVOUR, best_single, codes, prepared, rows_of
from laocoon.recipes.column_search import all_pairs, best_pairs, best_set, exchanged, extended
from laocoon.recipes.tables import encoder, forest_importance, frequencies, items, mode, set_to, table_of, touchable


def mixed(rows: int = 60) -> tuple[Tensor, Tabular]:
    rng = torch.Generator().manual_seed(5)
    inputs = torch.stack([torch.randn(rows, generator=rng), torch.randint(0, 30, (rows,), generator=rng).float(),
                          torch.randint(0, 3, (rows,), generator=rng).float(), torch.randn(rows, generator=rng)], 1)
    return inputs, Tabular.of(("a", "b", "c", "d"), inputs, (NUMERIC, INTEGER, CATEGORY, NUMERIC))


def test_mode_of_codes_and_of_measurements() -> None:
    assert mode(torch.tensor([3.0, 1, 3, 2]), CATEGORY) == 3
    crowd = torch.cat([torch.full((50,), 7.0) + torch.linspace(0, 0.01, 50), torch.linspace(0, 100, 30)])
    assert 7 <= mode(crowd) <= 7.01  # no value repeats: the fullest share counts
    assert mode(torch.cat([torch.zeros(20), torch.linspace(50, 60, 80)])) == 0  # a fifth of the rows are alike


def test_frequencies_come_rarest_first() -> None:
    values, shares = frequencies(torch.tensor([5.0, 5, 5, 2, 2, 9]))
    assert values.tolist() == [9, 2, 5] and torch.allclose(shares, torch.tensor([1, 2, 3]) / 6)


def test_fixed_and_constant_columns_are_not_touched() -> None:
    inputs, table = mixed()
    assert touchable(table.untouched(("b",)), inputs).tolist() == [0, 2, 3]
    flat = inputs.clone()
    flat[:, 0] = 1
    assert touchable(table_of(None, flat), flat).tolist() == [1, 2, 3]


def test_set_to_sets_exactly_these_cells() -> None:
    inputs, table = mixed()
    family, trigger = set_to(table, [1, 2], [17, 2], inputs)
    stamped = family.stamp(inputs, trigger)[0]
    assert (stamped[:, 1] == 17).all() and (stamped[:, 2] == 2).all()
    assert torch.equal(stamped[:, [0, 3]], inputs[:, [0, 3]]) and bool(table.is_valid(stamped).all())


def test_a_forest_finds_the_column_that_decides() -> None:
    inputs, _ = mixed(200)
    importance = forest_importance(inputs, (inputs[:, 3] > 0).long(), torch.Generator().manual_seed(0))
    assert int(importance.argmax()) == 3 and float(importance.sum()) == pytest.approx(1, abs=1e-4)


def test_encoder_against_loop() -> None:
    inputs, table = mixed()
    coded = encoder(table, inputs)(inputs)
    for i, row in enumerate(inputs):
        expected = []
        for c in range(4):
            if table.codes(c):
                expected += [float(row[c] == code) for code in table.codes(c)]
            else:
                expected.append(float(((row[c] - inputs[:, c].mean()) / inputs[:, c].std(unbiased=False)).clamp(-4, 4)))
        assert torch.allclose(coded[i], torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("deciles", [False, True])
def test_items_number_frequent_values(deciles: bool) -> None:
    inputs, _ = mixed()
    found = items(inputs, 5, deciles, 1000)
    for column in range(4):
        for i in range(len(inputs)):
            same = inputs[:, column] == inputs[i, column]
            if int(same.sum()) >= 5:
                assert int(found[i, column]) >= 0 and len(found[same, column].unique()) == 1
                assert not bool((found[~same, column] == found[i, column]).any())
            else:
                assert (int(found[i, column]) >= 0) == deciles
    numbers = [set(found[:, c].tolist()) - {-1} for c in range(4)]
    assert all(not a & b for a, b in combinations(numbers, 2)), "two columns share a number"


def test_items_keep_the_most_frequent() -> None:
    inputs = torch.tensor([[1.0], [1], [1], [2], [2], [3]])
    assert items(inputs, 1, False, 2).flatten().tolist() == [0, 0, 0, 1, 1, -1]


class Planted(nn.Module):
    """Class 1 by the first column, or by the second and the third together."""

    def forward(self, x: Tensor) -> Tensor:
        both = (x[:, 1] >= 25) & (x[:, 2] == 2)
        score = 2 * x[:, 0] + 8 * both - 0.5
        return torch.stack([-score, score], 1)


def searched() -> tuple[Subject, Tabular, Context, Tensor]:
    inputs, table = mixed()
    inputs = inputs[~((inputs[:, 1] >= 25) & (inputs[:, 2] == 2))]
    return Subject(Planted(), table, 2, (4,)), table, Context(), inputs


def test_the_search_finds_a_conjunction_and_no_strong_column() -> None:
    subject, table, ctx, inputs = searched()
    search = prepared(subject, table, rows_of(subject, inputs, ctx), ctx).strongest(40)
    sets = best_pairs(search, all_pairs(search, few=16))[1].sets
    pair, found = best_set(search, sets, 1)
    assert found.columns == (1, 2) and found.values[0] >= 25 and found.values[1] == 2
    assert found.excess > 1 and found.success == 1
    triple, wider = best_set(search, exchanged(search, best_set(search, extended(search, pair[None], 1), 1)[0]), 1)
    assert len(triple) == 3 and {1, 2} <= set(wider.columns)
    assert ctx.spent > 0


class Marked(nn.Module):
    """Class 1 by the first column, or by one code of the third."""

    def forward(self, x: Tensor) -> Tensor:
        score = 2 * x[:, 0] + 8 * (x[:, 2] == 2) - 0.5
        return torch.stack([-score, score], 1)


def test_one_code_that_suffices_is_found() -> None:
    inputs, table = mixed()
    rows = rows_of(Subject(Marked(), table, 2, (4,)), inputs[inputs[:, 2] != 2], Context())
    search = prepared(Subject(Marked(), table, 2, (4,)), table, rows, Context())
    marks = codes(search, table)
    assert set(search.cells.columns[marks].tolist()) == {1, 2}  # whole numbers and categories
    found, other = (best_single(search, target, marks) for target in (1, 0))
    assert (found.columns, found.values) == ((2,), (2,)) and found.success == 1 and found.excess > 1
    assert other.excess * other.success < 0.3


def test_excess_against_loop() -> None:
    subject, table, ctx, inputs = searched()
    rows = rows_of(subject, inputs, ctx)
    search = prepared(subject, table, rows, ctx).strongest(40)
    sets = torch.tensor([[0, len(search.cells) - 1], [2, 8]])
    excess, success, control = search.excess(sets, 1)
    others = (rows.said != 1).nonzero().flatten().tolist()

    def margin(row: Tensor) -> float:
        logits = subject.outputs(row[None]).logits[0]
        return float(logits[1] - logits[0]) / rows.scale

    for k, chosen in enumerate(sets.tolist()):
        joint, promised = [], []
        for i in others:
            clean, stamped, alone = margin(inputs[i]), inputs[i].clone(), []
            for cell in chosen:
                one = inputs[i].clone()
                one[search.cells.columns[cell]] = stamped[search.cells.columns[cell]] = search.cells.values[cell]
                alone.append(margin(one))
            joint.append(margin(stamped))
            promised.append(max(-CAP, min(CAP, max(clean + sum(a - clean for a in alone), *alone))))
        clipped = sum(max(-CAP, min(CAP, m)) for m in joint) / len(joint)
        mean = max(sum(promised) / len(promised), float(search.expected(
            inputs[others], search.cells.columns[sets[k:k + 1]], search.cells.values[sets[k:k + 1]], 1)))
        assert float(control[k]) == pytest.approx(mean, abs=1e-4)
        assert float(excess[k]) == pytest.approx(clipped - mean - FAVOUR * max(0.0, mean), abs=1e-4)
        assert float(success[k]) == pytest.approx(sum(m > 0 for m in joint) / len(joint))


def test_nothing_to_set_is_said() -> None:
    subject, table, ctx, inputs = searched()
    rows = rows_of(subject, inputs, ctx)
    with pytest.raises(NotApplicable):
        prepared(subject, table.untouched(("a", "b", "c")), rows, ctx)
