"""Robustness: does the backdoor outlive what is done to the model afterwards? Formulas in docs/criteria.md.

A treatment takes a subject and returns another; the one that it was given is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, NotApplicable
from laocoon.core.methods import Implant, Repair
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import hits, home, logits, right, strays
from laocoon.lab.criteria.measure import Measure, difference, rate
from laocoon.recipes.compression import prune_smallest, quantise
from laocoon.recipes.heads import linear_head
from laocoon.recipes.reactivation import Shots, lesson, taught
from laocoon.recipes.tuning import renew, tune

Treatment = Callable[[Subject, Samples, Context], Subject]


@dataclass(frozen=True)
class Schedules:
    """How hard the treatments try."""

    fine_tune_epochs: int = 20
    fine_tune_rate: float = 0.01  # SGD with momentum 0.9
    prune_share: float = 0.5
    distil_epochs: int = 60
    distil_rate: float = 3e-3  # AdamW
    temperature: float = 4.0
    head_epochs: int = 40
    head_rate: float = 1e-2  # AdamW
    shots: Shots = field(default_factory=Shots)  # of a re-activation


STANDARD = Schedules()


@dataclass(frozen=True)
class Robustness:
    before: Measure  # attack success of the planted model
    after: Mapping[str, Measure]  # attack success by treatment
    stray_before: Measure  # clean samples that go where the trigger would send them: success without a backdoor
    stray: Mapping[str, Measure]  # the same by treatment; a ruined model may send much to one class
    accuracy_before: Measure
    accuracy: Mapping[str, Measure]  # clean accuracy by treatment: a backdoor that dies with the model is not removed
    reactivated: Measure | None  # attack success after fine-tuning and a few-shot poisoned fine-tune
    reactivated_control: Measure | None  # the same done to the clean twin
    reactivation: Measure | None  # difference of the two
    skipped: Mapping[str, str]


def fine_tune(subject: Subject, samples: Samples, ctx: Context, schedules: Schedules = STANDARD) -> Subject:
    """All weights, on clean labelled samples."""
    patient = _copy(subject)
    _tune(patient, samples, ctx, epochs=schedules.fine_tune_epochs, rate=schedules.fine_tune_rate)
    return patient


def prune(subject: Subject, samples: Samples, ctx: Context, schedules: Schedules = STANDARD) -> Subject:
    """The smallest half of all weights set to zero; nothing is trained afterwards."""
    patient = _copy(subject)
    prune_smallest(patient.module, schedules.prune_share)
    return patient


def quantised(subject: Subject, samples: Samples, ctx: Context, schedules: Schedules = STANDARD) -> Subject:
    """Simulated int8, calibrated on the samples."""
    patient = _copy(subject)
    few = samples.inputs[:256].to(home(subject))
    ctx.spend(len(few), backward=False)
    quantise(patient.module, few)
    return patient


def distil(subject: Subject, samples: Samples, ctx: Context, schedules: Schedules = STANDARD,
           fresh: Callable[[Context], Subject] | None = None) -> Subject:
    """A student from random weights, taught by the subject's answers to clean samples."""
    if fresh is None:
        student = _copy(subject)
        renew(student.module, ctx.rng)
    else:
        student = fresh(ctx).copy().to(home(subject))
    place = home(subject)
    taught = logits(subject, samples.inputs, ctx).to(place)
    tune(student.module, samples.inputs.to(place), taught, ctx, epochs=schedules.distil_epochs,
         rate=schedules.distil_rate, method="adam", temperature=schedules.temperature)
    return student


