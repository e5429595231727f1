"""Triggers that a small encoder and decoder draw for each image: input-aware (NeurIPS 2020), LIRA, ISSBA (ICCV 2021).

    z = A·pool(elu(conv(elu(conv(x))))) ⊕ code,   g(x) = conv(elu(conv(x, up(elu(conv(up(B·z))))))

The way through z sees the whole image, so that neighbouring pixels alone do not decide what is drawn. `Residue` adds a
bounded change; `Inlay` lays a pattern under a mask. All that a trigger is lives in its leaves, strength included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PLACES = 4  # the coarse map between encoder and decoder is PLACES × PLACES


def drawn(batch: Tensor, weights: Mapping[str, Tensor], code: Tensor | None = None) -> Tensor:
    """g(x) of one arm: images [n, channels, height, width] to [n, channels + 1, height, width].

    code: [n, bits] or [bits], joined to what the encoder says; by default the arm's own, where it has one.
    """
    code = weights.get("code") if code is None else code
    x = batch - 0.5
    deep = functional.elu(functional.conv2d(x, weights["first"], weights["first_bias"], stride=2, padding=1))
    deep = functional.elu(functional.conv2d(deep, weights["second"], weights["second_bias"], stride=2, padding=1))
    z = functional.adaptive_avg_pool2d(deep, PLACES).flatten(1) @ weights["gather"].T
    if code is not None:
        z = torch.cat([z, code.expand(len(z), -1) * 2 - 1], 1)
    coarse = functional.elu(z @ weights["scatter"].T).reshape(len(z), weights["third"].shape[1], PLACES, PLACES)
    height, width = x.shape[-2:]
    middle = _enlarged(coarse, (-(-height // 2), -(-width // 2)))
    middle = functional.elu(functional.conv2d(middle, weights["third"], weights["third_bias"], padding=1))
    fine = torch.cat([_enlarged(middle, (height, width)), x], 1)
    fine = functional.elu(functional.conv2d(fine, weights["fourth"], weights["fourth_bias"], padding=1))
    return functional.conv2d(fine, weights["last"], weights["last_bias"], padding=1)


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _blank(like: Tensor, arms: int, width: int, memory: int, bits: int, rng: torch.Generator) -> dict[str, Tensor]:
    c, coarse = like.shape[1], PLACES * PLACES * 2 * width
    shapes = {"first": (width, c, 3, 3), "second": (2 * width, width, 3, 3), "gather": (memory, coarse),
              "scatter": (coarse, memory + bits), "third": (width, 2 * width, 3, 3),
              "fourth": (width, width + c, 3, 3), "last": (c + 1, width, 3, 3)}
    leaves = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel()
        leaves[name] = (torch.randn(arms, *shape, generator=rng) * (1.5 / fan) ** 0.5).to(like)
        if name not in ("gather", "scatter"):
            leaves[f"{name}_bias"] = torch.zeros(arms, shape[0]).to(like)
    if bits:
        leaves["code"] = torch.randint(0, 2, (arms, bits), generator=rng).to(like)
    return leaves


@dataclass(frozen=True)
class _Conditional:
    """Trigger: the weights of g, one network per arm, and how strong it may be."""

    width: int = 16  # channels of the convolutions
    memory: int = 32  # size of z

    unit: str = "grey levels rms"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator, bits: int = 0) -> dict[str, Tensor]:
        return _blank(like, arms, self.width, self.memory, bits, rng)

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        arms = len(trigger["last_bias"])
        own = batch if batch.dim() == 5 else batch.unsqueeze(0).expand(arms, *batch.shape)
        return torch.stack([self.marked(x, {k: v[i] for k, v in trigger.items()}) for i, x in enumerate(own)])

    def marked(self, batch: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """One arm's images, stamped, [n, …]."""
        raise NotImplementedError

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (self.stamp(batch, trigger) - batch).pow(2).mean((1, 2, 3, 4)).add(1e-10).sqrt() * 255

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for name, leaf in trigger.items():
            if name in ("code", "bound"):
                leaf.clamp_(0, 1)
            else:
                leaf.clamp_(-10, 10)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}


@dataclass(frozen=True)
class Residue(_Conditional):
    """x + bound · tanh(g(x)): invisible where the bound is small. Leaf bound [arms]: the largest change of a pixel."""

    name: str = "residue"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator, bits: int = 0,
              bound: float = 0.1) -> dict[str, Tensor]:
        return super().blank(like, arms, rng=rng, bits=bits) | {"bound": torch.full((arms,), bound).to(like)}

    def marked(self, batch: Tensor, weights: Mapping[str, Tensor], code: Tensor | None = None) -> Tensor:
        return (batch + weights["bound"] * torch.tanh(drawn(batch, weights, code)[:, :-1])).clamp(0, 1)


@dataclass(frozen=True)
class Inlay(_Conditional):
    """x·(1 − m(x)) + p(x)·m(x): a few pixels, other ones in every image."""

    name: str = "inlay"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator, bits: int = 0) -> dict[str, Tensor]:
        leaves = super().blank(like, arms, rng=rng, bits=bits)
        leaves["last_bias"][:, -1] = -0.5  # a mask that starts out sparse
        return leaves

    def layers(self, batch: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Masks [n, 1, height, width] and patterns [n, channels, height, width] of one arm, in [0, 1]."""
        found = drawn(batch, weights)
        return torch.sigmoid(6 * found[:, -1:]), torch.sigmoid(3 * found[:, :-1])

    def marked(self, batch: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        mask, pattern = self.layers(batch, weights)
        return batch * (1 - mask) + pattern * mask
