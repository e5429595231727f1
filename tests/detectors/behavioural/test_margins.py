"""Margins and masks against slow and obvious references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, NotApplicable
from laocoon.recipes.decoupling import SmallGenerator, decoupling_mask
from laocoon.recipes.margins import (
    Look,
    climb_margins,
    log_ratio_to_rest,
    log_to_rest,
    logit_scale_of,
    margin_towards,
    margins,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_margins_by_hand() -> None:
    logits = random(6, 4)
    table = margins(logits)
    for i in range(6):
        for t in range(4):
            others = [float(logits[i, k]) for k in range(4) if k != t]
            assert float(table[i, t]) == pytest.approx(float(logits[i, t]) - max(others))
    assert torch.equal(margin_towards(logits, torch.tensor([2] * 6)), table[:, 2])


@pytest.mark.parametrize("classes", [2, 3, 10, 43])
def test_rest_by_hand_and_free_of_scale(classes: int) -> None:
    values = random(classes).abs() + 0.1
    scores = log_ratio_to_rest(values)
    for t in range(classes):
        rest = sorted(math.log(float(v)) for i, v in enumerate(values) if i != t)
        middle = (rest[(len(rest) - 1) // 2] + rest[len(rest) // 2]) / 2
        assert float(scores[t]) == pytest.approx(math.log(float(values[t])) - middle, abs=1e-5)
    assert torch.allclose(log_ratio_to_rest(values * 1000), scores, atol=1e-4)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(log_ratio_to_rest(values[order]), scores[order], atol=1e-5)


def test_rest_stays_finite() -> None:
    assert torch.isfinite(log_ratio_to_rest(torch.tensor([0.0, -1.0, float("nan"), 5.0]))).all()
    assert torch.isfinite(log_ratio_to_rest(torch.zeros(5))).all()
    assert len(log_to_rest(random(1000))) == 1000


def test_climb_finds_the_corner_of_a_linear_model() -> None:
    weight = random(3, 12)
    starts = torch.rand(6, 12, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    found = climb_margins(lambda x: Look(x @ weight.T), starts, targets, Context(), steps=200, rate=0.1).best
    for t in range(3):  # the margin is concave: the best corner by going through all of them
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12)
        best = margin_towards(corners @ weight.T, torch.full((len(corners),), t)).max()
        assert float(found[targets == t].max()) >= 0.95 * float(best)
    scaled = climb_margins(lambda x: Look(50 * x @ weight.T), starts, targets, Context(), steps=200, rate=0.1).best
    assert torch.allclose(scaled, 50 * found, rtol=1e-2)


def test_climb_counts_and_stops() -> None:
    ctx = Context(budget=100)
    with pytest.raises(BudgetSpent):
        climb_margins(lambda x: Look(x), torch.rand(8, 5), torch.zeros(8, dtype=torch.long), ctx, steps=50, rate=0.1)
    assert ctx.spent == 96
    ctx = Context()
    climb_margins(lambda x: Look(x * 0 + torch.eye(5)[:1]), torch.rand(8, 5), torch.zeros(8, dtype=torch.long), ctx,
                  steps=500, rate=0.1)
    assert ctx.spent < 8 * 50, "nothing was gained, and it went on"


def test_scale_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(NotApplicable, match="not finite"):
        logit_scale_of(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long))
    with pytest.raises(NotApplicable, match="does not tell its classes apart"):
        logit_scale_of(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))


def test_mask_keeps_what_the_head_needs() -> None:
    labels = torch.arange(60) % 3
    features = torch.cat([torch.eye(3)[labels] * 3, random(60, 5).abs()], 1)
    head = nn.Linear(8, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.cat([torch.eye(3) * 2, torch.zeros(3, 5)], 1))
    mask = decoupling_mask(head, features, labels)[0]
    assert mask[:3].min() > 0.8
    assert mask[3:].max() < 0.3


def test_generator_is_bounded_and_repeats() -> None:
    x = torch.rand(3, 1, 9, 11, generator=torch.Generator().manual_seed(4))
    nets = [SmallGenerator(1, 8, 0.1, torch.Generator().manual_seed(5)) for _ in range(2)]
    with torch.no_grad():
        for parameter in (*nets[0].parameters(), *nets[1].parameters()):
            parameter.mul_(30)
        first, second = (net(x) for net in nets)
    assert torch.equal(first, second)
    assert first.shape == x.shape and float((first - x).abs().max()) <= 0.1 + 1e-6
    assert float(first.min()) >= 0 and float(first.max()) <= 1
