"""One attack on the survey's five criteria: every figure with its unit and interval, in one frozen record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from laocoon import __version__
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, InputError, NotApplicable
from laocoon.core.methods import Attack, Implant, Plan, Repair
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import chosen, goal_of, picked
from laocoon.lab.criteria.measure import plain, restored
from laocoon.lab.criteria.practicality import Cost, Practicality, least_rate, practicality
from laocoon.lab.criteria.resistance import (
    PANELS,
    Examined,
    Resistance,
    Scores,
    data_scores,
    examined,
    model_scores,
    resistance,
    runtime_scores,
)
from laocoon.lab.criteria.robustness import STANDARD, Robustness, Schedules, Treatment, repaired, robustness, treatments
from laocoon.lab.criteria.stealthiness import Stealthiness, stealthiness
from laocoon.lab.criteria.targetedness import Targetedness, targetedness
from laocoon.verdict.examination import Crash, attempted

SCHEMA = "laocoon-scorecard/1"
CRITERIA = ("targetedness", "stealthiness", "practicality", "resistance", "robustness")
TREATMENTS = ("fine_tuning", "pruning", "distillation", "quantisation", "head_swap")
Progress = Callable[[str, float, str], None]  # criterion, share of the whole done in [0, 1], what runs now


@dataclass(frozen=True)
class Extent:
    """What is measured, and how hard. The dear parts: `distillation`, the model panel, `least_rate` (off)."""

    criteria: tuple[str, ...] = CRITERIA
    samples: int = 512  # most test samples looked at
    given: int = 1000  # most clean samples that the defender has
    panels: tuple[str, ...] = PANELS
    treatments: tuple[str, ...] = TREATMENTS
    reactivation: bool = True
    least_rate: bool = False  # retrains the victim some six times
    least_rate_tries: int = 5
    schedules: Schedules = STANDARD

    def __post_init__(self) -> None:
        for name, allowed in (("criteria", CRITERIA), ("panels", PANELS), ("treatments", TREATMENTS)):
            wrong = sorted(set(getattr(self, name)) - set(allowed))
            if wrong:
                raise InputError(f"{name} names {', '.join(wrong)}.", f"Known: {', '.join(allowed)}.")


CHEAP = Extent(criteria=("targetedness", "stealthiness", "practicality"))  # forward passes only


@dataclass(frozen=True, eq=False)
class Material:
    """What the judge may have beside the implant and its twin. Whatever is missing leaves its figures out."""

    given: Samples | None = None  # clean labelled samples of the defender; None: half of the test samples
    train: Samples | None = None  # the training set before it was poisoned
    references: tuple[Examined, ...] = ()  # what the model panel says of other clean models; 5 % takes 18 or more
    scores: tuple[Scores, ...] = ()  # of detectors run elsewhere; they stand beside the default panel
    repairs: Mapping[str, Repair] = field(default_factory=dict)
    cost: Cost | None = None  # of planting
    attack: Attack | None = None  # both for `least_rate`; the plan also gives distillation its student
    plan: Plan | None = None


@dataclass(frozen=True)
class Scorecard:
    """Plain data; `from_dict(to_dict())` is the same card."""

    attack: str
    params: Mapping[str, Any]
    goal: str
    phase: str
    targetedness: Targetedness | None
    stealthiness: Stealthiness | None
    practicality: Practicality | None
    resistance: Resistance | None
    robustness: Robustness | None
    skipped: Mapping[str, str]  # criterion -> why it was not measured
    seed: int
    seconds: float
    spent: float  # sample-level forward-backward passes
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **_listed(plain(self))}

    def canonical(self) -> dict[str, Any]:
        """Without the times, its own and that of planting: two runs with one seed agree on this."""
        data = self.to_dict()
        data.pop("seconds")
        if data["practicality"] is not None:
            data["practicality"].pop("seconds")
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Scorecard:
        known = {k: v for k, v in data.items() if k != "schema"}
        if data.get("schema") != SCHEMA:
            raise InputError(f"the scorecard's schema is {data.get('schema')!r}.", f"This version reads {SCHEMA}.")
        kinds: dict[str, type[Any]] = {"targetedness": Targetedness, "stealthiness": Stealthiness,
                                       "practicality": Practicality, "resistance": Resistance, "robustness": Robustness}
        try:
            for name, kind in kinds.items():
                if known[name] is not None:
                    known[name] = restored(kind, known[name])
            return Scorecard(**known)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the scorecard cannot be read ({error}).", "Measure the attack again.") from None


def scorecard(implant: Implant, twin: Subject, samples: Samples, ctx: Context, *, material: Material | None = None,
              extent: Extent | None = None, progress: Progress | None = None) -> Scorecard:
    """Judge an implant against its clean twin on clean labelled test samples that neither was trained on.

    Only the judge sees both: detectors and repairs of the panels are handed the model and clean samples, no truth.
    A criterion that cannot be measured is None on the card, with the reason in `skipped`.
    """
    start, before = time.monotonic(), ctx.spent
    material, extent = material or Material(), extent or Extent()
    goal = goal_of(implant.trigger)
    if len(samples) < 2 or not samples.labelled:
        raise InputError(f"{len(samples)} labelled test samples were passed.", "The criteria need clean labelled ones.")
    test, given = _divided(samples, material, extent, ctx)
    report = progress or ctx.progress
    done: dict[str, Any] = {}
    skipped: dict[str, str] = {}

    def tell(name: str) -> Callable[[float, str], None]:
        share = extent.criteria.index(name)
        return lambda part, note: report(name, (share + part) / len(extent.criteria), note)

    makers: dict[str, Callable[[Context], Any]] = {
        "targetedness": lambda own: targetedness(implant, twin, test, own),
        "stealthiness": lambda own: stealthiness(implant, twin, test, own, train=material.train),
        "practicality": lambda own: _practicality(implant, test, material, extent, own, tell("practicality")),
        "resistance": lambda own: _resistance(implant, twin, test, given, material, extent, own, tell("resistance")),
        "robustness": lambda own: _robustness(implant, twin, test, given, material, extent, own, tell("robustness")),
    }
    silent = not bool(goal.applies(test.labels).any())
    for name in extent.criteria:
        if silent:
            skipped[name] = f"none of {len(test)} test samples is of a class that the goal speaks of; take more"
            continue
        tell(name)(0.0, "")
        own = ctx.child(ctx.left, name)  # so that leaving one criterion out does not change another
        found = _measured(makers[name], own)
        if isinstance(found, Crash):
            skipped[name] = found.reason[:300]
        else:
            done[name] = found
        ctx.spent += own.spent
    report("", 1.0, "")
    skipped |= {name: "not asked for" for name in CRITERIA if name not in extent.criteria}
    facts = implant.facts
    return Scorecard(
        attack=str(facts.get("attack", "")), params=_listed(dict(facts.get("params", {}))),
        goal=implant.trigger.goal.describe(), phase=str(facts.get("phase", "")),
        targetedness=done.get("targetedness"), stealthiness=done.get("stealthiness"),
        practicality=done.get("practicality"), resistance=done.get("resistance"), robustness=done.get("robustness"),
        skipped=skipped, seed=ctx.seed,
        seconds=round(time.monotonic() - start, 3), spent=round(ctx.spent - before, 3))


def _measured(maker: Callable[[Context], Any], ctx: Context) -> Any | Crash:
    """A criterion, or why there is none: an implant may have taken hours, and what one criterion fails with must not
    cost it."""
    def told() -> Any | Crash:
        try:
            return maker(ctx)
        except (NotApplicable, BudgetSpent) as error:
            return Crash(str(error))

    return attempted(told)


def _divided(samples: Samples, material: Material, extent: Extent, ctx: Context) -> tuple[Samples, Samples]:
    """Test samples for the judge, and clean ones for the defender: never the same."""
    rng = torch.Generator().manual_seed(ctx.seed)
    given = material.given
    if given is None:
        order = samples.labels.argsort(stable=True)  # alternately, class by class
        samples, given = picked(samples, order[::2]), picked(samples, order[1::2])
    return chosen(samples, extent.samples, rng), chosen(given, extent.given, rng)


def _practicality(implant: Implant, test: Samples, material: Material, extent: Extent, ctx: Context,
                  tell: Callable[[float, str], None]) -> Practicality:
    least = None
    if extent.least_rate:
        if material.attack is None or material.plan is None:
            raise NotApplicable("the least rate needs the attack and its plan; pass them in Material.")
        tell(0.1, "least rate")
        least = least_rate(material.attack, material.plan, test, ctx, tries=extent.least_rate_tries)
    return practicality(implant, test, ctx, train=material.train, cost=material.cost, least=least)


def _resistance(implant: Implant, twin: Subject, test: Samples, given: Samples, material: Material, extent: Extent,
                ctx: Context, tell: Callable[[float, str], None]) -> Resistance:
    found = list(material.scores)
    skipped: dict[str, str] = {}
    own = {"data": lambda: data_scores(implant, implant.subject, ctx),
           "runtime": lambda: runtime_scores(implant, test, given, ctx)}
    for number, panel in enumerate(p for p in PANELS if p in extent.panels):
        tell(number / len(PANELS), panel)
        if panel == "model":
            planted, clean = (examined(subject, given, ctx) for subject in (implant.subject, twin))
            found += model_scores((planted,), (clean, *material.references))
            skipped |= {**planted.skipped, **clean.skipped}
            continue
        try:
            made = list(own[panel]())
            if not made:
                skipped[panel] = "nobody poisoned data"
            found += made
        except (NotApplicable, BudgetSpent) as error:
            skipped[panel] = str(error)
    return resistance(found, skipped=skipped)


def _robustness(implant: Implant, twin: Subject, test: Samples, given: Samples, material: Material, extent: Extent,
                ctx: Context, tell: Callable[[float, str], None]) -> Robustness:
    plan = material.plan
    fresh = plan.fresh if plan is not None and plan.untrained is not None else None
    applied: dict[str, Treatment] = {
        k: v for k, v in treatments(extent.schedules, fresh).items() if k in extent.treatments}
    applied |= {name: repaired(repair) for name, repair in material.repairs.items()}
    return robustness(implant, twin, given, test, ctx, applied=applied,
                      schedules=extent.schedules if extent.reactivation else None, progress=tell)


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {str(k): _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


__all__ = ["CHEAP", "CRITERIA", "Cost", "Extent", "Material", "Schedules", "Scorecard", "Scores", "scorecard"]
