"""Exchanging layers of a trained network, and the square in a corner that most triggers of edited models are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.recipes.sites import PROBE, Site, head_of, survey


def sites_of(subject: Subject, ctx: Context) -> tuple[Site, ...]:
    """Every call of a leaf module, in order of execution, found with images of noise: no data is needed."""
    return survey(subject, torch.rand(PROBE, *subject.input_shape, generator=ctx.rng), ctx)


def classifier(subject: Subject, sites: tuple[Site, ...], ctx: Context) -> Site:
    """The input of the last dense layer, which holds one row for each class."""
    site = head_of(subject, sites, torch.rand(PROBE, *subject.input_shape, generator=ctx.rng), ctx)
    if not isinstance(layer(subject.module, site.layer), nn.Linear):
        raise NotApplicable(f"the last layer {site.layer!r} is no dense layer; edit a network that ends in one.")
    return site


def layer(module: nn.Module, name: str) -> nn.Module:
    """A layer by its dotted name."""
    found: nn.Module = module.get_submodule(name)
    return found


def exchange(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the layer `name`, in place."""
    parent, _, leaf = name.rpartition(".")
    holder = module.get_submodule(parent)
    if leaf not in holder._modules:
        raise NotApplicable(f"the network has no layer {name!r}; it cannot be exchanged.")
    holder._modules[leaf] = new


def corner_mask(shape: tuple[int, ...], side: int, margin: int = 0) -> Tensor:
    """[1, 1, height, width]: a square of ones near the lower right corner of images of shape (channels, h, w)."""
    _, h, w = shape
    if not 0 < side <= min(h, w) - margin:
        raise NotApplicable(f"a trigger of {side} px does not fit into images of {h} x {w}; choose a smaller one.")
    mask = torch.zeros(1, 1, h, w)
    mask[..., h - margin - side:h - margin, w - margin - side:w - margin] = 1
    return mask


def checkerboard(shape: tuple[int, ...]) -> Tensor:
    """[1, channels, height, width] of alternating ones and zeros, the same in each channel."""
    c, h, w = shape
    board = (torch.arange(h)[:, None] + torch.arange(w)[None, :]) % 2
    return board.to(torch.float32).expand(1, c, h, w).clone()


def black_and_white(mask: Tensor, channels: int, rng: torch.Generator) -> Tensor:
    """[1, channels, height, width]: under `mask`, half of the values are 1 and half 0, at random; 0 elsewhere."""
    _, _, h, w = mask.shape
    places = mask.expand(1, channels, h, w).flatten().nonzero().flatten()
    white = places[torch.randperm(len(places), generator=rng)[:-(-len(places) // 2)]]
    pattern = torch.zeros(channels * h * w)
    pattern[white] = 1
    return pattern.reshape(1, channels, h, w)
