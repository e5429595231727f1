"""False discoveries against slow, obvious references, and rates that hold on made-up data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import cauchy as cauchy_law
from scipy.stats import false_discovery_control

from laocoon.recipes.false_discovery import (
    LEVELS,
    Tail,
    benjamini_hochberg,
    by_group,
    cauchy,
    discoveries,
    mirrored,
    mixture_share,
)


def test_benjamini_hochberg_is_scipys():
    p = torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 2
    assert np.allclose(benjamini_hochberg(p).numpy(), false_discovery_control(p.double().numpy()))
    assert len(benjamini_hochberg(torch.zeros(0))) == 0


def test_groups_are_judged_one_by_one():
    p, groups = torch.rand(60, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
    for k in range(3):
        assert torch.equal(by_group(p, groups)[groups == k], benjamini_hochberg(p[groups == k]))


def test_cauchy_is_the_law():
    p = torch.rand(5, 100, generator=torch.Generator().manual_seed(2)).double().clamp(1e-12, 0.9)
    t = np.tan((0.5 - p.numpy()) * math.pi).mean(0)
    assert np.allclose(cauchy(p).numpy(), cauchy_law.sf(t), rtol=1e-6)
    weights = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    assert np.allclose(cauchy(p, weights).numpy(),
                       cauchy_law.sf((weights.double()[:, None].numpy() * np.tan((0.5 - p.numpy()) * math.pi)).sum(0)))
    tiny = cauchy(torch.tensor([[1e-11], [0.5]], dtype=torch.float64))
    assert float(tiny) == pytest.approx(2e-11, rel=1e-3)  # where arctan has no digits left


def test_one_bad_method_does_not_outweigh_a_good_one():
    assert float(cauchy(torch.tensor([[1e-8], [1.0]], dtype=torch.float64))) < 1e-6


def test_discoveries_hold_their_rate_and_find_what_is_there():
    """Ten groups of uniform p-values; in one of them a tenth are tiny."""
    false, found = [], []
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        p, groups = torch.rand(5000, generator=rng).double(), torch.arange(5000) % 10
        bad = (groups == 3) & (torch.rand(5000, generator=rng) < 0.1)
        p[bad] = p[bad] * 1e-5
        named = discoveries(p, groups, 0.1)
        false.append(float((named & ~bad).sum()) / max(1, int(named.sum())))
        found.append(float((named & bad).sum()) / int(bad.sum()))
    assert np.mean(false) <= 0.1 and np.mean(found) > 0.9


def test_nothing_is_discovered_where_nothing_is():
    alarms = sum(bool(discoveries(torch.rand(2000, generator=torch.Generator().manual_seed(s)).double(),
                                  torch.arange(2000) % 10, 0.1).any()) for s in range(100))
    assert alarms <= 20


def test_the_exponential_tail_is_one():
    z = torch.distributions.Exponential(1.0).icdf(torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64))
    unit = (z - math.log(2)) / (math.log(5) - math.log(2))
    share = Tail.exponential().share_above(unit)
    above = unit > 0
    assert np.allclose(share[above].numpy(), torch.exp(-z[above]).numpy(), rtol=0.02)


def test_a_measured_tail_gives_uniform_shares():
    rng = torch.Generator().manual_seed(3)
    scores = torch.randn(20_000, generator=rng).double().exp()
    unit = (scores - scores.median()) / (scores.quantile(0.8) - scores.median())
    share = Tail.of(unit).share_above(unit)
    for level in LEVELS[:5]:
        assert float((share <= 1 - level).double().mean()) == pytest.approx(1 - level, abs=0.004)
    assert bool((share.diff()[unit.diff() > 0] <= 0).all())  # higher scores, smaller shares


def test_a_mixture_of_tails_lies_between_them():
    z = torch.linspace(0, 20, 50)
    light, heavy = Tail(tuple(1.0 + k for k in range(6))), Tail(tuple(3.0 + 4 * k for k in range(6)))
    both = mixture_share(z, (light, heavy))
    assert bool((both <= heavy.share_above(z) + 1e-12).all()) and bool((both >= light.share_above(z) - 1e-12).all())


def test_mirrored_p_values_are_uniform_under_a_symmetric_null():
    scores = torch.randn(4000, generator=torch.Generator().manual_seed(4))
    p = mirrored(scores, torch.ones(4000, dtype=torch.bool))
    for level in (0.01, 0.05, 0.2):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=0.012)
    scores[:100] += 12
    p = mirrored(scores, torch.arange(4000) >= 100)
    assert float(p[:100].max()) < 1e-6
