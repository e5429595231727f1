"""How sure a network can be made of a class by a trigger that is no stronger than it may be.

The search of Neural Cleanse asks for the smallest trigger that sends most samples to a class. Where a family is small
(a wave, a photo filter) the question turned round tells more: of all triggers up to a strength, how large is the margin
that nine samples in ten reach? Training drives the loss of stamped samples to nothing, so that a planted class is
reached by a margin as on clean samples or beyond; what lies near to a class by nature is reached by a few logits.
A family of hundreds of numbers (patches, noise) is not asked: universal adversarial perturbations (Moosavi-Dezfooli et
al., CVPR 2017) convince any network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import VariedFamily
from laocoon.recipes.inversion import Forward, Search, draw, invert
from laocoon.recipes.margins import logit_scale_of, margin_towards
from laocoon.recipes.screening import LOST, passed, portions, room

FEWEST = 0.1  # the quantile over samples that a margin is told at
SURE = 1.0  # nats that the median margin of clean samples is brought to: the scale of the logits changes nothing
NEVER = 2.0  # a success that no arm reaches: nothing is shrunk


@dataclass(frozen=True)
class Course:
    """How long each class is argued for."""

    steps: int = 24
    batch: int = 16  # samples per arm and step
    starts: int = 2  # examples of a class to go on from
    count: int = 24  # samples that the examples are passed over
    judged: int = 100  # samples, at most, that a margin is told by
    cost: float = 1.0  # of a trigger's size / scale, in nats


@dataclass(frozen=True, eq=False)
class Convinced:
    """One row per class searched.

    trigger: leaves [rows, …]; margin [rows]: what nine samples in ten reach towards the class, in median margins of
    clean samples, negative where they do not reach it; success [rows]: share of samples sent there.
    """

    trigger: dict[str, Tensor]
    margin: Tensor
    success: Tensor


def convince(forward: Forward, family: VariedFamily, samples: Samples, classes: int, course: Course, ctx: Context, *,
             choose: Callable[[Tensor], Tensor],
             note: Callable[[float, Tensor], None] | None = None) -> tuple[Tensor, Convinced]:
    """Argue for some classes; which ones, [rows], and how far each got.

    choose: makes of how far the best example of every class gets, [classes], the classes to argue for, [rows].
    Classes beside which no other has samples are left out. Memory is bounded by ctx.batch. Raises BudgetSpent before a
    pass that does not fit, and NotApplicable where the network does not tell its classes apart on clean samples.
    """
    scale = _clean_margin(forward, samples, ctx)

    def calm(x: Tensor) -> Tensor:
        return forward(x) * (SURE / scale)

    examples, scores = _promise(calm, family, samples, classes, course, ctx)
    rows = choose(scores.max(0).values)
    labels = samples.labels.cpu()
    rows = rows[(labels != rows[:, None]).any(1)]  # of a class that alone has samples nothing can be said
    starts = min(course.starts, len(scores))
    begun = scores[:, rows.to(scores.device)].topk(starts, 0).indices.T.flatten()  # class by class
    wanted = rows.repeat_interleave(starts)
    search = Search(steps=course.steps, batch=course.batch, wanted=NEVER, pressure=1.0, start=course.cost)
    found = invert(calm, family, wanted[:, None].expand(-1, classes), samples, search, ctx, note=note,
                   start={k: v.detach() for k, v in family.select(examples, begun).items()})
    trigger = {k: v.detach() for k, v in found.trigger.items()}
    margin, success = _reached(forward, family, trigger, wanted, samples, course.judged, ctx)
    best = margin.reshape(-1, starts).argmax(1)
    best = best + starts * torch.arange(len(rows), device=best.device)
    return rows, Convinced(family.select(trigger, best), margin[best] / scale, success[best])


@torch.no_grad()
def _clean_margin(forward: Forward, samples: Samples, ctx: Context) -> float:
    """The median margin of clean samples, in logits."""
    said = []
    for part in samples.inputs.split(ctx.batch):
        ctx.spend(len(part), backward=False)
        said.append(forward(part).float())
    return logit_scale_of(torch.cat(said), samples.labels).margin


@torch.no_grad()
def _promise(forward: Forward, family: VariedFamily, samples: Samples, classes: int, course: Course,
             ctx: Context) -> tuple[dict[str, Tensor], Tensor]:
    """Examples, and the mean log-probability of every class under each, less what it costs, [examples, classes]."""
    drawn = torch.randperm(len(samples), generator=ctx.rng)[:course.count].to(samples.inputs.device)
    x, others = samples.inputs[drawn], ~functional.one_hot(samples.labels[drawn].long(), classes).bool()
    examples = family.variety(samples.inputs, rng=ctx.rng)
    said = torch.cat([(part.clamp_min(LOST) * others).sum(1) / others.sum(0).clamp_min(1)
                      for part in passed(forward, family, examples, x, ctx)])
    size = torch.cat([family.size(family.select(examples, members), x) for members in portions(examples, x, ctx)])
    return examples, said - course.cost * size[:, None] / family.scale


@torch.no_grad()
def _reached(forward: Forward, family: VariedFamily, trigger: dict[str, Tensor], wanted: Tensor, samples: Samples,
             most: int, ctx: Context) -> tuple[Tensor, Tensor]:
    """The margin that nine samples in ten reach, in logits, and the share that is sent, [arms] each."""
    labels = samples.labels.cpu()
    margins, shares = [], []
    for arm, target in enumerate(wanted.tolist()):
        pool = (labels != target).nonzero().flatten()
        index = draw([pool], min(most, max(1, len(pool))), ctx.rng)[0].to(samples.inputs.device)
        ctx.spend(len(index), backward=False)
        one = family.select(trigger, torch.tensor([arm], device=samples.inputs.device))
        said = torch.cat([forward(family.stamp(part, one)[0]).float()
                          for part in samples.inputs[index].split(room(samples.inputs, ctx))])
        margin = margin_towards(said, torch.full((len(said),), target, device=said.device))
        margins.append(margin.quantile(FEWEST))
        shares.append((margin > 0).float().mean())
    return torch.stack(margins), torch.stack(shares)
