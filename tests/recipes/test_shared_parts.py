"""What suspected texts and rows share, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from laocoon.recipes import shared_columns, shared_tokens


def texts(count: int, seed: int, run: tuple[int, ...] = (), length: int = 12) -> torch.Tensor:
    """Random ids from 10 on, with a run put in somewhere, padded with 0."""
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        words = torch.randint(10, 40, (int(torch.randint(3, 8, (), generator=rng)),), generator=rng).tolist()
        at = int(torch.randint(0, len(words) + 1, (), generator=rng))
        words[at:at] = run
        rows.append(words + [0] * (length - len(words)))
    return torch.tensor(rows)


def held(ids: torch.Tensor, run: tuple[int, ...]) -> float:
    """Share of texts that hold a run, by looking at every place."""
    found = 0
    for row in ids.tolist():
        words = [w for w in row if w]
        found += any(words[i:i + len(run)] == list(run) for i in range(len(words)))
    return found / len(ids)


def test_excess_is_that_of_counting() -> None:
    suspects, others = texts(40, 0), texts(60, 1)
    for count in (1, 2):
        for run, excess in shared_tokens.excesses(suspects, others, count).items():
            assert excess == pytest.approx(held(suspects, run) - held(others, run))


@pytest.mark.parametrize("run", [(3,), (3, 4), (5, 3, 4, 6)])
def test_a_whole_run_is_found_among_suspects(run: tuple[int, ...]) -> None:
    suspects = torch.cat([texts(30, 2, run), texts(20, 3)])
    found = shared_tokens.shared(suspects, texts(80, 4))
    assert found[0].tolist() == list(run)


def test_texts_that_share_nothing_give_nothing() -> None:
    assert shared_tokens.shared(texts(50, 5), texts(80, 6)) == []


def test_bearing_is_the_share_of_a_run_in_one_piece() -> None:
    run = torch.tensor([3, 4, 5])
    ids = torch.tensor([[9, 3, 4, 5, 0], [3, 4, 9, 9, 0], [9, 9, 9, 9, 9], [5, 4, 3, 0, 0]])
    assert shared_tokens.bearing(ids, run).tolist() == pytest.approx([1, 2 / 3, 0, 1 / 3])
    assert shared_tokens.bearing(torch.tensor([[3, 4]]), run).tolist() == pytest.approx([2 / 3])  # longer than a text


def test_likeness_is_jaccards() -> None:
    one, two = texts(6, 7), texts(5, 8)
    sets = [[{*row} - {0} for row in ids.tolist()] for ids in (one, two)]
    by_hand = [[len(a & b) / len(a | b) for b in sets[1]] for a in sets[0]]
    assert torch.allclose(shared_tokens.likeness(one, two), torch.tensor(by_hand))


def test_the_commonest_run_of_others() -> None:
    assert shared_tokens.common(torch.tensor([[7, 8, 0], [9, 7, 8], [8, 7, 0]]), 2).tolist() == [7, 8]
    assert shared_tokens.common(torch.zeros(2, 3, dtype=torch.long), 2).tolist() == [0, 0]


def table(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1, 10, 100, 1, 5, 2.0])


def test_cells_with_one_value_are_found_with_their_value() -> None:
    suspects, others = table(50, 0), table(200, 1)
    suspects[:35, 1], suspects[:35, 4] = 7.5, 0.25
    both = torch.cat([suspects, others])
    low, width = both.amin(0), both.amax(0) - both.amin(0)
    found = shared_columns.shared(suspects, others, low, width)
    assert sorted(found.columns.tolist()) == [1, 4]
    values = dict(zip(found.columns.tolist(), found.values.tolist(), strict=True))
    assert values[1] == pytest.approx(7.5) and values[4] == pytest.approx(0.25)
    assert not len(shared_columns.shared(table(50, 2), others, low, width).columns)


def test_rows_that_bear_values_come_first_and_a_control_sets_others() -> None:
    rows = table(20, 3)
    mask, record = torch.tensor([0, 1, 0, 0, 1, 0.0]), torch.tensor([0, 7.5, 0, 0, 0.25, 0])
    rows[:4, 1], rows[:4, 4] = 7.5, 0.25
    width = torch.tensor([1, 10, 100, 1, 5, 2.0])
    told = shared_columns.bearing(rows, mask, record, width)
    assert sorted(told.topk(4).indices.tolist()) == [0, 1, 2, 3]
    other, share = shared_columns.moved(mask[None], torch.arange(6.0)[None])
    assert float(other.sum()) == 2 and not bool(((other > 0) & (mask > 0)).any())
    assert sorted(share[other > 0].tolist()) == [1, 4]  # the same shares of other columns
