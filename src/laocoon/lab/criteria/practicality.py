"""Practicality: what the attacker must have, spend and survive. Formulas in docs/criteria.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.lab.criteria.answers import goal_of, hits, need_images, said, stamped
from laocoon.lab.criteria.measure import Measure, absent, exact, rate
from laocoon.recipes.distortions import journeys

CONTROLS = ("data", "labels", "training", "weights", "architecture")
WANTED = 0.9  # success that the least rate must reach


@dataclass(frozen=True)
class Cost:
    """What planting took. passes: sample-level forward-backward passes; of the victim's training apart, where known."""

    seconds: float
    passes: float | None = None


@dataclass(frozen=True)
class Practicality:
    poisoned: Measure  # training samples that were changed
    poison_rate: Measure
    relabelled: Measure  # of them, samples whose label was changed too
    least_rate: Measure  # the least rate for 90 % success, by bisection with retraining
    controls: tuple[str, ...]  # the threat-model vector: what the attacker controls of CONTROLS
    knows: tuple[str, ...]
    control: Measure  # how many of the five
    seconds: Measure
    passes: Measure
    survival: Mapping[str, Measure]  # attack success after the stamped pictures were distorted
    stray: Mapping[str, Measure]  # the same without the trigger: what the distortion alone sends there


def practicality(implant: Implant, samples: Samples, ctx: Context, *, train: Samples | None = None,
                 cost: Cost | None = None, least: Measure | None = None) -> Practicality:
    """`train`: the training set before it was poisoned; `least`: of `least_rate`, which retrains."""
    count = len(implant.poisoned)
    threat: Mapping[str, Any] = implant.facts.get("threat", {})
    controls = tuple(c for c in CONTROLS if c in threat.get("controls", ()))
    unknown = "not told; pass Cost"
    journeyed = survival(implant, samples, ctx)
    return Practicality(
        poisoned=exact(count, "samples"), poison_rate=_poison_rate(implant, count),
        relabelled=_relabelled(implant, train),
        least_rate=least or absent("share", "not asked for: it retrains the victim at every rate that it tries"),
        controls=controls, knows=tuple(threat.get("knows", ())), control=exact(len(controls), "of 5"),
        seconds=exact(cost.seconds, "s") if cost else absent("s", unknown),
        passes=exact(cost.passes, "passes") if cost and cost.passes is not None else absent("passes", unknown),
        survival=journeyed.survival, stray=journeyed.stray)


@dataclass(frozen=True)
class Survival:
    survival: Mapping[str, Measure]
    stray: Mapping[str, Measure]


def survival(implant: Implant, samples: Samples, ctx: Context) -> Survival:
    """Success of stamped pictures after each journey, and the control: the same pictures, distorted but not stamped."""
    try:
        need_images(samples)
    except NotApplicable:
        return Survival({}, {})
    goal = goal_of(implant.trigger)
    rows = goal.applies(samples.labels)
    wanted, plain = goal.destination(samples.labels[rows]), samples.inputs[rows]
    marked = stamped(implant.trigger, plain)
    found: dict[str, Measure] = {}
    stray: dict[str, Measure] = {}
    for name, distort in journeys(min(samples.inputs.shape[-2:])).items():
        try:
            for kept, inputs in ((found, marked), (stray, plain)):
                kept[name] = rate(said(implant.subject, distort(inputs, ctx.rng), ctx) == wanted)
        except NotApplicable as error:
            found[name] = stray[name] = absent("share", str(error))
    return Survival(found, stray)


def least_rate(attack: Attack, plan: Plan, samples: Samples, ctx: Context, *, wanted: float = WANTED,
               lowest: float | None = None, tries: int = 5) -> Measure:
    """Geometric bisection over the attack's `rate`, one training run for each try, from the rate given downwards.

    value: the least rate tried that reached the wanted success; low: the largest that did not; the truth lies between
    if success grows with the rate. One run a rate: what a repetition would change is not in the interval.
    """
    if not any(f.name == "rate" for f in fields(attack)):  # type: ignore[arg-type]
        return absent("share", "the attack has no poison rate")

    def reaches(rate_tried: float, number: int) -> bool:
        own = ctx.child(ctx.left, f"least rate {number}")
        found = _success(_with_rate(attack, rate_tried), plan, samples, own)
        ctx.spent += own.spent
        return found >= wanted

    high: float = attack.rate  # type: ignore[attr-defined]
    low = lowest if lowest is not None else 1 / max(1, len(plan.train))
    if not reaches(high, 0):
        return absent("share", f"success stays under {wanted:.0%} at the attack's own rate of {high:g}")
    count = 1
    for number in range(1, tries + 1):
        middle = math.sqrt(low * high)
        if round(middle * len(plan.train)) in (round(low * len(plan.train)), round(high * len(plan.train))):
            break
        count += 1
        if reaches(middle, number):
            high = middle
        else:
            low = middle
    return Measure(round(high, 6), "share", round(low, 6), round(high, 6), count,
                   f"least rate tried with {wanted:.0%} success; low: the largest without; count: training runs")


def _with_rate(attack: Attack, value: float) -> Attack:
    changed: Attack = replace(attack, rate=value)  # type: ignore[type-var, call-arg]
    return changed


def _success(attack: Attack, plan: Plan, samples: Samples, ctx: Context) -> float:
    implant = attack.implant(plan, ctx)
    return float(hits(implant.subject, implant.trigger, samples, ctx).float().mean())


def _poison_rate(implant: Implant, count: int) -> Measure:
    given = implant.facts.get("poison_rate")
    if given is not None:
        return exact(float(given), "share")
    if implant.train is None:
        return absent("share", "the size of the training set is not known")
    return exact(count / len(implant.train), "share")


def _relabelled(implant: Implant, train: Samples | None) -> Measure:
    if implant.train is None:
        return exact(0, "samples", "nobody poisoned data")
    if train is None or len(train) != len(implant.train):
        return absent("samples", "the labels before poisoning are not at hand")
    rows = implant.poisoned
    return exact(int((implant.train.labels[rows] != train.labels[rows]).sum()), "samples")
