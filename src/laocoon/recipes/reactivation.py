"""The re-activation test: how fast is a trigger learnt (again)?

A repaired model that lies close to the planted one learns its backdoor anew from a handful of poisoned samples (Min et
al., NeurIPS 2024, arXiv 2410.09838). Whether that is fast is told by a control: a clean model that is shown the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context, governed
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import spread_over
from laocoon.recipes.mending import home


@dataclass(frozen=True)
class Shots:
    """How a trigger is taught."""

    shots: int = 5  # poisoned samples, all of them in every step
    steps: int = 20
    beside: int = 27  # clean samples in every step
    rate: float = 0.01  # SGD with momentum 0.9


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is shown to every model alike: the poisoned samples, and the clean ones beside them step by step."""

    poison: Samples
    beside: tuple[Samples, ...]


def lesson(trigger: Candidate, given: Samples, ctx: Context, how: Shots) -> Lesson:
    """Drawn from clean labelled samples; NotApplicable where the goal speaks of too few of them."""
    goal = trigger.goal
    if not isinstance(goal, ClassGoal):
        raise NotApplicable(f"re-activation is tested for goals over classes, not {goal.describe()}.")
    able = goal.applies(given.labels).nonzero().flatten()
    if len(able) < how.shots:
        raise NotApplicable(f"{len(able)} samples that the goal speaks of are too few for {how.shots} shots.")
    rows = able[spread_over(given.labels[able], how.shots, ctx.rng)]
    place = next((leaf.device for leaf in trigger.trigger.values()), given.inputs.device)
    with torch.no_grad():
        stamped = trigger.stamp(given.inputs[rows].to(place)).to(given.inputs.device)
    poison = Samples(stamped, goal.destination(given.labels[rows]))
    orders = (torch.randperm(len(given), generator=ctx.rng)[:how.beside].to(given.labels.device)
              for _ in range(how.steps))
    return Lesson(poison, tuple(Samples(given.inputs[o], given.labels[o]) for o in orders))


def taught(subject: Subject, shown: Lesson, ctx: Context, how: Shots) -> Subject:
    """A copy that was shown the lesson: one step of SGD for each of its batches, with all the poison in it."""
    patient = subject.copy()
    module, place = patient.module, home(patient.module)
    module.requires_grad_(True)
    module.train()
    optimiser = torch.optim.SGD(module.parameters(), lr=how.rate, momentum=0.9)
    poison = shown.poison.to(place)
    with governed(ctx.rng):
        for beside in shown.beside:
            clean = beside.to(place)
            ctx.spend(len(poison) + len(clean))
            logits = module(torch.cat([poison.inputs, clean.inputs]))
            loss = functional.cross_entropy(logits, torch.cat([poison.labels, clean.labels]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    module.eval()
    module.requires_grad_(False)
    return patient


@dataclass(frozen=True, eq=False)
class Reactivated:
    """Success per held-out sample that the goal speaks of, bool [samples], after the lesson and before it."""

    after: Tensor
    control: Tensor  # of the clean control, after the same lesson
    before: Tensor

    @property
    def gap(self) -> float:
        """How much more often the trigger works than on the control; a removed backdoor: about 0."""
        return float(self.after.float().mean() - self.control.float().mean())


def reactivate(repaired: Subject, control: Subject, trigger: Candidate, given: Samples, held: Samples, ctx: Context,
               how: Shots | None = None) -> Reactivated:
    """Show both models the same few poisoned samples, and judge both on held-out ones.

    control: a clean model of the same task, or the best stand-in that there is; where it comes from is the caller's
    to say. `given` is used to teach, `held` to judge.
    """
    how = how or Shots()
    shown = lesson(trigger, given, ctx, how)
    after, beside = (hits(taught(s, shown, ctx, how), trigger, held, ctx) for s in (repaired, control))
    return Reactivated(after, beside, hits(repaired, trigger, held, ctx))


@torch.no_grad()
def hits(subject: Subject, trigger: Candidate, samples: Samples, ctx: Context) -> Tensor:
    """Success per sample that the goal speaks of, bool [applying]."""
    rows = trigger.goal.applies(samples.labels)
    place, found = home(subject.module), []
    for x, y in zip(samples.inputs[rows].split(ctx.batch), samples.labels[rows].split(ctx.batch), strict=True):
        ctx.spend(len(x), backward=False)
        found.append(trigger.goal.success(subject.outputs(trigger.stamp(x).to(place)), y.to(place)).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
