"""What is left of a backdoor on a mended model, judged by what a defender has: clean samples and recovered triggers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.repaired import Drop, Rate, Reactivation, Residue
from laocoon.core.subject import Subject
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.intervals import paired_difference
from laocoon.recipes.reactivation import Shots, lesson, taught
from laocoon.verdict.searches import Searched

MOST = 1000  # samples that a trigger is judged on


@dataclass(frozen=True, eq=False)
class Split:
    """Clean samples in three disjoint parts: to mend with, to choose by, and to prove with. Stratified by class."""

    fit: Samples
    choose: Samples
    prove: Samples

    @property
    def held(self) -> Samples:
        """All that no repair was fitted on."""
        return Samples(torch.cat([self.choose.inputs, self.prove.inputs]),
                       torch.cat([self.choose.labels, self.prove.labels]), self.choose.labelled)


def split(samples: Samples, seed: int, seen: Samples | None = None) -> Split:
    """Half to mend with, a quarter each to choose and to prove; every class in every part.

    seen: samples that triggers were searched with; those go to the part to mend with, as far as there are others.
    """
    rng = torch.Generator().manual_seed(seed)
    rows: tuple[list[Tensor], ...] = ([], [], [])
    labels = samples.labels.cpu()
    used = overlap(samples, seen)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        if len(members) < 3:
            raise InputError(f"{len(members)} clean sample{'s' * (len(members) > 1)} of class {label} cannot be "
                             "divided into a part to mend with, one to choose by and one to prove with.",
                             "Pass at least 3 of each class with --data; 40 or more is better.")
        members = members[used[members].long().argsort(stable=True)]  # those that were seen come last
        quarter = max(1, len(members) // 4)
        for part, chosen in zip(rows, (members[2 * quarter:], members[quarter:2 * quarter], members[:quarter]),
                                strict=True):
            part.append(chosen)
    device = samples.inputs.device
    parts = [torch.cat(part).sort().values.to(device) for part in rows]
    return Split(*(Samples(samples.inputs[i], samples.labels[i], samples.labelled) for i in parts))


def overlap(samples: Samples, others: Samples | None) -> Tensor:
    """Which of the samples are among the others, bit by bit, [n]."""
    digests = [] if others is None else [_digest(x) for x in others.inputs.cpu()]
    known = set(digests)
    return torch.tensor([bool(known) and _digest(x) in known for x in samples.inputs.cpu()])


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).digest()


def few(samples: Samples, each: int) -> Samples:
    """At most `each` of a class, the first."""
    rows = torch.cat([(samples.labels == c).nonzero().flatten()[:each] for c in samples.labels.unique()]).sort().values
    return replace(samples, inputs=samples.inputs[rows], labels=samples.labels[rows])


def rate(hits: Tensor) -> Rate:
    found, tried = int(hits.sum()), len(hits)
    return Rate(found, tried, found / tried if tried else math.nan, *binomial_interval(found, tried))


@torch.no_grad()
def right(subject: Subject, samples: Samples, ctx: Context) -> Tensor:
    """Which samples are answered as labelled, [n]."""
    parts = []
    for x, y in zip(samples.inputs.split(ctx.batch), samples.labels.split(ctx.batch), strict=True):
        ctx.spend(len(x), backward=False)
        parts.append(subject.outputs(x).logits.argmax(-1) == y)
    return torch.cat(parts)


def dropped(before: Tensor, after: Tensor) -> Drop:
    """Clean accuracy lost between two rows of right answers on the same samples."""
    low, high = paired_difference(before.tolist(), after.tolist())
    return Drop(float(before.float().mean() - after.float().mean()), low, high)


@torch.no_grad()
def obeyed(subject: Subject, candidate: Candidate, samples: Samples, ctx: Context) -> Tensor:
    """Which of the samples that the goal speaks of go where it says when stamped, [n]."""
    applies = candidate.goal.applies(samples.labels).nonzero().flatten()[:MOST]
    x, y = samples.inputs[applies], samples.labels[applies]
    parts = [torch.zeros(0, dtype=torch.bool, device=x.device)]
    for some, labels in zip(x.split(ctx.batch), y.split(ctx.batch), strict=True):
        if len(some):
            ctx.spend(len(some), backward=False)
            parts.append(candidate.goal.success(subject.outputs(candidate.stamp(some)), labels))
    return torch.cat(parts)


def meaningless(candidate: Candidate, rng: torch.Generator) -> Candidate | None:
    """A trigger of the same family and size that no training has seen; None where there is no other of the family.

    A family that knows better says so (`other`). Else a mask is moved, and every other leaf has its values dealt out
    anew over its places; where that is not what the family means by size, it is still made of the same numbers.
    """
    other = getattr(candidate.family, "other", None)
    if other is not None:
        return replace(candidate, trigger=other(candidate.trigger, rng), method="meaningless control")
    leaves = {}
    for name, leaf in candidate.trigger.items():
        value = leaf.detach().cpu()
        if name == "mask" and value.dim() >= 3:
            h, w = value.shape[-2:]
            by = [int(torch.randint(max(1, s // 4), max(2, s - s // 4), (), generator=rng)) for s in (h, w)]
            value = value.flip(-1).roll(by, (-2, -1))
        elif value.is_floating_point() and value[0].numel() > 1:
            order = torch.randperm(value[0].numel(), generator=rng)
            value = value.flatten(1)[:, order].view_as(value)
        leaves[name] = value.to(leaf.device)
    if all(torch.equal(leaves[k], v) for k, v in candidate.trigger.items()):
        return None  # a family with one member, such as a way of writing
    return replace(candidate, trigger=leaves, method="meaningless control")


def residue(subject: Subject, candidate: Candidate, judged: Samples, ctx: Context,
            searched: Searched | None = None) -> Residue:
    """What is left of one trigger."""
    success = rate(obeyed(subject, candidate, judged, ctx))
    if searched is None:
        return Residue(success)
    return Residue(success, searched.effective, searched.candidate.success, searched.natural)


def worst(residues: Sequence[Residue]) -> float:
    """Success of the trigger that works best; 0 without any."""
    return max((r.success.value for r in residues if r.success.tried), default=0.0)


def reactivated(mended: Subject, candidate: Candidate, control: Candidate, fit: Samples, judged: Samples,
                ctx: Context) -> Reactivation:
    """The same lesson twice, on the same samples: with the trigger, and with a meaningless one in its place.

    fit: samples that the lesson is made of; judged: others, on which both triggers are tried.

    A clean model of the task, the control of the paper, is what a defender lacks; a trigger that the mended model
    never knew stands in for a model that never knew the trigger.
    """
    how, rates = Shots(), []
    seed = int(torch.randint(0, 2**31, (), generator=ctx.rng))
    for trigger in (candidate, control):
        own = Context(seed=seed, device=ctx.device)
        patient = taught(mended, lesson(trigger, fit, own, how), own, how)
        rates.append(rate(obeyed(patient, trigger, judged, own)))
        ctx.spent += own.spent
    return Reactivation(candidate.goal.describe(), how.shots, rates[0], rates[1])
