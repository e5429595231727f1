"""Margins between class scores, and their scale-free comparison over classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject

MANY = 64  # from here on one class does not move the median
FLOOR = 1e-3  # smallest ratio told apart, so that logarithms stay finite


def margin_towards(logits: Tensor, target: Tensor) -> Tensor:
    """logit of the target minus the largest other one; logits [batch, classes], target [batch] -> [batch]."""
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], float("-inf")).amax(1)
    return wanted - others


def margins(logits: Tensor) -> Tensor:
    """Margin towards every class, [batch, classes]."""
    best = logits.topk(2, 1)
    other = best.values[:, :1].expand_as(logits).clone()
    other.scatter_(1, best.indices[:, :1], best.values[:, 1:2])
    return logits - other


def log_ratio_to_rest(values: Tensor) -> Tensor:
    """log(value of a class / median value of the other classes), [classes] -> [classes].

    Free of the scale of the logits, indifferent to the order of classes, and finite: what is not positive
    counts as a small fraction of the largest value.
    """
    values = torch.nan_to_num(values, nan=0.0, neginf=0.0)
    floor = values.abs().amax().clamp_min(1e-12) * FLOOR
    return log_to_rest(values.clamp_min(floor).log())


def log_to_rest(logs: Tensor) -> Tensor:
    """Each value minus the median of the others, [classes] -> [classes]."""
    if len(logs) > MANY:
        return logs - logs.median()
    everyone = torch.arange(len(logs), device=logs.device)
    return torch.stack([logs[t] - logs[everyone != t].quantile(0.5) for t in range(len(logs))])


@dataclass(frozen=True)
class LogitScale:
    """How large this model's logits are on clean data; dividing by `margin` makes models comparable."""

    margin: float  # median margin of the predicted class over the runner-up
    accuracy: float  # share of samples predicted as labelled


def logit_scale(subject: Subject, inputs: Tensor, labels: Tensor, ctx: Context) -> LogitScale:
    """The median clean margin of the predicted class."""
    parts = []
    with torch.no_grad():
        for chunk in inputs.split(ctx.batch):
            ctx.spend(len(chunk), backward=False)
            parts.append(subject.outputs(chunk).logits.float())
    return logit_scale_of(torch.cat(parts), labels)


def logit_scale_of(logits: Tensor, labels: Tensor) -> LogitScale:
    """The same, of logits at hand."""
    best = logits.topk(2, dim=1).values
    margin = float((best[:, 0] - best[:, 1]).median())
    if not torch.isfinite(logits).all():
        raise NotApplicable("the model answers clean samples with values that are not finite.")
    if margin <= 0:
        raise NotApplicable("the model does not tell its classes apart on clean samples.")
    return LogitScale(margin, float((logits.argmax(1) == labels).float().mean()))


@dataclass(frozen=True, eq=False)
class Climb:
    """Where gradient ascent from several starts ended, one row per arm."""

    best: Tensor  # [arms] largest objective on the way
    inputs: Tensor  # [arms, …] where it ended


@dataclass(frozen=True, eq=False)
class Look:
    """One pass over the arms: their logits, and what the objective takes off (in units of the margin)."""

    logits: Tensor  # [arms, classes]
    penalty: Tensor | float = 0.0  # [arms]


def climb_margins(look: Callable[[Tensor], Look], starts: Tensor, targets: Tensor, ctx: Context, *, steps: int,
                  rate: float, patience: int = 12, gain: float = 0.01) -> Climb:
    """Maximise margin_towards(target) over the box [0, 1] from each start; starts [arms, …], targets [arms].

    Adam with a falling rate: its steps do not depend on the scale of the logits. Stops early once no arm has
    gained `gain` of its value for `patience` steps.
    """
    x = starts.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    best = torch.full((len(x),), float("-inf"), device=x.device)
    mark, idle = best.clone(), 0
    for step in range(steps):
        ctx.spend(len(x))
        x.requires_grad_(True)
        seen = look(x)
        margin = margin_towards(seen.logits.float(), targets)
        (slope,) = torch.autograd.grad((margin - seen.penalty).sum(), x)
        slope = torch.nan_to_num(slope)
        value = (margin - seen.penalty).detach()
        best = torch.maximum(best, torch.nan_to_num(value, nan=float("-inf"), posinf=float("-inf")))
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square(), 0.05)
        size = rate * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02 * rate
        move = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12)
        x = (x.detach() + size * move).clamp_(0, 1)
        moved = best > mark + gain * best.abs()
        idle = 0 if bool(moved.any()) else idle + 1
        mark = torch.where(moved, best, mark)
        if idle >= patience:
            break
    return Climb(best, x.detach())
