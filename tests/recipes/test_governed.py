"""Networks that draw from torch's global generator, as dropout does, are trained by the seed alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.context import Context, governed
from laocoon.recipes.fit import fit
from laocoon.recipes.tuning import tune


def fitted(module: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> None:
    fit(module, inputs, labels, epochs=2, rng=torch.Generator().manual_seed(seed), batch=10)


def tuned(module: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> None:
    tune(module, inputs, labels, Context(seed=seed), epochs=2, rate=0.1, batch=10)


@pytest.mark.parametrize("train", [fitted, tuned])
def test_dropout_follows_the_seed_of_the_training(train: Callable[..., None]) -> None:
    def weights(seed: int, world: int) -> list[float]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        inputs = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(world)
        train(module, inputs, torch.arange(30) % 3, seed)
        return [float(p.sum()) for p in module.parameters()]

    with torch.random.fork_rng():
        first = weights(0, world=1)
        assert weights(0, world=2) == first and weights(1, world=1) != first


def test_neither_generator_is_moved() -> None:
    rng = torch.Generator().manual_seed(3)
    states = rng.get_state(), torch.get_rng_state()
    with governed(rng):
        torch.rand(5)
    assert torch.equal(rng.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])
