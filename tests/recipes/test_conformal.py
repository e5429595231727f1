"""Conformal p-values and intervals against slow, obvious references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laocoon.recipes.conformal import binomial_interval, p_value, rank
from laocoon.recipes.ranking import auroc, cluster_bootstrap

numbers = st.lists(st.floats(-5, 5), min_size=1, max_size=30)


@given(st.floats(-5, 5), numbers)
def test_p_value_is_the_share_of_references_as_extreme(score, references):
    slow = (1 + len([r for r in references if r >= score])) / (len(references) + 1)
    assert p_value(score, references) == slow
    assert 1 / (len(references) + 1) <= p_value(score, references) <= 1


def test_false_alarms_hold_their_rate():
    rng = np.random.default_rng(0)
    alarms = [p_value(float(s), list(rng.normal(size=99))) <= 0.05 for s in rng.normal(size=2000)]
    assert abs(np.mean(alarms) - 0.05) < 0.015


def test_ties_count_against_the_subject():
    assert rank(1.0, [1.0, 1.0, 0.0]) == 3


@pytest.mark.parametrize(("found", "tried", "low", "high"), [(3, 5, 0.1466, 0.9473), (0, 10, 0.0, 0.3085)])
def test_interval_is_clopper_pearson(found, tried, low, high):
    assert binomial_interval(found, tried) == pytest.approx((low, high), abs=1e-3)


def test_interval_of_nothing_says_nothing():
    assert binomial_interval(0, 0) == (0.0, 1.0)


@given(numbers, numbers)
def test_auroc_counts_pairs(planted, clean):
    slow = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in planted for b in clean])
    assert auroc(planted, clean) == pytest.approx(slow)


def test_bootstrap_of_one_cluster_has_no_width_and_of_many_covers():
    items = [(k % 5, v) for k, v in enumerate(np.random.default_rng(0).normal(size=50))]
    mean = lambda part: float(np.mean([v for _, v in part]))  # noqa: E731
    assert cluster_bootstrap(items, lambda i: 0, mean, draws=50) == pytest.approx((mean(items), mean(items)))
    low, high = cluster_bootstrap(items, lambda i: i[0], mean, draws=300)
    assert low < mean(items) < high and math.isfinite(low)
