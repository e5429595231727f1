"""One trial of an attack search: plant under one seed, judge against the clean twin, ask the defence."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab.criteria.measure import Measure
from laocoon.lab.datasets import Dataset
from laocoon.lab.defence import Answer, Defence, WholeScan, examine
from laocoon.lab.judge import judged
from laocoon.lab.plan import SubjectPart
from laocoon.lab.training import Victim, lot
from laocoon.lab.transfer import Maker
from laocoon.lab.trial import fingerprint
from laocoon.recipes.transfer import adapted
from laocoon.verdict.examination import Crash, attempted

SILENT, LOUD = -20.0, 1e3  # suspicion of a defence that finds nothing at all, and of one that is certain


@dataclass(frozen=True)
class Bounds:
    """What counts as an attack, and how long to look."""

    trials: int = 30  # of all runs on one storage together
    seconds: float = math.inf  # of this run; a trial that has begun is finished
    success: float = 0.9  # least attack success rate
    accuracy_loss: float = 0.02  # most, against the clean twin of the same seed
    clean: int = 6  # clean models that suspicion is measured against
    confirm: int = 2  # fresh seeds that the best is planted again under
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("clean", 2), ("confirm", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}.", f"It is at least {least}.")
        for name in ("success", "accuracy_loss"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "It is a share between 0 and 1.")
        if not self.seconds > 0:
            raise InputError(f"seconds is {self.seconds}.", "It is more than 0.")


@dataclass(frozen=True, eq=False)
class Ground:
    """What is attacked, made seed by seed as the trial runner makes it."""

    dataset: Dataset
    subject: SubjectPart
    target: int = 0
    test_samples: int = 1000
    given_per_class: int = 20

    def facts(self) -> dict[str, Any]:
        return {"data": self.subject.data, "data_digest": fingerprint(self.dataset),
                "architecture": self.subject.architecture, "recipe": self.subject.recipe(), "target": self.target,
                "test_samples": self.test_samples, "given_per_class": self.given_per_class}

    def at(self, seed: int) -> Place:
        recipe, d = self.subject.recipe(), self.dataset
        if not 0 <= self.target < d.classes:
            raise InputError(f"target is {self.target}, and {d.name} has {d.classes} classes.", "Choose one of them.")
        channels, side = d.train_inputs.shape[1:3]
        victim = Victim(self.subject.architecture, channels, side, d.classes, seed, recipe["epochs"], recipe["shift"],
                        recipe["flip"], recipe["rate"])
        own = lot(d, seed, samples=recipe["samples"], test=self.test_samples, given_per_class=self.given_per_class)
        return Place(seed, Plan(own.train, own.test, victim.fit, self.target, d.classes, victim.untrained,
                                augment=victim.augment, prior=own.prior), own.given)


@dataclass(frozen=True, eq=False)
class Place:
    """The ground under one seed."""

    seed: int
    plan: Plan
    given: Samples  # what the defence has

    def twin(self, attack: Attack) -> Subject:
        """The clean model that differs from a planted one in what the attacker did, and in nothing else."""
        ctx = Context(seed=self.seed)
        if isinstance(attack, Maker):
            return adapted(self.plan, attack.honest(self.plan, ctx), ctx)
        return self.plan.fit(self.plan.train, ctx)

    def examined(self, subject: Subject, defence: Defence) -> Answer:
        answer = examine(subject, self.given if len(self.given) else None, defence, self.seed)
        silent = isinstance(defence, WholeScan) and answer.verdict == "INCONCLUSIVE" and answer.p_value is None
        if not answer.complete or silent:
            raise NotApplicable(f"the defence gave no answer: {answer.reason or 'it was skipped.'}")
        return answer


@dataclass(frozen=True)
class Tried:
    """One set of parameters, planted, judged and shown to the defence."""

    number: int  # of the trial; −1 for the attack as it came
    parameters: Mapping[str, Any]
    seed: int
    success: float = math.nan
    accuracy: float = math.nan
    accuracy_loss: float = math.nan  # against the clean twin
    suspicion: float = math.nan
    verdict: str = ""  # of the whole scan
    p_value: float | None = None
    feasible: bool = False
    seconds: float = 0.0
    failure: str = ""  # why there is no figure

    def shortfall(self, bounds: Bounds) -> float:
        """By how much it breaks the constraints; 0 where it is an attack."""
        return max(0.0, bounds.success - self.success) + max(0.0, self.accuracy_loss - bounds.accuracy_loss)


@dataclass(frozen=True)
class Scale:
    """What a defence's statistics look like on clean models."""

    clean: tuple[Mapping[str, float], ...]  # by rule, a model each; the whole scan's score has the rule ""

    def suspicion(self, found: Mapping[str, float], rule: str = "", without: int | None = None) -> float:
        """The largest z over rules; a rule that no two clean models have says nothing."""
        others = [c for i, c in enumerate(self.clean) if i != without]
        standard = []
        for name, value in found.items():
            values = [c[name] for c in others if name in c]
            if name and len(values) >= 2 and (not rule or name == rule):
                middle = statistics.fmean(values)
                spread = max(statistics.stdev(values), 0.05 * abs(middle), 1e-6)  # a few models may agree by chance
                standard.append((value - middle) / spread)
            elif not name:
                standard.append(value)
        return min(max(max(standard, default=SILENT), SILENT), LOUD)

    def each(self, rule: str = "") -> tuple[float, ...]:
        """The clean models, each against the others."""
        alone = len(self.clean) < 3
        return tuple(self.suspicion(c, rule, None if alone else i) for i, c in enumerate(self.clean))


