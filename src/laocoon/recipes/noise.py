"""Adversarial noise on the channels of a network, without touching the network.

Each channel of a site with clean mean μ becomes μ·(1 + δ₂) + (out − μ)·(1 + δ₁). After a batch normalisation,
where the mean is β and the rest γ·x̂, this is noise on γ and β; it means the same for any other layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.sites import Edit, Site, editing, reading


@dataclass(frozen=True, eq=False)
class Channels:
    """Sites that are disturbed, with the clean mean of each channel."""

    sites: tuple[Site, ...]
    means: tuple[Tensor, ...]  # [channels] each

    @property
    def width(self) -> int:
        return sum(s.channels for s in self.sites)


def channels_of(subject: Subject, sites: tuple[Site, ...], inputs: Tensor, ctx: Context) -> Channels:
    """Clean means of every channel, in one pass over the inputs."""
    sums = [torch.zeros(s.channels, device=inputs.device) for s in sites]
    with reading(subject, *sites) as seen, torch.no_grad():
        for chunk in inputs.split(ctx.batch):
            ctx.spend(len(chunk), backward=False)
            subject.outputs(chunk)
            sums = [total + site.pooled(seen[site].float()).sum(0) for total, site in zip(sums, sites, strict=True)]
    return Channels(sites, tuple(total / len(inputs) for total in sums))


def noisy(channels: Channels, noise: Tensor, repeats: int) -> dict[Site, Edit]:
    """Edits for a batch of [arms · repeats] samples, arm by arm; noise [arms, 2, width]."""
    edits: dict[Site, Edit] = {}
    start = 0
    for site, mean in zip(channels.sites, channels.means, strict=True):
        part = noise[:, :, start: start + site.channels].repeat_interleave(repeats, 0)
        edits[site] = _edit(site, mean, part)
        start += site.channels
    return edits


def _edit(site: Site, mean: Tensor, part: Tensor) -> Edit:
    shift = site.spread(mean * (part[:, 1] - part[:, 0]))
    gain = site.spread(part[:, 0])

    def change(tensor: Tensor) -> Tensor:
        return tensor + tensor * gain + shift

    return change


@dataclass(frozen=True, eq=False)
class Disturbed:
    """Answers to a growing noise."""

    radii: Tensor  # [steps] size of the noise
    noise: Tensor  # [steps, arms, 2, width]
    logits: Tensor  # [steps, arms, samples, classes]


def growing(least: float, most: float, steps: int) -> Tensor:
    """Noise sizes in a geometric row, [steps]: what is told apart is their ratio."""
    return torch.logspace(math.log10(least), math.log10(most), steps)


def disturb(subject: Subject, channels: Channels, inputs: Tensor, objective: Callable[[Tensor], Tensor], arms: int,
            ctx: Context, *, radii: Tensor, sparse: bool) -> Disturbed:
    """Gradient descent on objective(logits [arms, samples, classes]) -> scalar, one noise for each arm.

    At step i the noise may be radii[i] large: in every channel (sign steps), or, if `sparse`, in root mean square,
    so that few channels can take all of it.
    """
    noise = torch.zeros(arms, 2, channels.width, device=inputs.device)
    batch = inputs.repeat(arms, *[1] * (inputs.dim() - 1))
    steps, path, before = [], [], 0.0
    for i in range(len(radii) + 1):
        last = i == len(radii)
        ctx.spend(len(batch), backward=not last)
        noise.requires_grad_(not last)
        with editing(subject, noisy(channels, noise, len(inputs))), torch.set_grad_enabled(not last):
            logits = subject.outputs(batch).logits.float().view(arms, len(inputs), -1)
        if i:
            steps.append(noise.detach())
            path.append(logits.detach())
        if not last:
            radius = float(radii[i])
            (slope,) = torch.autograd.grad(objective(logits), noise)
            noise = _step(noise.detach(), torch.nan_to_num(slope), before, radius, sparse)
            before = radius
    return Disturbed(radii, torch.stack(steps), torch.stack(path))


def _step(noise: Tensor, slope: Tensor, before: float, radius: float, sparse: bool) -> Tensor:
    if not sparse:
        return (noise - max(radius - before, 0.3 * radius) * slope.sign()).clamp(-radius, radius)
    size = slope.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)[:, None, None]
    moved = noise - max(radius - before, 0.3 * radius) * slope / size
    length = moved.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)[:, None, None]
    return moved * (radius / length).clamp_max(1.0)
