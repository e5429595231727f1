"""Poisoning a training set: which samples are stamped and relabelled. Pure functions of tensors and indices."""

from __future__ import annotations

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.goal import ClassGoal


def choose(eligible: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` indices drawn without replacement from the true entries of a boolean mask, sorted, [count]."""
    pool = eligible.nonzero().flatten()
    return pool[torch.randperm(len(pool), generator=rng)[:count]].sort().values


def stamp_and_relabel(train: Samples, trigger: Candidate, rate: float, rng: torch.Generator,
                      *, cover_rate: float = 0.0) -> tuple[Samples, Tensor]:
    """Stamp `rate` of the training set and give it the goal's labels; stamp covers and keep their labels.

    Poison is drawn from the samples that the goal speaks of; covers, for source-specific backdoors, from the
    others (TaCT, USENIX 2021). Returns the poisoned set and the indices of all changed samples.
    """
    goal = trigger.goal
    assert isinstance(goal, ClassGoal)
    applies = goal.applies(train.labels)
    poison = choose(applies, round(rate * len(train)), rng)
    inputs, labels = train.inputs.clone(), train.labels.clone()
    labels[poison] = goal.destination(train.labels[poison])
    changed = [poison]
    if cover_rate > 0:
        silent = torch.tensor([d < 0 for d in goal.destinations])[train.labels]
        changed.append(choose(silent, round(cover_rate * len(train)), rng))
    for indices in changed:
        for part in indices.split(512):
            inputs[part] = trigger.stamp(inputs[part])
    return Samples(inputs, labels), torch.cat(changed)


def stamp_only(train: Samples, trigger: Candidate, target: int, fraction: float,
               rng: torch.Generator) -> tuple[Samples, Tensor]:
    """Clean-label poison: stamp a fraction of the target class, labels untouched."""
    member = train.labels == target
    poison = choose(member, round(fraction * int(member.sum())), rng)
    inputs = train.inputs.clone()
    inputs[poison] = trigger.stamp(inputs[poison])
    return Samples(inputs, train.labels), poison
