"""All target classes in one pass: arm t sends every sample to class t. Shapes are [arms, batch, …], flattened."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.margins import margin_towards

Stamp = Callable[[Shaped[Tensor, "batch ..."]], Shaped[Tensor, "arms batch ..."]]


def in_parts(samples: Samples, arms: int, ctx: Context) -> Iterator[Samples]:
    """The samples in pieces of which all arms fit into one pass."""
    size = max(1, ctx.batch // arms)
    for x, y in zip(samples.inputs.split(size), samples.labels.split(size), strict=True):
        yield Samples(x, y)


def targets(arms: int, batch: int, device: torch.device) -> Int[Tensor, " rows"]:
    """The class that each row of a flattened pass is sent to, [arms · batch]."""
    return torch.arange(arms, device=device).repeat_interleave(batch)


def losses_towards(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " batch"],
                   arms: int) -> Float[Tensor, "arms batch"]:
    """Cross-entropy towards each arm's class, zero for samples that are of it already; rows = arms · batch."""
    wanted = targets(arms, len(labels), logits.device)
    each = functional.cross_entropy(logits, wanted, reduction="none").view(arms, -1)
    return each * (labels != torch.arange(arms, device=labels.device)[:, None])


@torch.no_grad()
def stamped_margins(subject: Subject, judged: Samples, stamp: Stamp, ctx: Context) -> Float[Tensor, "arms samples"]:
    """Margin of each arm's class over the best other one on stamped samples."""
    arms, found = subject.classes, []
    for part in in_parts(judged, arms, ctx):
        ctx.spend(arms * len(part), backward=False)
        logits = subject.outputs(stamp(part.inputs).flatten(0, 1)).logits
        found.append(margin_towards(logits, targets(arms, len(part), logits.device)).view(arms, -1))
    return torch.cat(found, 1)


@torch.no_grad()
def stamped_losses(subject: Subject, fit: Samples, stamp: Stamp, ctx: Context) -> Float[Tensor, " arms"]:
    """Mean loss of each arm on stamped samples."""
    arms, total = subject.classes, torch.zeros(subject.classes, device=fit.inputs.device)
    for part in in_parts(fit, arms, ctx):
        ctx.spend(arms * len(part), backward=False)
        logits = subject.outputs(stamp(part.inputs).flatten(0, 1)).logits
        total += losses_towards(logits, part.labels, arms).sum(1)
    return total / len(fit)
