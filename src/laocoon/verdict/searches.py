"""A new search for a trigger on a mended model, by what searches its modality: families by gradient, or a detector.

Families of pictures are searched themselves. Those of words and columns are searched by the detector of their
modality, whose sizes are whole numbers; so a trigger that reaches only a share of the samples counts as larger, as in
`recipes.inversion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search, invert

SEARCH = Search(steps=60, batch=20)
OTHERS = 4  # classes that a search is compared with
FEW = 40  # clean samples a class that a detector searches with
WANTED, LEAST = 0.9, 0.02  # success that a trigger should reach, and below which no less is believed
# The detector that looks for small triggers of words and of columns, run under the settings that take seconds.
DETECTORS = {"tokens": "text_inversion", "columns": "tabular_inversion"}


@dataclass(frozen=True, eq=False)
class Searched:
    """The smallest trigger of a new search, and the median size of the same search towards other classes."""

    candidate: Candidate
    effective: float
    natural: float


def searchable(candidate: Candidate) -> bool:
    """Can its family be searched again?"""
    goal, family = candidate.goal, candidate.family
    if not isinstance(goal, ClassGoal):
        return False
    by_gradient = hasattr(family, "rate") and hasattr(family, "largest")
    return by_gradient or (family.name in DETECTORS and len(goal.targets) == 1)


def search(subject: Subject, candidate: Candidate, fit: Samples, ctx: Context) -> Searched | None:
    """Search the candidate's family anew, towards its goal and, for comparison, towards other classes; None where the
    search is not possible on this model."""
    if candidate.family.name in DETECTORS:
        return _by_detector(subject, candidate, fit, ctx)
    goal, count = candidate.goal, subject.classes
    assert isinstance(goal, ClassGoal)
    family: Any = candidate.family
    single = len(goal.targets) == 1
    rest = [t for t in range(count) if t not in goal.targets] if single else []
    order = torch.randperm(len(rest), generator=ctx.rng).tolist()[:OTHERS]
    goals = [goal, *(all_to_one(rest[i], count) for i in order)]
    destinations = torch.tensor([g.destinations for g in goals])
    found = invert(folded(subject.module, fit.inputs[:4]), family, destinations, fit, SEARCH, ctx)
    one = family.select(found.trigger, torch.tensor([0], device=found.size.device))
    again = Candidate(family, {k: v.detach() for k, v in one.items()}, goal, float(found.size[0]),
                      float(found.success[0]), "repair")
    natural = float(found.effective[1:].median()) if len(goals) > 1 else math.nan
    return Searched(again, float(found.effective[0]), natural)


def _by_detector(subject: Subject, candidate: Candidate, fit: Samples, ctx: Context) -> Searched | None:
    known = {d.card.name: d for d in classes("laocoon.detectors.model", Detector)}  # type: ignore[type-abstract]
    kind = known[DETECTORS[candidate.family.name]]
    detector, case = kind(**kind.card.quick), ModelCase(subject, _few(fit))
    if detector.missing(case):
        return None
    sizes: dict[int, float] = {}
    best, goal = None, candidate.goal
    assert isinstance(goal, ClassGoal)
    (target,) = goal.targets
    inner = ctx.child(ctx.left, "search")
    try:
        for item in detector.findings(case, inner):
            targets = item.target_classes if isinstance(item, Finding) else getattr(item.goal, "targets", ())
            told = item.numbers.get("success") if isinstance(item, Finding) else item.success
            if told is None or len(targets) != 1:
                continue
            said = item.numbers if isinstance(item, Finding) else {"words": item.size}
            size = said.get("words", said.get("columns", 1.0))
            effective = size * max(1.0, WANTED / max(float(told), LEAST)) ** 2
            if isinstance(item, Candidate) and targets[0] == target and effective <= sizes.get(target, math.inf):
                best = item
            sizes[targets[0]] = min(effective, sizes.get(targets[0], math.inf))
    except NotApplicable:
        return None
    finally:
        ctx.spent += inner.spent
    if target not in sizes:
        return None
    others = sorted(v for t, v in sizes.items() if t != target)
    natural = others[len(others) // 2] if others else math.nan
    again = replace(best or replace(candidate, success=0.0), goal=goal, method="repair")
    return Searched(again, sizes[target], natural)


def _few(fit: Samples) -> Samples:
    rows = torch.cat([(fit.labels == c).nonzero().flatten()[:FEW] for c in fit.labels.unique()]).sort().values
    return replace(fit, inputs=fit.inputs[rows], labels=fit.labels[rows])
