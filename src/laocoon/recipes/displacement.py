"""One trigger that moves every class to a different one: the search for all-to-all backdoors.

The map of classes is unknown. An arm starts untargeted (leave the true class), its confusion is then read, and the
map is the bijection without fixed points of greatest likelihood (an assignment problem); search and assignment
alternate. A natural perturbation sends everything to one or two classes and is dear as a bijection; an all-to-all
trigger is as cheap as it was made. Cost is independent of the number of class pairs (cf. UMD, ICML 2023, which
searches every pair).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import SearchedFamily
from laocoon.recipes.inversion import Forward, Recovered, Search, invert


@dataclass(frozen=True, eq=False)
class Displaced:
    """recovered: one row per arm; destinations: the map that each arm settled on, long [arms, classes]."""

    recovered: Recovered
    destinations: Tensor


def untargeted(forward: Forward, family: SearchedFamily, samples: Samples, theta: dict[str, Tensor], steps: int,
               batch: int, weight: float, ctx: Context) -> None:
    """Move `theta` (leaves [arms, …], in place) so that samples leave their class, under a size pressure."""
    arms = len(next(iter(theta.values())))
    for leaf in theta.values():
        leaf.requires_grad_(True)
    optimiser = torch.optim.Adam([{"params": [v], "lr": family.rate} for v in theta.values()], betas=(0.5, 0.9))
    n = len(samples)
    for _ in range(steps):
        index = torch.stack([torch.randperm(n, generator=ctx.rng)[:batch] for _ in range(arms)])
        index = index.to(samples.inputs.device)
        x, y = samples.inputs[index], samples.labels[index]
        ctx.spend(index.numel())
        logits = forward(family.stamp(x, theta).flatten(0, 1))
        truth = logits.log_softmax(-1).gather(1, y.flatten()[:, None]).exp()
        stay = -(1 - truth).clamp_min(1e-4).log().view(arms, -1).mean(1)
        optimiser.zero_grad(set_to_none=True)
        (stay + weight * family.size(theta, x) / family.scale).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            family.project(theta)
    for leaf in theta.values():
        leaf.requires_grad_(False)


@torch.no_grad()
def confusion(forward: Forward, family: SearchedFamily, samples: Samples, theta: dict[str, Tensor], classes: int,
              ctx: Context) -> Tensor:
    """Mean log-probability of each destination per source class under each arm, [arms, classes, classes]."""
    rows = []
    for arm in range(len(next(iter(theta.values())))):
        one = family.select(theta, torch.tensor([arm], device=samples.inputs.device))
        total = torch.zeros(classes, classes, device=samples.inputs.device)
        for part in torch.arange(len(samples), device=samples.inputs.device).split(ctx.batch):
            ctx.spend(len(part), backward=False)
            said = forward(family.stamp(samples.inputs[part], one)[0]).log_softmax(-1).clamp_min(-12)
            total.index_add_(0, samples.labels[part], said)
        count = torch.bincount(samples.labels, minlength=classes).clamp_min(1)
        rows.append(total / count[:, None])
    return torch.stack(rows)


def assign(scores: Tensor) -> Tensor:
    """The bijection without fixed points of greatest total score, [arms, classes] from [arms, classes, classes]."""
    maps = []
    for matrix in scores.cpu().double():
        cost = -matrix.clone()
        cost.fill_diagonal_(1e6)
        maps.append(torch.as_tensor(linear_sum_assignment(cost.numpy())[1]))
    return torch.stack(maps)


def displace(forward: Forward, family: SearchedFamily, samples: Samples, classes: int, arms: int, search: Search,
             ctx: Context, *, rounds: int = 3, free_steps: int = 25) -> Displaced:
    """Search `arms` random starts; passes about arms × batch × (free_steps + steps)."""
    theta = {k: v.clone() for k, v in family.blank(samples.inputs, arms, rng=ctx.rng).items()}
    weights = (0.02, 0.3)  # loose and tight starts lead to different maps
    for weight in weights:
        half = [a for a in range(arms) if a % len(weights) == weights.index(weight)]
        if half:
            index = torch.tensor(half, device=samples.inputs.device)
            part = family.select(theta, index)
            untargeted(forward, family, samples, part, free_steps, search.batch, weight, ctx)
            for k, leaf in part.items():
                theta[k][index] = leaf
    destinations = assign(confusion(forward, family, samples, theta, classes, ctx))
    for number in range(rounds):
        last = number == rounds - 1
        step = replace(search, steps=max(1, search.steps // (2 if last else 2 * (rounds - 1))))
        recovered = invert(forward, family, destinations, samples, step, ctx, start=theta)
        if not last:
            theta = recovered.trigger
            destinations = assign(confusion(forward, family, samples, theta, classes, ctx))
    return Displaced(recovered, destinations)
