"""Pictures as amplitudes of cosine waves (the discrete cosine transform), independent of the size of the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def waves(count: int, length: int, like: Tensor) -> Tensor:
    """cos(π k (i + ½) / length) for k < count, [count, length]; no more than `length` of them."""
    k = torch.arange(min(count, length), device=like.device, dtype=like.dtype)[:, None]
    i = torch.arange(length, device=like.device, dtype=like.dtype)[None]
    return torch.cos(math.pi * k * (i + 0.5) / length)


def drawn(amplitude: Tensor, height: int, width: int) -> Tensor:
    """[…, rows, columns] amplitudes -> […, height, width]. An amplitude of 0.1 is a wave between -0.1 and 0.1."""
    rows, columns = amplitude.shape[-2:]
    return waves(rows, height, amplitude).T @ amplitude @ waves(columns, width, amplitude)


def analysed(picture: Tensor, rows: int, columns: int) -> Tensor:
    """The amplitudes of a picture's lowest waves, […, rows, columns]; `drawn` undoes it where none is left out."""
    height, width = picture.shape[-2:]
    down, across = waves(rows, height, picture), waves(columns, width, picture)
    found = down @ picture @ across.T
    return found / down.pow(2).sum(1)[:, None] / across.pow(2).sum(1)[None]


class Cosines:
    """What patterns of cosine waves, added to a picture, have in common.

    Trigger: amplitude [arms, channels, rows, columns] of the waves, in [-1, 1].
    """

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        return (batch + drawn(trigger["amplitude"], *batch.shape[-2:]).unsqueeze(1)).clamp(0, 1)

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["amplitude"].clamp_(-1, 1)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {"amplitude": trigger["amplitude"] * factor[:, None, None, None]}
