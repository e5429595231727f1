"""Corruptions of pictures in families of growing severity, without randomness of their own once they are made.

After Hendrycks and Dietterich (ICLR 2019), whose fifteen families TeCo uses: those that need nothing but the picture,
and turns, shifts and smooth displacements beside them, since what a trigger survives is often a matter of place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import InputError
from laocoon.recipes.distortions import jpeg, resized, shifted

Corruption = Callable[[Tensor], Tensor]


def families(shape: tuple[int, ...], rng: torch.Generator) -> dict[str, tuple[Corruption, ...]]:
    """By name, each with its severities in ascending order; for pictures of one shape (channels, height, width)."""
    channels, height, width = shape
    step = max(1, round(min(height, width) / 16))
    noise = torch.randn(shape, generator=rng)
    fields = [displacement(height, width, strength, rng) for strength in (0.03, 0.03, 0.06, 0.06, 0.06)]
    found: dict[str, tuple[Corruption, ...]] = {
        "contrast": (lambda x: 0.5 + 0.4 * (x - 0.5),),
        "brightness": (lambda x: x * 0.5,),
        "blur": (lambda x: blurred(x, 0.7), lambda x: blurred(x, 1.5)),
        "noise": (lambda x: (x + 0.05 * noise.to(x)).clamp(0, 1), lambda x: (x + 0.12 * noise.to(x)).clamp(0, 1)),
        "resize": (lambda x: resized(x, 0.5),),
        "mirror": (lambda x: x.flip(-1),),
        "shift": (lambda x: shifted(x, step, -step), lambda x: shifted(x, -2 * step, 2 * step)),
        "turn": (lambda x: turned(x, 8.0), lambda x: turned(x, -15.0)),
        "scale": (lambda x: turned(x, 0.0, 1.2), lambda x: turned(x, 0.0, 0.8)),
        "warp": tuple(_displaced(field) for field in fields),
    }
    if channels in (1, 3):
        found["jpeg"] = (lambda x: jpeg(x, 50), lambda x: jpeg(x, 15))
    return found


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, the edge repeated, [n, channels, height, width]."""
    if sigma <= 0:
        raise InputError(f"sigma is {sigma}.", "It must be above 0.")
    reach = max(1, min(round(3 * sigma), min(images.shape[-2:]) - 1))
    line = torch.exp(-torch.arange(-reach, reach + 1, device=images.device).float().square() / (2 * sigma**2))
    line = (line / line.sum()).to(images)
    channels = images.shape[1]
    padded = torch.nn.functional.pad(images, (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(padded, line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
    return torch.nn.functional.conv2d(across, line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)


def turned(images: Tensor, degrees: float, scale: float = 1.0) -> Tensor:
    """Turned about the centre and enlarged by `scale`; the edge is repeated."""
    angle = math.radians(degrees)
    theta = torch.tensor([[math.cos(angle) / scale, -math.sin(angle) / scale, 0.0],
                          [math.sin(angle) / scale, math.cos(angle) / scale, 0.0]]).to(images)
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def displacement(height: int, width: int, strength: float, rng: torch.Generator) -> Tensor:
    """A smooth random grid to sample at, [height, width, 2]; `strength`: mean shift as a share of a side."""
    coarse = torch.randn(1, 2, 5, 5, generator=rng)
    coarse = coarse / coarse.abs().mean() * strength * 2  # a side is 2 long in the coordinates of grid_sample
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    still = functional.affine_grid(torch.eye(2, 3).unsqueeze(0), [1, 1, height, width], align_corners=False)[0]
    return (still + fine).clamp(-1, 1)


def _displaced(field: Tensor) -> Corruption:
    def warp(images: Tensor) -> Tensor:
        return functional.grid_sample(images, field.to(images).expand(len(images), -1, -1, -1), padding_mode="border",
                                      align_corners=False)

    return warp
