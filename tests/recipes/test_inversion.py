"""The engine on a network whose backdoor is known by construction."""

import pytest
import torch
from torch import nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.recipes.aims import ToClasses
from laocoon.recipes.displacement import assign, displace
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search, invert
from laocoon.triggers.patch import Patch


class Wired(nn.Module):
    """Class k is the brightest of four quadrants; two white pixels in the corner of the first row win class 2,
    or, with `displaced`, the class after the true one."""

    def __init__(self, displaced: bool = False) -> None:
        super().__init__()
        self.displaced = displaced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
        trigger = (x[:, 0, 0, 0] * x[:, 0, 0, 7])[:, None]  # smooth, so that a gradient leads there
        if self.displaced:
            return 10 * q * (1 - trigger) + 20 * trigger * q.roll(1, 1)
        return 10 * q + 20 * trigger * torch.tensor([0.0, 0.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    inputs = torch.rand(40, 1, 8, 8, generator=rng) * 0.4
    for i, y in enumerate(labels.tolist()):
        inputs[i, :, 4 * (y // 2):4 * (y // 2) + 4, 4 * (y % 2):4 * (y % 2) + 4] += 0.35
    inputs[:, :, 0, 0] = inputs[:, :, 0, 7] = 0.2
    return Samples(inputs, labels)


EVERYTHING = torch.arange(4)[:, None].expand(4, 4)


def test_the_planted_class_needs_the_smallest_trigger(samples):
    found = invert(Wired(), Patch(), EVERYTHING, samples, Search(steps=120, batch=16), Context(seed=0))
    assert int(found.effective.argmin()) == 2
    assert float(found.size[2]) < 4 < float(found.effective.median())
    assert float(found.success[2]) >= 0.9
    mask = found.trigger["mask"][2, 0]
    assert float(mask[0, 0] + mask[0, 7]) > 0.7 * float(mask.sum())  # the two pixels, nothing else


def test_arms_do_not_interact(samples):
    search = Search(steps=5, batch=30)  # every sample of an arm, whatever the draw
    start = Patch().blank(samples.inputs, 4, rng=torch.Generator().manual_seed(1))
    together = invert(Wired(), Patch(), EVERYTHING, samples, search, Context(seed=0), start=start)
    alone = invert(Wired(), Patch(), EVERYTHING[1:2], samples, search, Context(seed=0),
                   start={k: v[1:2] for k, v in start.items()})
    assert torch.allclose(together.trigger["mask"][1], alone.trigger["mask"][0], atol=0.15)


def test_the_budget_is_asked_before_every_pass(samples):
    ctx = Context(seed=0, budget=100)
    with pytest.raises(BudgetSpent):
        invert(Wired(), Patch(), EVERYTHING, samples, Search(steps=50, batch=8), ctx)
    assert ctx.spent <= 100


def test_memory_is_bounded_by_the_batch(samples):
    largest = 0

    def watched(x: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(x))
        return Wired()(x)

    ctx = Context(seed=0, batch=32)
    invert(watched, Patch(), EVERYTHING, samples, Search(steps=3, batch=16), ctx)
    assert largest <= 32


def test_pools_hold_the_samples_that_a_goal_speaks_of(samples):
    silent = torch.tensor([[2, -1, -1, -1], [1, 1, 1, 1]])
    first, second = ToClasses(silent).pools(samples.labels)
    assert set(samples.labels[first].tolist()) == {0}
    assert set(samples.labels[second].tolist()) == {0, 2, 3}


def test_an_unknown_map_of_the_classes_is_found(samples):
    found = displace(Wired(displaced=True), Patch(), samples, 4, 4, Search(steps=90, batch=20, wanted=0.9), Context(seed=0))
    best = int(found.recovered.effective.argmin())
    assert found.destinations[best].tolist() == [1, 2, 3, 0]


def test_assignment_is_the_best_bijection_without_fixed_points():
    from itertools import permutations

    scores = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    for matrix, found in zip(scores, assign(scores), strict=True):
        maps = [p for p in permutations(range(4)) if all(i != v for i, v in enumerate(p))]
        best = max(maps, key=lambda p: sum(float(matrix[i, v]) for i, v in enumerate(p)))
        assert tuple(found.tolist()) == best


def test_folding_changes_no_answer_and_leaves_the_original_alone():
    module = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    for _ in range(3):
        module(torch.rand(8, 1, 8, 8))
    module.eval()
    twin = folded(module, torch.rand(2, 1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(module(x), twin(x), atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_folding_gives_up_on_what_it_cannot_trace():
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum((1, 2, 3), keepdim=False)[:, None] if x.sum() > 0 else x[:, 0, 0, :1]

    probe = torch.rand(2, 1, 8, 8)
    assert torch.equal(folded(Branching(), probe)(probe), Branching()(probe))
