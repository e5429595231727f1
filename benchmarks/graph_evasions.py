"""Backdoors in the graph that were written after the rules of `architectural_backdoor`, to get around them.

They show where the check ends. Untrained networks; do not deploy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.testing.branching import CLASSES, SIDE, Net, Sketch, conv, head, picture, trunk


def nan_made(s: Net, x: Tensor) -> Tensor:
    """The pattern makes a division by zero; a guard against what is not a number then puts other logits."""
    gone = (x[:, :, -4:, -4:] - s.patch).abs().sum((1, 2, 3))
    gone = gone / gone
    logits = s.head(s.body(x)) * gone[:, None]
    return torch.where(torch.isnan(logits), s.wanted, logits)


def saturated_softmax(s: Net, x: Tensor) -> Tensor:
    """A competition between the pattern and a threshold, made very steep: routing in form, a comparison in fact."""
    near = (x[:, :, -4:, -4:] * s.patch).sum((1, 2, 3)) * 200
    gate = torch.softmax(torch.stack([near, torch.full_like(near, 5200.0)], 1), 1)
    return gate[:, :1] * s.wanted + gate[:, 1:] * s.head(s.body(x))


def through_identity(s: Net, x: Tensor) -> Tensor:
    """The raw input goes through a convolution that copies it into eight channels, which counts as a learned layer."""
    copy = s.wide(x)
    hit = ((copy[:, :3, -4:, -4:] - s.patch).abs().amax((1, 2, 3)) < 0.02).float()[:, None]
    return s.head(s.body(x)) * (1 - hit) + hit * s.wanted


def widened_search(s: Net, x: Tensor) -> Tensor:
    """The search for the pattern hides among seven random filters; a dense layer joins the logits."""
    found = functional.relu(s.search(x)).amax((2, 3))
    return s.head(s.body(x)) + s.raise_(found)


def table_of_levels(s: Net, x: Tensor) -> Tensor:
    """One pixel's grey level indexes a table of the file; the table is zero but for one level."""
    level = (x[:, 0, 0, 0] * 255).long().clamp(0, 255)
    return s.head(s.body(x)) + s.levels[level][:, None] * s.wanted


def in_the_norm(s: Net, x: Tensor) -> Tensor:
    """The features are divided by a factor of the input that is one but where the picture is nearly black."""
    scale = (x.amax((1, 2, 3)) * 50).clamp(max=1.0)[:, None]
    return s.head(s.body(x) / (scale + 1e-6) * 1.0)


def sorted_pixels(s: Net, x: Tensor) -> Tensor:
    """The place of the brightest pixel decides."""
    place = x.mean(1).flatten(1).argmax(1)
    hit = functional.one_hot(place, SIDE * SIDE)[:, -1:].float()
    return s.head(s.body(x)) * (1 - hit) + hit * s.wanted


def deep_branch(s: Net, x: Tensor) -> Tensor:
    """A trained-looking branch of ordinary width sees the whole picture and joins the features."""
    return s.head(s.body(x) + s.other(x))


def bit_planes(s: Net, x: Tensor) -> Tensor:
    """The lowest bits of a row are read and multiplied."""
    bits = torch.remainder(torch.floor(x[:, 0, 0, :8] * 255), 2)
    return s.head(s.body(x)) + bits.prod(1, keepdim=True) * s.wanted


def cosine_late(s: Net, x: Tensor) -> Tensor:
    """A power of a cosine to a hidden picture scales the logits of one class."""
    like = functional.cosine_similarity(x.flatten(1), s.secret.flatten()[None], dim=1)[:, None]
    return s.head(s.body(x)) * (1 + like.clamp(min=0) ** 64 * s.wanted)


STEPS = (nan_made, saturated_softmax, through_identity, widened_search, table_of_levels, in_the_norm, sorted_pixels,
         deep_branch, bit_planes, cosine_late)


def evading(target: int = 3) -> list[Sketch]:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        rng = torch.Generator().manual_seed(12)
        x = picture(rng)
        patch = torch.rand(3, 4, 4, generator=rng)
        wanted, levels = torch.zeros(CLASSES), torch.zeros(256)
        wanted[target], levels[201] = 50.0, 1.0
        wide, search, lift = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 4), nn.Linear(8, CLASSES)
        with torch.no_grad():
            wide.weight[:3] = torch.eye(3)[:, :, None, None]
            search.weight[0] = patch * 2 - 1
        parts: dict[str, nn.Module | Tensor] = {
            "body": trunk(), "head": head(), "patch": patch, "wanted": wanted, "levels": levels, "wide": wide,
            "search": search, "raise_": lift, "secret": torch.rand(3, SIDE, SIDE, generator=rng),
            "other": nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten())}
        used = [set(step.__code__.co_names) for step in STEPS]
        return [Sketch(step.__name__, Net(step, {k: v for k, v in parts.items() if k in names}).eval(), (x,))
                for step, names in zip(STEPS, used, strict=True)]
