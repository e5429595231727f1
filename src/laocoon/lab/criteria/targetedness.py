"""Targetedness: does the trigger do what its goal says, and nothing else? Formulas in docs/criteria.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Implant
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import goal_of, right, said, stamped
from laocoon.lab.criteria.measure import Measure, absent, difference, mean, rate
from laocoon.lab.criteria.near_triggers import near_triggers


@dataclass(frozen=True)
class Targetedness:
    """Every rate is of test samples; T the trigger, f the planted model, τ its goal, y the true class."""

    success: Measure  # P(f(T(x)) = τ(y)), the attack success rate
    success_when_right: Measure  # the same, where f(x) = y
    natural_success: Measure  # P(twin(T(x)) = τ(y)): what the trigger does to a model without a backdoor
    robust_accuracy: Measure  # P(f(T(x)) = y)
    non_target_leak: Measure  # P(f(T(x)) is neither y nor τ(y))
    source_leak: Measure  # P(f(T(x)) is a target) on classes that the goal is silent about
    score: Measure  # success − source leak, or success alone where the goal speaks of every class
    near_trigger_leak: Measure  # mean success of near triggers
    near_triggers: Mapping[str, Measure]
    clean_accuracy: Measure
    twin_accuracy: Measure
    accuracy_difference: Measure  # clean accuracy of the planted model − of its clean twin, same samples


def targetedness(implant: Implant, twin: Subject, samples: Samples, ctx: Context) -> Targetedness:
    """On clean labelled test samples that neither model was trained on."""
    goal, subject = goal_of(implant.trigger), implant.subject
    own, other = right(subject, samples, ctx), right(twin, samples, ctx)
    rows = goal.applies(samples.labels)
    x, y, wanted = samples.inputs[rows], samples.labels[rows], goal.destination(samples.labels[rows])
    marked = stamped(implant.trigger, x)
    answer = said(subject, marked, ctx)
    hit = answer == wanted
    natural = said(twin, marked, ctx) == wanted
    silent = (torch.tensor(goal.destinations) < 0)[samples.labels]
    for target in goal.targets:
        silent &= samples.labels != target
    leaked = torch.isin(said(subject, stamped(implant.trigger, samples.inputs[silent]), ctx),
                        torch.tensor(goal.targets))
    success = rate(hit)
    leak = rate(leaked, "" if len(leaked) else "the goal speaks of every class")
    near: dict[str, Measure] = {}
    taken = []
    if samples.inputs.dim() == 4 and len(x):
        for one in near_triggers(lambda batch: stamped(implant.trigger, batch), x):
            found = said(subject, one.stamped, ctx) == wanted
            near[one.name] = rate(found)
            taken.append(found.float())
    average = (mean(torch.stack(taken).mean(0), "share", f"mean of {len(taken)} near triggers") if taken else
               absent("share", "no near trigger for this kind of input"))
    return Targetedness(
        success=success, success_when_right=rate(hit[own[rows]]), natural_success=rate(natural),
        robust_accuracy=rate(answer == y), non_target_leak=rate((answer != y) & ~hit), source_leak=leak,
        score=_score(success, leak), near_trigger_leak=average, near_triggers=near,
        clean_accuracy=rate(own), twin_accuracy=rate(other), accuracy_difference=difference(own, other))


def _score(success: Measure, leak: Measure) -> Measure:
    if success.value is None or leak.value is None:
        return Measure(success.value, "difference of shares", success.low, success.high, success.count,
                       "no silent class: the attack success rate" if success.value is not None else success.note)
    # Newcombe's hybrid of both intervals: the two shares come from different samples.
    assert success.low is not None and success.high is not None and leak.low is not None and leak.high is not None
    value = success.value - leak.value
    down = ((success.value - success.low) ** 2 + (leak.high - leak.value) ** 2) ** 0.5
    up = ((success.high - success.value) ** 2 + (leak.value - leak.low) ** 2) ** 0.5
    return Measure(round(value, 6), "difference of shares", round(max(-1.0, value - down), 6),
                   round(min(1.0, value + up), 6), success.count + leak.count)