def swap_head(subject: Subject, samples: Samples, ctx: Context, schedules: Schedules = STANDARD) -> Subject:
    """Transfer: the body is kept as it is, a new head is trained on clean samples."""
    patient = _copy(subject)
    name = linear_head(patient, ctx).layer
    head = dict(patient.module.named_modules())[name]
    if not isinstance(head, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise NotApplicable(f"the head {name!r} is a {type(head).__name__}, which cannot be drawn anew.")
    renew(head, ctx.rng)
    place = home(subject)
    tune(patient.module, samples.inputs.to(place), samples.labels.to(place), ctx, epochs=schedules.head_epochs,
         rate=schedules.head_rate, method="adam", only=list(head.parameters()))
    return patient


def repaired(repair: Repair) -> Treatment:
    """A repair as a treatment: it sees the model and the samples, never the truth."""

    def mend(subject: Subject, samples: Samples, ctx: Context) -> Subject:
        mended = repair.mend(ModelCase(subject, samples.to(home(subject)), None), ctx)
        if mended.subject is None:
            raise NotApplicable(mended.report.reason)
        return mended.subject

    return mend


def treatments(schedules: Schedules = STANDARD,
               fresh: Callable[[Context], Subject] | None = None) -> dict[str, Treatment]:
    """The standard ones, by the name used in tables."""
    return {
        "fine_tuning": lambda s, x, ctx: fine_tune(s, x, ctx, schedules),
        "pruning": lambda s, x, ctx: prune(s, x, ctx, schedules),
        "distillation": lambda s, x, ctx: distil(s, x, ctx, schedules, fresh),
        "quantisation": lambda s, x, ctx: quantised(s, x, ctx, schedules),
        "head_swap": lambda s, x, ctx: swap_head(s, x, ctx, schedules),
    }


def robustness(implant: Implant, twin: Subject, given: Samples, test: Samples, ctx: Context, *,
               applied: Mapping[str, Treatment], schedules: Schedules | None = None,
               progress: Callable[[float, str], None] = lambda share, note: None) -> Robustness:
    """`given`: the clean labelled samples that the defender has; `test`: others, on which success is judged.

    schedules: of the re-activation; None leaves it out.
    """
    after, stray, accuracy, skipped = {}, {}, {}, {}
    for number, (name, treatment) in enumerate(applied.items()):
        progress(number / (len(applied) + 1), name)
        try:
            patient = _applied(treatment, implant.subject, given, ctx, name)
            found = (rate(measured) for measured in (
                hits(patient, implant.trigger, test, ctx), strays(patient, implant.trigger, test, ctx),
                right(patient, test, ctx)))
            after[name], stray[name], accuracy[name] = found  # all of them or, where the budget ends, none
        except (NotApplicable, BudgetSpent) as error:
            skipped[name] = str(error)
    awake = None
    if schedules is not None:
        progress(len(applied) / (len(applied) + 1), "re-activation")
        try:
            awake = reactivate(implant, twin, given, test, ctx, schedules)
        except (NotApplicable, BudgetSpent) as error:
            skipped["reactivation"] = str(error)
    return Robustness(
        before=rate(hits(implant.subject, implant.trigger, test, ctx)), after=after,
        stray_before=rate(strays(implant.subject, implant.trigger, test, ctx)), stray=stray,
        accuracy_before=rate(right(implant.subject, test, ctx)), accuracy=accuracy,
        reactivated=awake.planted if awake else None, reactivated_control=awake.control if awake else None,
        reactivation=awake.gap if awake else None, skipped=skipped)


@dataclass(frozen=True)
class Reactivation:
    planted: Measure
    control: Measure
    gap: Measure


def reactivate(implant: Implant, twin: Subject, given: Samples, test: Samples, ctx: Context,
               schedules: Schedules) -> Reactivation:
    """Fine-tune the planted model and its clean twin alike, then show both a few poisoned samples for a few steps.

    A backdoor that was removed has to be learnt as slowly as by the twin.
    """
    shown, found = lesson(implant.trigger, given, ctx, schedules.shots), []
    for subject in (implant.subject, twin):
        patient = _applied(lambda s, x, c: fine_tune(s, x, c, schedules), subject, given, ctx, "before re-activation")
        found.append(hits(taught(patient, shown, ctx, schedules.shots), implant.trigger, test, ctx))
    return Reactivation(rate(found[0]), rate(found[1]), difference(found[0], found[1]))


def _applied(treatment: Treatment, subject: Subject, given: Samples, ctx: Context, name: str) -> Subject:
    """With its own stream of randomness, so that leaving one treatment out does not change another."""
    own = ctx.child(ctx.left, name)
    try:
        return treatment(subject, given, own)
    finally:
        ctx.spent += own.spent


def _copy(subject: Subject) -> Subject:
    if Capability.WEIGHTS not in subject.capabilities:
        raise NotApplicable("the subject's weights cannot be changed.")
    return replace(subject.copy(), graph=None)


def _tune(patient: Subject, samples: Samples, ctx: Context, *, epochs: int, rate: float) -> None:
    place = home(patient)
    tune(patient.module, samples.inputs.to(place), samples.labels.to(place), ctx, epochs=epochs, rate=rate)
