"""The contracts. An author of a method writes one class with a Card, fields for parameters, and one function."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, NotApplicable
from laocoon.core.report import Certificate, Finding, Report
from laocoon.core.subject import Modality, Subject


class TriggerFamily(Protocol):
    """A differentiable family of triggers with an arms axis, so that all goals are searched in one batch.

    A trigger is a dict of leaf tensors, each [arms, …]; every function treats arms independently.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str:
        """Of size()."""

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        """A starting point for inputs like `like` [n, …]."""

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        """[batch, …] or [arms, batch, …] to [arms, batch, …], in [0, 1], differentiable in the trigger."""

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        """[arms], differentiable; what the attacker wants small. `batch` for sample-dependent families."""

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        """Clamp the leaves, in place, into what an attacker can do."""

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        """The arms named by an index tensor."""


class SearchedFamily(TriggerFamily, Protocol):
    """A family that the inversion engine searches by gradient, at a scale and a step of its own."""

    @property
    def rate(self) -> float:
        """Step of a search, in the units of the leaves."""

    @property
    def scale(self) -> float:
        """A typical size, in `unit`."""

    def shrink(self, trigger: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        """The same triggers, weaker by a factor in [0, 1] per arm: the natural control at a candidate's size."""

    def largest(self, like: Tensor) -> float:
        """A size past which a trigger replaces the input rather than marks it."""


class VariedFamily(SearchedFamily, Protocol):
    """A searched family whose landscape has many valleys: a search starts from the best of many examples."""

    def variety(self, like: Tensor, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Leaves of strong examples, as different as the family allows, in the place of arms."""


class Detector(ABC):
    """Examines a model. Subclasses are frozen dataclasses and write only `findings`."""

    card: ClassVar[Card]

    @final
    def examine(self, case: ModelCase, ctx: Context) -> Report:
        """Run, account and report. Never raises for a missing need or a spent budget: it says so."""
        start, found = time.monotonic(), []
        reason, complete, skipped = self.missing(case), True, False
        if reason:
            complete, skipped = False, True
        else:
            try:
                for item in self.findings(case, ctx):
                    if isinstance(item, Candidate):
                        ctx.candidates.append(item)
                    else:
                        found.append(item)
                        ctx.progress(self.card.name, -1.0, item.explanation)
            except NotApplicable as error:
                reason, complete, skipped = str(error), False, not found
            except BudgetSpent as error:
                reason, complete = str(error), False
        return Report(
            method=self.card.name, params=asdict(self), findings=tuple(found),  # type: ignore[call-overload]
            examined=() if skipped else (self.card.name,), skipped=(self.card.name,) if skipped else (),
            reason=reason, subject=case.subject.provenance.sha256, seed=ctx.seed, spent=ctx.spent,
            seconds=time.monotonic() - start, version=__version__, complete=complete,
        )

    def missing(self, case: ModelCase) -> str:
        """Why this method cannot examine this case; empty when it can."""
        reason = _lacking(self.card, case.modality, offered_by_model(case))
        return f"{reason} Pass some with --data." if Capability.CLEAN.value in reason else reason

    @abstractmethod
    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        """Yield findings and candidates as they come; what was yielded before an error is kept."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What an attacker starts from: training data, a recipe for training, and what they want."""

    train: Samples
    test: Samples
    fit: Callable[[Samples, Context], Subject]  # the victim's training recipe, from a fresh network
    target: int = 0
    classes: int = 10
    untrained: Callable[[Context], Subject] | None = None  # the victim's network before training, a new one each call
    augment: Callable[[Tensor, Context], Tensor] | None = None  # the victim's, for attackers who train themselves
    # Transfer: what the maker of a teacher or an encoder holds. Labels are the student's; those from `classes` on are
    # of classes that only the teacher knows. Without it, `train` stands in.
    prior: Samples | None = None
    adapt: Callable[[Subject, Samples, Context], Subject] | None = None  # the victim's recipe, from a teacher on
    modality: Modality | None = None  # what attackers on text and tables must know of inputs

    def fresh(self, ctx: Context) -> Subject:
        """An untrained network of the victim's architecture, for attackers who train themselves or need a surrogate."""
        if self.untrained is None:
            raise NotApplicable("this plan has no untrained network; pass `untrained` to Plan.")
        return self.untrained(ctx)


class Knowledge(str, Enum):
    """What an attacker knows of the victim."""

    DATA = "data"  # some or all of the training samples
    ARCHITECTURE = "architecture"
    WEIGHTS = "weights"
    RECIPE = "recipe"  # optimiser, schedule, augmentation
    DEFENCE = "defence"  # that a certain defence will look


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker controls, and what they know."""

    data: bool = False
    labels: bool = False
    training: bool = False
    weights: bool = False
    architecture: bool = False
    knows: frozenset[Knowledge] = frozenset({Knowledge.DATA})

    def facts(self) -> dict[str, Any]:
        controls = [f.name for f in fields(self) if getattr(self, f.name) is True]
        return {"controls": controls, "knows": sorted(k.value for k in self.knows)}


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with its backdoor, and the trigger as it came out of training."""

    subject: Subject
    trigger: Candidate


@dataclass(frozen=True, eq=False)
class Implant:
    """What an attack returns: the artefact, and the truth that only a judge may see."""

    subject: Subject  # the model that is used: what the victim built, where the artefact is a teacher or an encoder
    trigger: Candidate  # stamps any batch; its goal says which classes are sent where
    poisoned: Tensor  # indices of training samples that were changed, [k]
    facts: Mapping[str, Any]
    train: Samples | None = None  # what the victim trained on, poison included; None where nobody poisoned data
    artefact: Subject | None = None  # the teacher or encoder that was handed over; None where it is the model itself


class Attack(ABC):
    """Plants a backdoor. Attacks on data write `trigger` and `poison`; on training, `train`; on weights, `edit`;
    on what others build upon, `student`.

    Every specimen is for measuring defences and says so in its facts.
    """

    card: ClassVar[Card]
    threat: ClassVar[ThreatModel]
    phase: ClassVar[str] = "verification"  # of the survey: verification, refinement or diversification
    crafts: ClassVar[bool] = False  # poison is optimised: it need not carry the trigger that test inputs will

    @abstractmethod
    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        """The trigger with its goal; where it is learned, its start."""

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        """The training set with poison, and the indices of the samples that were changed; by default none is."""
        return plan.train, torch.zeros(0, dtype=torch.long)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        """The trained model; by default the victim's own recipe. Attackers who learn their trigger return it."""
        return Planted(plan.fit(train, ctx), trigger)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        """What is done to the finished model; by default nothing."""
        return planted

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        """What the victim makes of a teacher or an encoder; by default the artefact is used as it is."""
        return planted

    @final
    def implant(self, plan: Plan, ctx: Context) -> Implant:
        start = self.trigger(plan, ctx)
        train, poisoned = self.poison(plan, start, ctx)
        artefact = self.edit(self.train(plan, train, start, ctx), plan, ctx)
        planted = self.student(artefact, plan, ctx)
        facts = {"attack": self.card.name, "params": asdict(self),  # type: ignore[call-overload]
                 "goal": planted.trigger.goal.describe(), "target": plan.target, "poisoned": len(poisoned),
                 "poison_rate": len(poisoned) / max(1, len(plan.train)), "seed": ctx.seed, "phase": self.phase,
                 "threat": self.threat.facts(),
                 "specimen": "a backdoored model made to measure defences; do not deploy"}
        return Implant(planted.subject, planted.trigger, poisoned, facts, train if len(poisoned) else None,
                       artefact.subject if artefact.subject is not planted.subject else None)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a data detector says: a suspicion per sample, and its report. No scores where it was skipped or stopped."""

    report: Report
    scores: Tensor | None  # [n], higher is more suspicious, finite; the order of `DataCase.suspects`


class DataDetector(ABC):
    """Judges the samples of a training set. Subclasses are frozen dataclasses and write only `scores`."""

    card: ClassVar[Card]
    unit: ClassVar[float] = 0.0  # what is a small score, where scores mean the same on every set; 0: they do not

    @final
    def examine(self, case: DataCase, ctx: Context) -> Scored:
        """Run, account and report. Never raises for a missing need or a spent budget: it says so."""
        start, scores = time.monotonic(), None
        reason, skipped = _lacking(self.card, case.modality, offered_by_data(case)), True
        if not reason:
            skipped = False
            try:
                scores = self.scores(case, ctx).detach().float().cpu()
                if scores.shape != (len(case.suspects),) or not bool(torch.isfinite(scores).all()):
                    scores, reason = None, f"{self.card.name} gave scores that are not one finite number a sample."
            except NotApplicable as error:
                reason, skipped = str(error), True
            except BudgetSpent as error:
                reason = str(error)
        return Scored(_reported(self, self.card.name, reason, skipped, "", ctx, start), scores)

    @abstractmethod
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        """Suspicion per sample, [n]; higher is more suspicious."""


def offered_by_data(case: DataCase) -> set[Capability]:
    """What a case of data offers to methods."""
    have = set() if case.subject is None else set(case.subject.capabilities)
    if case.trusted is not None and len(case.trusted):
        have.add(Capability.CLEAN)
    if case.untrained is not None:
        have.add(Capability.ARCHITECTURE)
    return have


def offered_by_model(case: ModelCase) -> set[Capability]:
    """What a case of a model offers to methods."""
    have = set(case.subject.capabilities)
    if case.fit is not None and len(case.fit):
        have.add(Capability.CLEAN)
    if case.candidates:
        have.add(Capability.CANDIDATES)
    return have


def _lacking(card: Card, modality: str, have: set[Capability]) -> str:
    """Why a method cannot run; empty when it can."""
    if modality not in card.modalities:
        return f"{card.name} works on {', '.join(sorted(card.modalities))}, not {modality}."
    lacking = sorted(c.value for c in card.needs - have)
    return f"{card.name} needs {', '.join(lacking)}." if lacking else ""


def _reported(method: Any, name: str, reason: str, skipped: bool, subject: str, ctx: Context, start: float) -> Report:
    return Report(
        method=name, params=asdict(method), findings=(), examined=() if skipped else (name,),
        skipped=(name,) if skipped else (), reason=reason, subject=subject, seed=ctx.seed, spent=ctx.spent,
        seconds=time.monotonic() - start, version=__version__, complete=not reason)


@dataclass(frozen=True, eq=False)
class Checked:
    """What a guard says of a batch: the model's own answer, which it had to compute, and a suspicion per sample."""

    logits: Tensor  # [batch, classes]
    scores: Tensor  # [batch], higher is more suspicious; never NaN


class Watch(Protocol):
    """A guard that has been fitted to a model: bounded cost, no randomness of its own, no gradient."""

    @property
    def passes(self) -> float:
        """Forward passes of the model for each sample checked, the model's own answer included."""

    def check(self, batch: Tensor) -> Checked:
        """[batch, …] canonical inputs. InputError where they are not finite or of another shape."""


class Guard(ABC):
    """Judges requests at run time, at bounded cost. Parameters are fields; what is learnt is in the `Watch`."""

    card: ClassVar[Card]

    @final
    def missing(self, case: ModelCase) -> str:
        """Why this guard cannot watch this case; empty when it can."""
        return _lacking(self.card, case.modality, offered_by_model(case))

    @abstractmethod
    def fit(self, case: ModelCase, ctx: Context) -> Watch:
        """Fitted on `case.fit` alone. The subject is left as found. NotApplicable where the model does not fit."""


@dataclass(frozen=True, eq=False)
class Mended:
    """A repaired copy, or none where the repair could not be done; the report says why."""

    subject: Subject | None
    report: Report


class Repair(ABC):
    """Mends a copy of a subject; the original is never touched."""

    card: ClassVar[Card]
    afresh: ClassVar[bool] = False  # it keeps no weight that could hold a backdoor which nobody found

    @final
    def mend(self, case: ModelCase, ctx: Context) -> Mended:
        """Run, account and report. Never raises for a missing need or a spent budget: it says so."""
        start, patient = time.monotonic(), None
        reason, skipped = _lacking(self.card, case.modality, offered_by_model(case)), True
        if not reason:
            skipped, patient = False, case.subject.copy()
            try:
                self.operate(patient, case, ctx)
                if not all(bool(torch.isfinite(p).all()) for p in patient.module.state_dict().values()):
                    reason, patient = f"{self.card.name} left weights that are not finite.", None
            except NotApplicable as error:
                reason, skipped, patient = str(error), True, None
            except BudgetSpent as error:
                reason, patient = str(error), None
        if patient is not None:
            patient.module.eval()
            patient.module.requires_grad_(False)
        origin = case.subject.provenance.sha256
        return Mended(patient, _reported(self, self.card.name, reason, skipped, origin, ctx, start))

    @abstractmethod
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        """Change the patient's module in place, with `case.fit` and, where it uses them, `case.candidates`."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model trained on data that may hold poison, or none; the report says why."""

    subject: Subject | None
    report: Report
    kept: Tensor | None = None  # indices of the samples that the trainer trusted in the end, where it chose


class Trainer(ABC):
    """Trains a model on data that may be poisoned."""

    card: ClassVar[Card]

    @final
    def train(self, case: DataCase, ctx: Context) -> Trained:
        """Run, account and report. Never raises for a missing need or a spent budget: it says so."""
        start, subject, kept = time.monotonic(), None, None
        reason, skipped = _lacking(self.card, case.modality, offered_by_data(case)), True
        if not reason:
            skipped = False
            try:
                subject, kept = self.fit(case, ctx)
            except NotApplicable as error:
                reason, skipped = str(error), True
            except BudgetSpent as error:
                reason = str(error)
        return Trained(subject, _reported(self, self.card.name, reason, skipped, "", ctx, start), kept)

    @abstractmethod
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        """The trained model and the indices of the samples that it trusted, None where it chooses none."""


class Certifier(ABC):
    """Proves a statement about a model. A certificate says what holds, under which assumptions, for which inputs."""

    card: ClassVar[Card]

    @final
    def missing(self, case: ModelCase) -> str:
        """Why this case cannot be certified; empty when it can."""
        return _lacking(self.card, case.modality, offered_by_model(case))

    @final
    def prove(self, case: ModelCase, ctx: Context) -> Certificate:
        """Run and report. Never raises for a missing need or a spent budget: such a certificate is undecided."""
        reason = self.missing(case)
        if not reason:
            try:
                return self.certify(case, ctx)
            except (NotApplicable, BudgetSpent) as error:
                reason = str(error)
        return Certificate(self.card.name, "Nothing was proven.", (), "none", None, reason=reason)

    @abstractmethod
    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        """The certificate; NotApplicable where the model or the samples do not fit."""
