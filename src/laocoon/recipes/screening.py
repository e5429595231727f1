"""Where a search of a whole-image family starts: at the best of many examples, for every class.

The size of a warp, a filter or a wave that sends inputs to a class has many local minima, and a search from nothing
ends in the nearest: on CIFAR-10 networks poisoned by a sinusoid of 22 grey levels it came back with patterns two to
seven times as large. Examples are only passed forward, once for all classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import VariedFamily
from laocoon.recipes.inversion import PLACES, Forward

SURE = -0.7  # log-probability from which a sample counts as sent: stronger is not better
LOST = -6.0  # and under which no difference is made


@dataclass(frozen=True, eq=False)
class Screened:
    """start: the leaves of the best example of every class, [classes, …]; score: how far it gets, [classes], ≤ SURE."""

    start: dict[str, Tensor]
    score: Tensor


@torch.no_grad()
def screened(forward: Forward, family: VariedFamily, samples: Samples, classes: int, ctx: Context,
             count: int = 16) -> Screened:
    """Pass every example of the family over `count` samples, and choose for each class by the samples of other classes.

    Memory is bounded by ctx.batch; on a CPU fewer samples are passed at a time.
    """
    drawn = torch.randperm(len(samples.inputs), generator=ctx.rng)[:count].to(samples.inputs.device)
    examples = family.variety(samples.inputs, rng=ctx.rng)
    x, others = samples.inputs[drawn], ~functional.one_hot(samples.labels[drawn].long(), classes).bool()
    scores = [(said.clamp(LOST, SURE) * others).sum(1) / others.sum(0).clamp_min(1)
              for said in passed(forward, family, examples, x, ctx)]
    best = torch.cat(scores).max(0)
    return Screened(family.select(examples, best.indices), best.values)


def room(x: Tensor, ctx: Context) -> int:
    """How many samples like x [n, …] are passed at once: at most ctx.batch, on a CPU fewer of large pictures."""
    return ctx.batch if x.device.type != "cpu" else max(1, min(ctx.batch, PLACES // (x.shape[-1] * x.shape[-2])))


def portions(examples: dict[str, Tensor], x: Tensor, ctx: Context) -> tuple[Tensor, ...]:
    """The examples that are stamped on all of x [n, …] at once, as indices."""
    count = len(next(iter(examples.values())))
    return tuple(torch.arange(count, device=x.device).split(max(1, room(x, ctx) // len(x))))


@torch.no_grad()
def passed(forward: Forward, family: VariedFamily, examples: dict[str, Tensor], x: Tensor,
           ctx: Context) -> Iterator[Tensor]:
    """What the network says of samples x [n, …] under example after example: log-probabilities [some, n, classes]."""
    for members in portions(examples, x, ctx):
        ctx.spend(len(members) * len(x), backward=False)
        said = forward(family.stamp(x, family.select(examples, members)).flatten(0, 1))
        yield said.float().log_softmax(1).reshape(len(members), len(x), -1)
