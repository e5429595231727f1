"""The transfer setting: a teacher or an encoder from elsewhere, a student on clean samples of its own.

Two questions are measured by one trial. Attacks that make the teacher or the encoder (latent, BadEncoder): does a
student that never sees the trigger obey it? Attacks on a training set (BadNets, …): does the backdoor of a poisoned
teacher survive the transfer? Every figure stands beside its control, a student of a clean teacher by the same recipe
under the same trigger. Teacher, student and test samples are disjoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab.datasets import Dataset
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.fit import predictions
from laocoon.recipes.transfer import adapted, lessons, teach, transfer


@runtime_checkable
class Maker(Protocol):
    """An attack whose artefact is a teacher or an encoder: it can also make an honest one."""

    def honest(self, plan: Plan, ctx: Context) -> Subject: ...


@dataclass(frozen=True)
class Setting:
    """Who knows which classes, and how many samples each side has."""

    data: str = "mnist"
    architecture: str = "cnn"
    new: tuple[int, ...] = (8, 9)  # classes that the teacher does not know
    keeps: bool = True  # the student has the teacher's classes too; otherwise only the new ones
    prior: int = 6000  # samples of the teacher's maker
    target_samples: int = 200  # of the target class, that the attacker has among them
    own: int = 2000  # samples of the student
    held: int = 1000  # test samples
    free: int = 1  # layers that the student trains anew, its head included
    epochs: int = 6  # of an ordinary attack's teacher
    seed: int = 0


def plan_for(setting: Setting, target: int, dataset: Dataset) -> Plan:
    """The plan of a setting; `target` is a class of the data set that the student knows."""
    known = [c for c in range(dataset.classes) if c not in setting.new]
    classes = sorted((*known, *setting.new)) if setting.keeps else list(setting.new)
    if target not in classes or len(known) < 2 or len(classes) < 2 or max(setting.new, default=0) >= dataset.classes:
        raise InputError(f"target {target} with new classes {setting.new} of {dataset.classes} in {dataset.name}.",
                         "The student must know the target; teacher and student need two classes each.")
    # In the student's label space; what only the teacher knows comes behind.
    order = classes + [c for c in known if c not in classes]
    place = torch.full((dataset.classes,), -1)
    place[torch.tensor(order)] = torch.arange(len(order))

    rng = torch.Generator().manual_seed(setting.seed)
    shuffled = torch.randperm(len(dataset.train_labels), generator=rng)
    labels = dataset.train_labels[shuffled].long()
    theirs = shuffled[torch.isin(labels, torch.tensor(known))][:setting.prior]
    wanted = shuffled[labels == target][:setting.target_samples if target in setting.new else 0]
    prior = torch.cat([theirs, wanted])
    free = torch.ones(len(dataset.train_labels), dtype=torch.bool)
    free[prior] = False
    mine = shuffled[torch.isin(labels, torch.tensor(classes))]
    own = mine[free[mine]][:setting.own]
    test = torch.isin(dataset.test_labels.long(), torch.tensor(classes)).nonzero().flatten()
    test = test[torch.randperm(len(test), generator=rng)[:setting.held]]

    def pick(inputs: Tensor, marks: Tensor, rows: Tensor) -> Samples:
        return Samples(inputs[rows].float() / 255, place[marks[rows].long()])

    train = pick(dataset.train_inputs, dataset.train_labels, own)
    channels, side = train.inputs.shape[1:3]

    def untrained(ctx: Context) -> Subject:
        module = build(setting.architecture, channels, side, len(classes), ctx.rng)
        return Subject(module, Image(), len(classes), tuple(train.inputs.shape[1:]))

    def adapt(teacher: Subject, samples: Samples, ctx: Context) -> Subject:
        return transfer(teacher, samples, len(classes), ctx, free=setting.free)

    def scratch(samples: Samples, ctx: Context) -> Subject:
        alone = Plan(samples, samples, scratch, 0, len(classes), untrained)
        return teach(alone, samples, len(classes), ctx, epochs=setting.epochs)

    return Plan(train, pick(dataset.test_inputs, dataset.test_labels, test), scratch, int(place[target]), len(classes),
                untrained, prior=pick(dataset.train_inputs, dataset.train_labels, prior), adapt=adapt)


@dataclass(frozen=True)
class Outcome:
    """One trial. Success and control are of stamped test samples of other classes that go to the target class.

    Where the student does not know the teacher's target class, they are not numbers, and what remains of the backdoor
    is how far the trigger lowers accuracy (as BadNets, 2017, measured it), against the control.
    """

    attack: str
    setting: Setting
    target: int  # in the student's label space; −1 where it does not know the class
    chance: float  # one in so many classes
    teacher_success: float  # of the artefact itself; not a number where it does not know the class
    success: float
    control: float  # the same trigger on the student of a clean teacher
    unstamped: float  # of the same samples without the trigger, on the student
    accuracy: float
    control_accuracy: float
    stamped_accuracy: float
    control_stamped_accuracy: float
    seconds: float


def trial(attack: Attack, setting: Setting, target: int, dataset: Dataset) -> Outcome:
    """Plant, transfer, measure, beside a clean teacher's student. The two differ in the teacher alone."""
    start = time.monotonic()
    made = _made(attack, plan_for(setting, target, dataset), setting) if isinstance(attack, Maker) else (
        _survived(attack, setting, target, dataset))
    student, control, trigger, test = made.student, made.control, made.trigger, made.plan.test
    return Outcome(
        attack.card.name, setting, made.target, 1 / made.plan.classes, made.teacher_success,
        _sent(student, trigger, test, made.target), _sent(control, trigger, test, made.target),
        _sent(student, None, test, made.target), _right(student, None, test), _right(control, None, test),
        _right(student, trigger, test), _right(control, trigger, test), time.monotonic() - start)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A student of the attacker's teacher, one of a clean teacher, and the truth."""

    student: Subject
    control: Subject
    trigger: Candidate
    target: int
    plan: Plan
    teacher_success: float = math.nan


