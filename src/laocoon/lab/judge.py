"""The judge: the one place that sees what was planted and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Implant
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import goal_of, hits, right
from laocoon.lab.criteria.measure import Measure, absent, difference, rate
from laocoon.lab.defence import Answer


@dataclass(frozen=True)
class Judged:
    """A model on test samples that neither it nor its twin was trained on; 95 % intervals over the samples."""

    success: Measure  # attack success rate
    natural_success: Measure  # of the trigger on the clean twin
    clean_accuracy: Measure
    twin_accuracy: Measure
    accuracy_difference: Measure  # clean accuracy − the twin's


def judged(implant: Implant, twin: Subject, test: Samples, ctx: Context) -> Judged:
    """Success counts the samples that the goal speaks of and that are not of the target class already."""
    own, other = right(implant.subject, test, ctx), right(twin, test, ctx)
    return Judged(rate(hits(implant.subject, implant.trigger, test, ctx)), rate(hits(twin, implant.trigger, test, ctx)),
                  rate(own), rate(other), difference(own, other))


def judged_clean(twin: Subject, test: Samples, ctx: Context) -> Judged:
    nothing = absent("share", "nothing was planted")
    accuracy = rate(right(twin, test, ctx))
    return Judged(nothing, nothing, accuracy, accuracy, absent("difference of shares", "it is the twin"))


def truth_of(implant: Implant) -> dict[str, Any]:
    """What only a judge reads of an implant; JSON-able."""
    goal = goal_of(implant.trigger)
    return {**implant.facts, "family": implant.trigger.family.name, "destinations": list(goal.destinations),
            "targets": list(goal.targets)}


def named(answer: Answer, truth: Mapping[str, Any]) -> bool | None:
    """Is the most suspected class a target? None where the defence names no class, or nothing was planted."""
    if not answer.target_classes or not truth.get("targets"):
        return None
    return answer.target_classes[0] in truth["targets"]
