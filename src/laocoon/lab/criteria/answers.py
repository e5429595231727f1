"""What a subject says to clean and to stamped samples; every pass is accounted for."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import spread_over


def home(subject: Subject) -> torch.device:
    """Where the subject's weights are."""
    tensors = chain(subject.module.parameters(), subject.module.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


@torch.no_grad()
def logits(subject: Subject, inputs: Tensor, ctx: Context) -> Tensor:
    """Class scores, [n, classes], on the CPU."""
    place, parts = home(subject), []
    for part in inputs.split(ctx.batch):
        ctx.spend(len(part), backward=False)
        parts.append(subject.outputs(part.to(place)).logits.float().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, subject.classes)


def said(subject: Subject, inputs: Tensor, ctx: Context) -> Tensor:
    """Predicted classes, [n]."""
    return logits(subject, inputs, ctx).argmax(-1)


@torch.no_grad()
def stamped(trigger: Candidate, inputs: Tensor) -> Tensor:
    """The samples with the trigger on them, where the samples are."""
    place = next((leaf.device for leaf in trigger.trigger.values()), inputs.device)
    parts = [trigger.stamp(part.to(place)).to(inputs.device) for part in inputs.split(128)]
    return torch.cat(parts) if parts else inputs


def goal_of(trigger: Candidate) -> ClassGoal:
    """The goal, which the criteria need as a map of classes."""
    if not isinstance(trigger.goal, ClassGoal):
        raise NotApplicable(f"the criteria are for goals over classes, not {trigger.goal.describe()}.")
    return trigger.goal


def chosen(samples: Samples, most: int, rng: torch.Generator) -> Samples:
    """At most so many samples, evenly over the classes."""
    return samples if len(samples) <= most else picked(samples, spread_over(samples.labels, most, rng))


def picked(samples: Samples, rows: Tensor) -> Samples:
    """Some of the samples: a mask, or indices."""
    return replace(samples, inputs=samples.inputs[rows], labels=samples.labels[rows])


def hits(subject: Subject, trigger: Candidate, samples: Samples, ctx: Context) -> Tensor:
    """Success per sample that the goal speaks of, bool [applying]."""
    goal = goal_of(trigger)
    rows = goal.applies(samples.labels)
    return said(subject, stamped(trigger, samples.inputs[rows]), ctx) == goal.destination(samples.labels[rows])


def strays(subject: Subject, trigger: Candidate, samples: Samples, ctx: Context) -> Tensor:
    """The same samples without the trigger that go where it would send them, bool [applying]: the control of hits."""
    goal = goal_of(trigger)
    rows = goal.applies(samples.labels)
    return said(subject, samples.inputs[rows], ctx) == goal.destination(samples.labels[rows])


def right(subject: Subject, samples: Samples, ctx: Context) -> Tensor:
    """Clean samples predicted as labelled, bool [n]."""
    return said(subject, samples.inputs, ctx) == samples.labels


def need_images(samples: Samples) -> None:
    if samples.inputs.dim() != 4 or not samples.inputs.is_floating_point():
        raise NotApplicable("this is measured on images only.")
