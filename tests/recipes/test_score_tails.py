"""Figures of a data set's scores: each rises where its kind of evidence is put in, and none depends on the scale."""

from __future__ import annotations

import pytest
import torch

from laocoon.recipes.score_tails import agreement, coherence, concentration, gap, standardised, tail


def draw(n: int = 3000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()


def test_scale_and_place_do_not_matter():
    s = draw()
    assert torch.allclose(standardised(s), standardised(7 * s - 3), atol=1e-6)
    z = standardised(s)
    assert float(z.median()) == pytest.approx(0, abs=1e-3) and float(z.quantile(0.8)) == pytest.approx(1, abs=1e-3)


def test_equal_scores_are_no_evidence():
    z = standardised(torch.full((500,), 3.0))
    assert float(z.abs().max()) == 0 and gap(z) == 0 and tail(z) == 0


def test_a_second_hump_is_seen():
    clean = draw()
    poisoned = clean.clone()
    poisoned[:150] += 8
    assert gap(standardised(poisoned)) > gap(standardised(clean)) + 0.5
    assert tail(standardised(poisoned)) > tail(standardised(clean)) + 0.3


def gap_slowly(z: torch.Tensor) -> float:
    x = sorted(torch.asinh(z).tolist())
    n, best = len(x), 0.0
    for cut in range(n // 2 + 1, n - max(5, -(-n // 200)) + 1):
        low, high = x[:cut], x[cut:]
        a, b = (sum(side) / len(side) for side in (low, high))
        s, t = ((sum((v - m) ** 2 for v in side) / len(side)) ** 0.5 for side, m in ((low, a), (high, b)))
        best = max(best, (b - a) / (s + t + 0.05))
    return best


def test_gap_is_that_of_a_slow_search():
    z = standardised(draw(200))
    assert gap(z) == pytest.approx(gap_slowly(z), rel=1e-6)


def test_a_tail_of_one_label_is_seen():
    z, labels = draw(), torch.arange(3000) % 10
    even = concentration(standardised(z), labels)
    z[(labels == 4) & (torch.arange(3000) < 1000)] += 6
    assert concentration(standardised(z), labels) > even + 0.5


def test_a_direction_shared_by_a_tail_is_seen():
    rng = torch.Generator().manual_seed(1)
    z, labels = draw(2000), torch.zeros(2000, dtype=torch.long)
    features = torch.randn(2000, 16, generator=rng)
    apart = coherence(z, labels, features)
    top = z.topk(40).indices
    features[top] += 4 * torch.ones(16)
    assert abs(apart) < 0.1 and coherence(z, labels, features) > 0.7


def test_methods_that_name_the_same_samples_agree():
    first, second = draw(seed=2), draw(seed=3)
    assert abs(agreement([first, second])) < 1.2
    assert agreement([first, first + 0.01 * second]) > 2.5
    assert agreement([first]) == 0
