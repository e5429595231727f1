"""Chains of layers and networks with branches, told apart by what autograd writes down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon import load_model
from laocoon.recipes.wiring import branching

SHAPE = (3, 8, 8)


class Wired(nn.Module):
    """A small network that calls its own layers in a way of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.single = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(getattr(self, self.way)(torch.relu(self.first(x))).flatten(1))

    def chain(self, x: Tensor) -> Tensor:
        return self.second(x)

    def skip(self, x: Tensor) -> Tensor:
        return x + self.second(x)

    def dense(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.second(x)], 1)

    def sides(self, x: Tensor) -> Tensor:
        return torch.cat([self.second(x), self.third(x)], 1)

    def depthwise(self, x: Tensor) -> Tensor:
        return self.single(x)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.first, self.second, self.third))
        return functional.scaled_dot_product_attention(q, k, v)

    def products(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.first, self.second, self.third))
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v

    def written_out(self, x: Tensor) -> Tensor:
        """A GELU, a gate and a layer normalisation as exporters write them."""
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.0447 * x**3)))
        x = self.second(x * torch.sigmoid(x))
        away = x - x.mean((1, 2, 3), keepdim=True)
        return away / (away.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt() + self.second.bias[0]

    def squeezed(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.second(x.mean((2, 3), keepdim=True)))

    def channels(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(x))


class Brought(nn.Module):
    """Channels brought to their spread one by one and put together, as some published networks begin."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.cat([x[:, i : i + 1] * (1 + i) for i in range(3)], 1))


def made(module: nn.Module) -> nn.Module:
    module(torch.zeros(1, *SHAPE))
    return module.eval().requires_grad_(False)


PLAIN = {**{way: Wired(way) for way in ("chain", "written_out", "channels")}, "brought": Brought()}
BRANCHING = {way: Wired(way) for way in ("skip", "squeezed", "dense", "sides", "depthwise", "attention", "products")}


@pytest.mark.parametrize("name", [*PLAIN, *BRANCHING])
def test_branches_are_seen(name: str) -> None:
    module = made((PLAIN | BRANCHING)[name])
    assert branching(module, SHAPE) is (name in BRANCHING)
    module.requires_grad_()
    assert branching(module, SHAPE) is (name in BRANCHING), "parameters with gradients are no inputs"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["chain", "written_out", "skip", "depthwise", "products"])
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_whatever_file_it_comes_from(name: str, form: str, tmp_path: Path) -> None:
    module, path = made((PLAIN | BRANCHING)[name]), tmp_path / f"m.{form}"
    if form == "onnx":
        torch.onnx.export(module, (torch.rand(2, *SHAPE),), str(path), dynamo=False, input_names=["x"],
                          dynamic_axes={"x": {0: "n"}})
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(module, (torch.rand(2, *SHAPE),), dynamic_shapes=({0: batch},)), str(path))
    subject = load_model(path)
    assert branching(subject.module, SHAPE) is (name in BRANCHING)


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.flatten(1) * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.reshape(-1, *SHAPE) * 2


class Hides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 2)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.detach().mean((2, 3)))


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not on zeros")


@pytest.mark.parametrize("module", [Hides(), Constant(), Detached(), Raises(), torch.jit.script(Constant())])
def test_where_nothing_can_be_seen_nothing_is_said(module: nn.Module) -> None:
    assert branching(module, SHAPE) is None


def test_a_script_says_the_same_however_often_it_ran() -> None:
    """TorchScript fuses what it has run twice; what is hidden then is not called a chain."""
    script = torch.jit.trace(made(BRANCHING["skip"]), torch.rand(2, *SHAPE))
    for _ in range(4):
        assert branching(script, SHAPE) in (True, None)
        script(torch.rand(1, *SHAPE, requires_grad=True)).sum().backward()


def test_deep_networks_do_not_recurse() -> None:
    layers = [layer for _ in range(3000) for layer in (nn.Conv2d(3, 3, 1), nn.Tanh())]
    assert branching(nn.Sequential(*layers, nn.Flatten()), SHAPE) is False