def said(answer: Answer) -> dict[str, float]:
    """What is compared across models: every rule's statistic, or the whole scan's score."""
    if answer.statistics or answer.p_value is None:
        return dict(answer.statistics)
    return {"": answer.score if answer.score is not None else SILENT}


@dataclass(frozen=True, eq=False)
class Eye:
    """Attack, defence and constraints: judges one proposal after another."""

    attack: Attack
    defence: Defence
    rule: str
    bounds: Bounds
    scale: Scale
    twins: dict[int, Subject] = field(default_factory=dict)  # by seed, those trained so far

    def tried(self, ground: Ground, number: int, parameters: Mapping[str, Any], seed: int) -> Tried:
        """A crash is a failed trial, whoever crashed: foreign attacks do anything at the ends of a range."""
        start = time.monotonic()
        done = attempted(lambda: self._planted(ground.at(seed), Tried(number, dict(parameters), seed)))
        found = Tried(number, dict(parameters), seed, failure=done.reason[:300]) if isinstance(done, Crash) else done
        return replace(found, seconds=round(time.monotonic() - start, 2))

    def _planted(self, place: Place, blank: Tried) -> Tried:
        attack, ctx = replace(self.attack, **blank.parameters), Context(seed=place.seed)  # type: ignore[type-var]
        if isinstance(attack, Maker) or place.seed not in self.twins:  # a maker's twin depends on its parameters
            self.twins[place.seed] = place.twin(attack)
        implant = attack.implant(place.plan, ctx)
        truth = judged(implant, self.twins[place.seed], place.plan.test, Context(seed=place.seed))
        found = replace(blank, success=_known(truth.success), accuracy=_known(truth.clean_accuracy),
                        accuracy_loss=-_known(truth.accuracy_difference))
        found = replace(found, feasible=found.shortfall(self.bounds) <= 1e-9)
        if not found.feasible and found.number >= 0:
            return found  # no attack: what the defence thinks of it is of no interest
        answer = place.examined(implant.subject, self.defence)
        return replace(found, suspicion=self.scale.suspicion(said(answer), self.rule), verdict=answer.verdict,
                       p_value=answer.p_value)


def _known(measure: Measure) -> float:
    if measure.value is None:
        raise NotApplicable(f"nothing could be judged: {measure.note}")
    return measure.value
