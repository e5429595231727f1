"""Asking alone: margins, patches and their search, against slow and obvious ways."""

from __future__ import annotations

import pytest
import torch

from laocoon.core.card import Capability
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.asking import (
    Squares,
    answers,
    bystanders,
    changed,
    drawn,
    improved,
    mean_margins,
    pasted,
    screened,
    shuffled,
)
from laocoon.triggers.patch import Patch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quarters(torch.nn.Module):
    """Scores are the means of the picture's quarters: a white square in one of them wins."""

    def forward(self, x):
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        return 10 * torch.stack([x[..., :h, :w].mean((1, 2, 3)), x[..., :h, w:].mean((1, 2, 3)),
                                 x[..., h:, :w].mean((1, 2, 3)), x[..., h:, w:].mean((1, 2, 3))], 1)


def subject(labels: bool = False) -> Subject:
    offered = {Capability.QUERY, Capability.HARD_LABEL} if labels else {Capability.QUERY}
    return Subject(Quarters(), Image(), 4, (1, 8, 8), frozenset(offered))


def test_answers_are_logarithms_of_shares_or_labels_and_are_paid_for():
    x, ctx = torch.rand(10, 1, 8, 8, generator=rng()), Context(batch=4)
    said = answers(subject(), x, ctx)
    assert torch.allclose(said.exp().sum(1), torch.ones(10)) and ctx.spent == pytest.approx(10 / 3)
    one = answers(subject(labels=True), x, ctx)
    assert torch.equal(one.argmax(1), said.argmax(1)) and torch.equal(one.sum(1), torch.ones(10))
    with pytest.raises(BudgetSpent):
        answers(subject(), x, Context(budget=3))


def test_samples_are_shuffled_whatever_order_they_come_in():
    x = torch.rand(12, 1, 4, 4, generator=rng())
    samples, turned = Samples(x, torch.arange(12)), torch.randperm(12, generator=rng(1))
    one = shuffled(samples, rng(2))
    other = shuffled(Samples(x[turned], torch.arange(12)[turned]), rng(2))
    assert torch.equal(one.labels, other.labels) and torch.equal(one.inputs, x[one.labels])
    assert not torch.equal(one.labels, shuffled(samples, rng(3)).labels)


def test_bystanders_are_of_other_classes():
    samples = Samples(torch.zeros(6, 1, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert bystanders(samples, 4, 3).tolist() == [[2, 3, 4], [0, 1, 4], [0, 1, 2], [0, 1, 2]]
    assert bystanders(Samples(torch.zeros(2, 1, 2, 2), torch.tensor([1, 1])), 2, 3).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_a_patch_is_pasted_and_is_the_trigger_of_the_family():
    x = torch.rand(3, 2, 8, 9, generator=rng())
    squares = drawn(5, 3, x, rng(1))
    stamped = pasted(x, squares)
    for arm in range(5):
        slow = x.clone()
        top, left = squares.corner[arm].tolist()
        slow[:, :, top:top + 3, left:left + 3] = squares.content[arm]
        assert torch.equal(stamped[arm], slow)
    assert torch.allclose(stamped, Patch().stamp(x, squares.leaves(8, 9)))
    assert set(squares.content.unique().tolist()) == {0.0, 1.0}


def test_changes_stay_in_the_picture_and_are_the_same_for_all():
    x = torch.rand(2, 3, 7, 9, generator=rng())
    squares = drawn(4, 3, x, rng(1))
    same = Squares(squares.corner[:1].expand(4, 2), squares.content[:1].expand(4, 3, 3, 3))
    moved = recoloured = 0
    generator = rng(5)
    for step in range(200):
        trial = changed(same, 1 - step / 200, x, generator)
        assert trial.corner.min() >= 0 and (trial.corner + 3 <= torch.tensor([7, 9])).all()
        assert set(trial.content.unique().tolist()) <= {0.0, 1.0}
        assert (trial.corner == trial.corner[:1]).all() and (trial.content == trial.content[:1]).all()
        moved += not torch.equal(trial.corner, same.corner)
        recoloured += not torch.equal(trial.content, same.content)
    assert moved > 20 and recoloured > 50
    assert torch.equal(squares.content, drawn(4, 3, x, rng(1)).content)  # nothing was changed in place


def test_margins_by_a_loop():
    said = torch.randn(6, 4, generator=rng()) * 4
    arms = torch.tensor([1, 3])
    slow = torch.zeros(2)
    for a, target in enumerate(arms.tolist()):
        for row in said[a * 3:(a + 1) * 3]:
            other = max(float(v) for k, v in enumerate(row) if k != target)
            slow[a] += min(float(row[target]) - other, 2.0) / 3
    assert torch.allclose(mean_margins(said, arms, 2.0), slow)


def test_one_answer_screens_a_patch_for_all_classes():
    x, ctx = torch.rand(5, 1, 8, 8, generator=rng()), Context()
    samples, squares = Samples(x, torch.tensor([0, 1, 2, 3, 0])), drawn(3, 3, x, rng(1))
    ask = lambda batch: answers(subject(), batch, ctx)  # noqa: E731
    fast = screened(ask, squares, samples, 4, 12.0)
    assert ctx.spent == pytest.approx(15 / 3)
    for arm in range(3):
        for target in range(4):
            rows = samples.labels != target
            said = ask(pasted(x, squares)[arm][rows])
            assert fast[arm, target] == pytest.approx(float(mean_margins(said, torch.tensor([target]), 12.0)), abs=1e-5)


@pytest.mark.parametrize("labels", [False, True])
def test_the_search_reaches_every_class_and_never_falls(labels):
    x, ctx = torch.rand(8, 1, 8, 8, generator=rng()) * 0.2, Context()
    arms = torch.arange(4)
    ask = lambda batch: answers(subject(labels), batch, ctx)  # noqa: E731
    start = drawn(4, 3, x, rng(1))
    inputs = x.expand(4, *x.shape)
    before = mean_margins(ask(pasted(inputs, start).flatten(0, 1)), arms, 12.0)
    found, value = improved(ask, start, arms, inputs, 120, 12.0, rng(2))
    assert (value >= before).all() and (value > 0).all()
    assert torch.allclose(value, mean_margins(ask(pasted(inputs, found).flatten(0, 1)), arms, 12.0))
