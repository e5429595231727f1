"""Adversarial noise on the channels of a network, without touching the network.

Each channel of a site with clean mean μ becomes μ·(1 + δ₂) + (out − μ)·(1 + δ₁). After a batch normalisation,
where the mean is β and the rest γ·x̂, this is noise on γ and β; it means the same for any other layer.
"""

from __future__ import annotations

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
    """The noise found, [arms, 2, width], and the logits on the way there, [steps + 1, arms, samples, classes]."""

    noise: Tensor
    path: Tensor


def disturb(subject: Subject, channels: Channels, inputs: Tensor, objective: Callable[[Tensor], Tensor], arms: int,
            ctx: Context, *, radius: float, steps: int) -> Disturbed:
    """Sign-gradient descent on objective(logits [arms, samples, classes]) -> scalar, one noise for each arm.

    Every step adds radius / steps, so that the path is the answer to a growing noise.
    """
    noise = torch.zeros(arms, 2, channels.width, device=inputs.device)
    batch = inputs.repeat(arms, *[1] * (inputs.dim() - 1))
    path = []
    for step in range(steps + 1):
        last = step == steps
        ctx.spend(len(batch), backward=not last)
        noise.requires_grad_(not last)
        with editing(subject, noisy(channels, noise, len(inputs))), torch.set_grad_enabled(not last):
            logits = subject.outputs(batch).logits.float().view(arms, len(inputs), -1)
        path.append(logits.detach())
        if not last:
            (slope,) = torch.autograd.grad(objective(logits), noise)
            noise = (noise.detach() - radius / steps * torch.nan_to_num(slope).sign()).clamp(-radius, radius)
    return Disturbed(noise.detach(), torch.stack(path))
