"""How far apart two pictures are: PSNR, SSIM, norms, and a distance between the features of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.recipes.sites import Site, reading, survey

CEILING = 100.0  # dB, of identical pictures


@dataclass(frozen=True, eq=False)
class Norms:
    """Of the difference, per picture, [n]. A pixel counts as changed from half a grey level in any channel."""

    changed: Tensor  # share of pixels
    root_square: Tensor  # L2, values in [0, 1]
    largest: Tensor  # L∞


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """10 log₁₀(1 / mean squared difference) of pictures in [0, 1], [n] in dB, at most CEILING."""
    error = (first - second).double().square().flatten(1).mean(1)
    return (-10 * error.clamp_min(10 ** (-CEILING / 10)).log10()).float()


def ssim(first: Tensor, second: Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang et al., 2004), mean over channels and windows, [n].

    Gaussian windows of 11 px (the largest odd size that fits, in smaller pictures), whole windows only.
    """
    channels, side = first.shape[1], min(first.shape[-2:])
    radius = min(5, (side - 1) // 2)
    line = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    line = (line / line.sum()).to(first.device)
    a, b = first.double(), second.double()

    def blur(x: Tensor) -> Tensor:
        x = functional.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return functional.conv2d(x, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return found.flatten(1).mean(1).float()


def norms(first: Tensor, second: Tensor) -> Norms:
    """L0 (as a share of pixels), L2 and L∞ of the difference."""
    apart = (first - second).abs()
    changed = (apart.amax(1) > 0.5 / 255).flatten(1).float().mean(1)
    return Norms(changed, apart.flatten(1).square().sum(1).sqrt(), apart.flatten(1).amax(1))


@torch.no_grad()
def feature_distance(subject: Subject, first: Tensor, second: Tensor, ctx: Context) -> Tensor:
    """LPIPS without its learned weights (Zhang et al., CVPR 2018), in the subject's own layers, [n].

    In each affine layer with places, features are scaled to unit length over the channels; squared differences are
    summed over channels, averaged over places, then over layers.
    """
    sites = feature_sites(subject, first, ctx)
    parts = []
    for a, b in zip(first.split(ctx.batch), second.split(ctx.batch), strict=True):
        ctx.spend(2 * len(a), backward=False)
        with reading(subject, *sites) as seen:
            subject.outputs(a)
            before = {s: _unit(s, seen[s]) for s in sites}
            subject.outputs(b)
            layers = [(before[s] - _unit(s, seen[s])).square().sum(1).mean(1) for s in sites]
        parts.append(torch.stack(layers).mean(0))
    return torch.cat(parts)


def feature_sites(subject: Subject, example: Tensor, ctx: Context) -> tuple[Site, ...]:
    """Outputs of affine layers with places; of all affine layers but the last where none has places."""
    affine = [s for s in survey(subject, example, ctx) if s.kind == "affine"]
    found = [s for s in affine if len(s.shape) > 1] or affine[:-1]
    if not found:
        raise NotApplicable("the network has no layer whose features could be compared.")
    return tuple(found)


def _unit(site: Site, tensor: Tensor) -> Tensor:
    """[n, channels, places], of unit length over the channels."""
    flat = tensor.movedim(site.axis, 1).flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(-1)
    return functional.normalize(flat.float(), dim=1)
