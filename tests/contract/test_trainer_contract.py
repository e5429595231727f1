"""The contract suite of trainers, and trainers that break one promise each: the suite must catch every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from laocoon.core.card import Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, finished, material, pupil, teach
from laocoon.testing import trainer_checks
from laocoon.testing.trainer_checks import bench
from laocoon.trainers.plain import Plain

TRAINERS = classes("laocoon.trainers", Trainer)  # type: ignore[type-abstract]


def cases() -> Iterator[Any]:
    for method in TRAINERS:
        for modality in sorted(method.card.modalities):
            for check in trainer_checks.CHECKS:
                reason = method.card.fails.get(check.__name__)
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
                marks.append(pytest.mark.xdist_group(f"trainer-{modality}-{method.card.name}"))
                yield pytest.param(method, modality, check, marks=marks,
                                   id=f"{method.card.name}-{modality}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "modality", "check"), list(cases()))
def test_trainer(method: type[Trainer], modality: str, check: trainer_checks.Check) -> None:
    if method.card.name == "dp_sgd":
        pytest.importorskip("opacus")
    check(trainer_checks.quick(method), bench(modality))


@dataclass(frozen=True)
class Honest(Trainer):
    """Has been told which samples are poison, as no trainer ever is: it keeps every promise, and each cheat below
    differs from it in one thing."""

    epochs: int = 6

    card: ClassVar[Card] = replace(Plain.card, name="honest", quick={}, fails={})

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        samples, subject = material(case, ctx), pupil(case, ctx)
        sound = torch.ones(len(samples), dtype=torch.bool)
        sound[bench().implant.poisoned] = False
        kept = sound.nonzero().flatten()
        some = Samples(samples.inputs[kept], samples.labels[kept])
        teach(subject.module, some, Lesson(self.epochs, 64, 1e-2), ctx)
        return finished(subject, "honest", {"samples": len(samples)}), kept


class LearnsNothing(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        subject, kept = super().fit(case, ctx)
        torch.nn.init.zeros_(list(subject.module.parameters())[-2])
        return subject, kept


class Believes(Honest):
    """Trains on everything, poison included."""

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        samples, subject = material(case, ctx), pupil(case, ctx)
        teach(subject.module, samples, Lesson(6, 64, 5e-3), ctx)
        return finished(subject, "cheat", {}), None


class StaysAwake(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        subject, kept = super().fit(case, ctx)
        subject.module.train()
        return subject, kept


class KeepsTwice(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        subject, kept = super().fit(case, ctx)
        assert kept is not None
        return subject, torch.cat([kept, kept[:1]])


class WritesToTheSamples(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        case.suspects.inputs[0] *= 0.999
        return super().fit(case, ctx)


class SeedsTheWorld(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        torch.manual_seed(0)
        return super().fit(case, ctx)


class RollsItsOwnDice(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        subject, kept = super().fit(case, ctx)
        with torch.no_grad():
            next(subject.module.parameters()).add_(1e-4 * torch.rand(()))
        return subject, kept


class IgnoresBudget(Honest):
    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        return super().fit(case, Context(seed=ctx.seed))


CHEATS: tuple[tuple[type[Trainer], str], ...] = (
    (LearnsNothing, "learns"),
    (Believes, "weakens_a_backdoor"),
    (StaysAwake, "hands_over_a_sound_model"),
    (KeepsTwice, "names_what_it_kept"),
    (WritesToTheSamples, "leaves_data_as_found"),
    (SeedsTheWorld, "leaves_data_as_found"),
    (RollsItsOwnDice, "repeats"),
    (IgnoresBudget, "obeys_budget"),
)


@pytest.mark.parametrize("check", trainer_checks.CHECKS, ids=lambda c: c.__name__)
def test_honest_trainer_passes(check: trainer_checks.Check) -> None:
    check(Honest(), bench())


@pytest.mark.parametrize(("cheat", "promise"), CHEATS, ids=[c.__name__ for c, _ in CHEATS])
def test_cheating_trainer_is_caught(cheat: type[Trainer], promise: str) -> None:
    check = {c.__name__: c for c in trainer_checks.CHECKS}[f"check_{promise}"]
    before = bench().implant.train
    assert before is not None
    inputs = before.inputs.clone()
    try:
        with pytest.raises(AssertionError):
            check(cheat(), bench())
    finally:
        before.inputs.copy_(inputs)  # the twins are shared by all tests of the process


def test_trainer_that_hides_its_needs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laocoon.core.methods._lacking", lambda *_: "")
    with pytest.raises(AssertionError):
        trainer_checks.check_says_what_is_missing(Honest(), bench())


@pytest.mark.parametrize("change", [{"misses": ""}, {"url": "a paper"}, {"quick": {"stepz": 3}},
                                    {"fails": {"check_typo": "because"}}], ids=lambda c: next(iter(c)))
def test_incomplete_card_is_caught(change: dict[str, Any]) -> None:
    cheat = type("Cheat", (Honest,), {"card": replace(Honest.card, **change)})
    with pytest.raises(AssertionError):
        trainer_checks.check_card_is_complete(cheat(), bench())


def test_every_trainer_check_catches_a_cheat() -> None:
    caught = {f"check_{promise}" for _, promise in CHEATS} | {"check_card_is_complete", "check_says_what_is_missing"}
    assert caught == {c.__name__ for c in trainer_checks.CHECKS}
