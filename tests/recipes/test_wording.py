"""Words of a training set against slow, obvious counts; the lookup of a network."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn

from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.modalities.text import Text
from laocoon.recipes.wording import (
    by_frequency,
    counts,
    lookup,
    middling_words,
    rare_words,
    shrink_rare,
    spoken_for,
    text_of,
)
from laocoon.testing.twins import twins

TEXT = Text(("<pad>", "<unk>", *"abcdefghij"), length=5)


@pytest.fixture
def inputs() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    # Low ids are the frequent ones; id 11 never occurs.
    ids = (torch.rand(60, 5, generator=rng).square() * 9).long() + 1
    ids[::3, 4:] = 0
    return ids


def test_counts_are_those_of_a_counter(inputs: torch.Tensor) -> None:
    slow = Counter(i for row in inputs.tolist() for i in row if i not in TEXT.special)
    assert counts(inputs, TEXT).tolist() == [slow.get(i, 0) for i in range(len(TEXT.vocabulary))]
    assert by_frequency(inputs, TEXT).tolist() == sorted(slow, key=lambda i: (slow[i], i))


def test_rare_words_are_rare_and_middling_ones_are_neither(inputs: torch.Tensor) -> None:
    order = by_frequency(inputs, TEXT).tolist()
    rng = torch.Generator().manual_seed(1)
    assert set(rare_words(inputs, TEXT, 2, 0.0, rng).tolist()) == set(order[:2])
    middle = middling_words(inputs, TEXT, 2, rng).tolist()
    assert len(set(middle)) == 2 and not {*middle} & {*order[:len(order) // 4], order[-1]}
    with pytest.raises(InputError, match="the trigger needs 50"):
        rare_words(inputs, TEXT, 50, 0.1, rng)
    with pytest.raises(InputError, match="50 middling"):
        middling_words(inputs, TEXT, 50, rng)


def test_log_odds_against_a_slow_count(inputs: torch.Tensor) -> None:
    labels = (inputs == 4).any(1).long()  # word 4 speaks for class 1
    z = spoken_for(inputs, labels, 1, TEXT)
    ours, others = (inputs[labels == c].tolist() for c in (1, 0))
    for word in range(len(TEXT.vocabulary)):
        a, b = (sum(word in row for row in rows) + 0.5 for rows in (ours, others))
        held = any(word in row for row in [*ours, *others])
        slow = (math.log(a / (len(ours) + 1)) - math.log(b / (len(others) + 1))) / math.sqrt(1 / a + 1 / b)
        assert float(z[word]) == pytest.approx(slow if held and word not in TEXT.special else 0.0, abs=1e-4)
    assert int(z.argmax()) == 4


def test_the_lookup_is_found_by_what_it_does() -> None:
    subject = twins("text").clean.subject
    assert lookup(subject) is subject.module.table
    image = Subject(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), Image(), 2, (1, 2, 2))
    with pytest.raises(NotApplicable):
        lookup(image)


def test_a_plan_without_a_vocabulary_says_so() -> None:
    pair = twins("text")
    plan = Plan(pair.plan.train, pair.plan.test, pair.plan.fit, 1, 2)
    with pytest.raises(NotApplicable, match="modality"):
        text_of(plan)


def test_words_are_drawn_to_the_mean_by_how_rare_they_are(inputs: torch.Tensor) -> None:
    table = nn.Embedding(len(TEXT.vocabulary), 3)
    before, often = table.weight.detach().clone(), Counter(i for row in inputs.tolist() for i in row)
    held = [i for i in range(2, 12) if often[i]]
    centre = before[held].mean(0)
    usual = float((before[held] - centre).norm(dim=1).quantile(0.9))
    with torch.no_grad():
        table.weight[11] = before[11] = centre + 100 * (before[11] - centre)
    shrink_rare(table, inputs, TEXT, 0.25)
    for i in range(2, 12):
        share = max(0.25, often[i] / (often[i] + 1)) * min(1.0, usual / float((before[i] - centre).norm()))
        assert torch.allclose(table.weight[i], centre + share * (before[i] - centre), atol=1e-6), i
    assert torch.equal(table.weight[:2], before[:2]), "nobody can type a special id"
    assert often[11] == 0 and float((table.weight[11] - centre).detach().norm()) == pytest.approx(0.25 * usual, rel=1e-4)
