"""Neighbour graphs, robust moments and representations, each against a slow obvious reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.choosing import by_content
from laocoon.recipes.neighbours import conductance, eigenmaps, graph, islands, nearest
from laocoon.recipes.representations import WIDEST, extremes, label_losses, last_layer, sketch
from laocoon.recipes.robust import Moments, bulk, mahalanobis, whitened


def clouds(*sizes: int, apart: float = 8.0, width: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.cat([torch.randn(size, width, generator=rng) + apart * i for i, size in enumerate(sizes)])


def test_nearest_is_what_a_double_loop_finds() -> None:
    points = clouds(40, 20)
    found = nearest(points, points, 4, own=torch.arange(60))
    for i in range(60):
        apart = [(float((points[i] - points[j]).norm()), j) for j in range(60) if j != i]
        assert found.indices[i].tolist() == [j for _, j in sorted(apart)[:4]]
    strangers = nearest(points + 0.01, points, 1, own=torch.full((60,), -1))
    assert strangers.indices.flatten().tolist() == list(range(60)), "who is no reference may be next to any of them"


def test_conductance_counts_the_links_that_leave() -> None:
    points = clouds(50, 12, apart=1.5)
    links = graph(nearest(points, points, 6, own=torch.arange(62)))
    inside = torch.arange(62) >= 50
    leaving = sum(float(links[i, j]) for i in range(62) for j in range(62) if inside[i] and not inside[j])
    volume = min(float(links[inside.numpy()].sum()), float(links[(~inside).numpy()].sum()))
    assert conductance(links, inside) == pytest.approx(leaving / volume)
    assert conductance(links, torch.zeros(62, dtype=torch.bool)) == 1.0


def test_eigenmaps_solve_the_eigenvalue_problem() -> None:
    points = clouds(60, apart=0)
    links = graph(nearest(points, points, 8, own=torch.arange(60)))
    found = eigenmaps(links, 2).double()
    dense = torch.as_tensor(links.toarray())
    degree = dense.sum(1)
    for k in range(2):  # W v = λ D v
        left, right = dense @ found[:, k], degree * found[:, k]
        ratio = float((left @ right) / (right @ right))
        assert float((left - ratio * right).norm() / left.norm()) < 0.02
        assert 0.3 < ratio < 1


def test_islands_join_what_belongs_together() -> None:
    points = clouds(80, 30)
    links = graph(nearest(points, points, 8, own=torch.arange(110)))
    labels = torch.cat([torch.zeros(80), torch.ones(15), torch.full((10,), 2), torch.full((5,), -1)]).long()
    found = islands(links, labels)
    assert len(found) == 1, "two halves of one cloud are one island"
    assert set(found[0].inside.nonzero().flatten().tolist()) == set(range(80, 105))
    assert found[0].isolation == pytest.approx(1 - conductance(links, found[0].inside))
    assert islands(links, torch.full((110,), -1)) == []


def test_bulk_is_not_moved_by_a_minority() -> None:
    rng = torch.Generator().manual_seed(1)
    shape = torch.randn(4, 4, generator=rng)
    clean = torch.randn(700, 4, generator=rng) @ shape
    strange = 0.2 * torch.randn(200, 4, generator=rng) + 25
    found = bulk(torch.cat([clean, strange]), 0.7)
    assert float((found.mean - clean.mean(0)).norm()) < 0.3
    truth = torch.cov(clean.T).double()
    assert float((found.covariance - truth).norm() / truth.norm()) < 0.35
    naive = torch.cat([clean, strange]).mean(0)
    assert float((naive - clean.mean(0)).norm()) > 5, "the plain mean would have been moved"


def test_whitened_points_have_unit_covariance() -> None:
    points = (clouds(400) @ torch.diag(torch.tensor([1.0, 2, 3, 4, 5]))).double()
    moments = Moments(points.mean(0), torch.cov(points.T))
    white = whitened(points, moments)
    assert torch.allclose(torch.cov(white.T), torch.eye(5, dtype=torch.float64), atol=1e-6)
    inverse = torch.linalg.inv(moments.covariance)
    slow = torch.stack([(x - moments.mean) @ inverse @ (x - moments.mean) for x in points])
    assert torch.allclose(mahalanobis(points, moments), slow)


def network(norm: bool = True) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(),
                             nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Subject(body, Image(), 3, (1, 8, 8))


def test_last_layer_is_what_the_head_is_given() -> None:
    subject, inputs = network(), torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ctx = Context(batch=7)
    known = last_layer(subject, inputs, ctx)
    assert torch.allclose(known.features, subject.module[:7](inputs), atol=1e-6)
    assert torch.allclose(known.logits, subject.module(inputs), atol=1e-6)
    assert ctx.spent >= 20 / 3
    with pytest.raises(BudgetSpent):
        last_layer(subject, inputs, Context(budget=2))


@pytest.mark.parametrize("norm", [True, False])
def test_extremes_are_largest_and_smallest_in_deviations(norm: bool) -> None:
    subject, inputs = network(norm), torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = extremes(subject, inputs, Context(batch=7))
    assert found.values.shape == (30, sum(found.widths))
    assert found.widths == (12, 8), "the largest and the smallest of both convolutions' channels"
    maps = subject.module[:1](inputs)
    mean, spread = maps.mean((0, 2, 3)), maps.std((0, 2, 3), unbiased=False)
    high, low = (maps.amax((2, 3)) - mean) / spread, (maps.amin((2, 3)) - mean) / spread
    assert torch.allclose(found.up_to(1).float(), torch.cat([high, low], 1), atol=1e-2)
    assert extremes(subject, inputs, Context(), most=8).values.shape[1] <= 8


def test_label_losses_are_cross_entropies() -> None:
    subject, inputs = network(), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 3
    slow = torch.stack([-subject.module(x[None]).log_softmax(1)[0, y] for x, y in zip(inputs, labels, strict=True)])
    assert torch.allclose(label_losses(subject, inputs, labels, Context(batch=4)), slow, atol=1e-6)


def test_a_sketch_keeps_inner_products() -> None:
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(30, 5 * WIDEST, generator=rng)
    small = sketch(wide)
    assert small.shape == (30, WIDEST) and torch.equal(small, sketch(wide)), "always the same sums"
    exact, kept = wide @ wide.T, small @ small.T
    assert float((kept.diagonal() / exact.diagonal() - 1).abs().max()) < 0.15
    assert torch.equal(sketch(wide[:, :10]), wide[:, :10]), "what is narrow stays as it is"


def test_content_decides_the_order() -> None:
    inputs = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(inputs[by_content(inputs)], inputs[shuffle][by_content(inputs[shuffle])])
