"""Weights as eight-bit integers, and single bits of them: symmetric, one scale a tensor, two's complement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Quantised:
    """weights ≈ codes · scale; codes are int8."""

    codes: Tensor
    scale: float

    def weights(self) -> Tensor:
        return self.codes.float() * self.scale


def quantise(weights: Tensor) -> Quantised:
    """The nearest codes from -127 to 127, the largest weight at the end of the range."""
    scale = float(weights.abs().max().clamp_min(1e-12)) / 127
    return Quantised((weights / scale).round().clamp(-127, 127).to(torch.int8), scale)


def codes_of(weights: Tensor, scale: float) -> Tensor:
    """The codes of weights that lie on the grid of a known scale; -128 included, which a flipped bit can make."""
    return (weights / scale).round().clamp(-128, 127).to(torch.int8)


def flipped(codes: Tensor, bit: int) -> Tensor:
    """Codes with one bit flipped, 0 the least and 7 the sign."""
    return (codes.view(torch.uint8) ^ (1 << bit)).view(torch.int8)


def differing_bits(before: Tensor, after: Tensor) -> int:
    """Hamming distance of two tensors of codes."""
    changed = before.contiguous().view(torch.uint8) ^ after.contiguous().view(torch.uint8)
    return sum(int(((changed >> bit) & 1).sum()) for bit in range(8))


def steps_of_flips(codes: Tensor) -> Tensor:
    """[…, 8]: by how much each bit's flip would move each code."""
    moved = torch.stack([flipped(codes, bit) for bit in range(8)], -1)
    return moved.int() - codes.int().unsqueeze(-1)