def _made(attack: Attack, plan: Plan, setting: Setting) -> _Pair:
    """The artefact is the attacker's work."""
    assert isinstance(attack, Maker)
    implant = attack.implant(plan, Context(seed=setting.seed + 1))
    honest = attack.honest(plan, Context(seed=setting.seed + 1))
    control = adapted(plan, honest, Context(seed=setting.seed + 2))
    return _Pair(implant.subject, control, implant.trigger, plan.target, plan)


def _survived(attack: Attack, setting: Setting, target: int, dataset: Dataset) -> _Pair:
    """The artefact is a teacher that somebody trained on poisoned data, with a target among its own classes."""
    known = [c for c in range(dataset.classes) if c not in setting.new]
    if target not in known:
        raise InputError(f"{attack.card.name} poisons a teacher, and target class {target} is none of its classes.",
                         f"The teacher knows {', '.join(map(str, known))}.")
    plan = plan_for(setting, setting.new[0], dataset)
    lesson = lessons(plan)

    def school(samples: Samples, ctx: Context) -> Subject:
        return teach(plan, samples, lesson.classes, ctx, epochs=setting.epochs)

    # Lessons keep the order of labels, and those are the data set's own where the student keeps all classes.
    order = sorted(known) if setting.keeps else known
    theirs = Plan(lesson.known, lesson.known, school, order.index(target), lesson.classes, plan.untrained)
    implant = attack.implant(theirs, Context(seed=setting.seed + 1))
    rows = torch.arange(min(1000, len(lesson.known)))
    some = Samples(lesson.known.inputs[rows], lesson.known.labels[rows])
    return _Pair(adapted(plan, implant.subject, Context(seed=setting.seed + 2)),
                 adapted(plan, school(lesson.known, Context(seed=setting.seed + 1)), Context(seed=setting.seed + 2)),
                 implant.trigger, target if setting.keeps else -1, plan,
                 _sent(implant.subject, implant.trigger, some, theirs.target))


def _stamped(trigger: Candidate | None, inputs: Tensor) -> Tensor:
    return inputs if trigger is None else torch.cat([trigger.stamp(part) for part in inputs.split(256)])


def _sent(subject: Subject, trigger: Candidate | None, samples: Samples, target: int) -> float:
    """Share of the samples of other classes that the subject puts into the target class."""
    if target < 0:
        return math.nan
    others = samples.inputs[samples.labels != target]
    return float((predictions(subject.module, _stamped(trigger, others)) == target).float().mean())


def _right(subject: Subject, trigger: Candidate | None, samples: Samples) -> float:
    said = predictions(subject.module, _stamped(trigger, samples.inputs))
    return float((said == samples.labels).float().mean())


def markdown(outcomes: Sequence[Outcome]) -> str:
    """One row a trial, in percent."""
    head = ("| attack | data | network | new classes | seed | success | clean teacher's student | without trigger | "
            "chance | accuracy | control | stamped accuracy | control |\n" + "|---" * 13 + "|")

    def cell(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.1f}"

    rows = []
    for o in outcomes:
        s = o.setting
        new = ("+" if s.keeps else "only ") + ", ".join(map(str, s.new))
        facts = [o.attack, s.data, s.architecture, new, str(s.seed)]
        values = (o.success, o.control, o.unstamped, o.chance, o.accuracy, o.control_accuracy, o.stamped_accuracy,
                  o.control_stamped_accuracy)
        rows.append("| " + " | ".join([*facts, *map(cell, values)]) + " |")
    return "\n".join([head, *rows]) + "\n"
