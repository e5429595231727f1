"""The contract suite of repairs, and repairs that break one promise each: the suite must catch every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from laocoon.core.card import Card
from laocoon.core.cases import ModelCase
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.repairs.candidate_unlearning import CandidateUnlearning
from laocoon.testing import repair_checks
from laocoon.testing.twins import twins

EDGE = "now and then: "  # how a known failure begins that depends on the last bits of a processor's arithmetic
REPAIRS = classes("laocoon.repairs", Repair)  # type: ignore[type-abstract]


def cases() -> Iterator[Any]:
    for method in REPAIRS:
        for modality in sorted(method.card.modalities):
            for check in repair_checks.CHECKS:
                reason = method.card.known_failure(check.__name__, modality)
                strict = not (reason or "").startswith(EDGE)
                marks = [pytest.mark.xfail(reason=reason, strict=strict, raises=AssertionError)] if reason else []
                marks.append(pytest.mark.xdist_group(f"repair-{modality}-{method.card.name}"))
                yield pytest.param(method, modality, check, marks=marks,
                                   id=f"{method.card.name}-{modality}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "modality", "check"), list(cases()))
def test_repair(method: type[Repair], modality: str, check: repair_checks.Check) -> None:
    check(repair_checks.quick(method), twins(modality))


def test_some_repair_keeps_every_promise() -> None:
    """Known failures are allowed one by one; a catalogue of nothing but failures is not."""
    assert any(not m.card.fails for m in REPAIRS)
    removing = [m.card.name for m in REPAIRS if m.card.known_failure("check_success_falls", "image") is None]
    assert len(removing) >= 2, f"only {removing} remove a backdoor from the twins"


@dataclass(frozen=True)
class Honest(CandidateUnlearning):
    """Keeps every promise; each cheat below differs from it in one thing."""

    card: ClassVar[Card] = replace(CandidateUnlearning.card, name="honest", quick={}, fails={})

    rate: float = CandidateUnlearning.card.quick["rate"]


class DoesNothing(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        ctx.spend(1)


class Forgets(Honest):
    """The backdoor dies with the model."""

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            for p in patient.module.parameters():
                p.mul_(0)


class HarmsTheClean(Honest):
    """Clean accuracy is lost where nothing was planted."""

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            list(patient.module.parameters())[-1][0] += 30.0


class WritesToTheOriginal(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        with torch.no_grad():
            next(case.subject.module.parameters()).mul_(1.0001)


class WritesToTheSamples(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        assert case.fit is not None
        case.fit.inputs[0] = 0


class MovesTheCandidates(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        for leaf in case.candidates[0].trigger.values():
            leaf.mul_(0.5)


class SeedsTheWorld(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        torch.manual_seed(0)
        super().operate(patient, case, ctx)


class RollsItsOwnDice(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        with torch.no_grad():
            next(patient.module.parameters()).add_(1e-4 * torch.rand(()))


class IgnoresBudget(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, Context(seed=ctx.seed))


class AccountsForHalf(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        inner = Context(seed=ctx.seed)
        super().operate(patient, case, inner)
        ctx.spend(int(inner.spent / 2))


class StaysAwake(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        patient.module.register_forward_hook(lambda *_: None)


class Exchanges(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        patient.module.add_module("more", torch.nn.Identity())


class TrustsSampleOrder(Honest):
    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        super().operate(patient, case, ctx)
        assert case.fit is not None
        with torch.no_grad():
            patient.module[-1].bias[int(case.fit.labels[:8].float().mean())] += 40.0  # type: ignore[index,operator,union-attr]


CHEATS: tuple[tuple[type[Repair], str], ...] = (
    (DoesNothing, "success_falls"),
    (Forgets, "accuracy_stays"),
    (HarmsTheClean, "harmless_on_clean"),
    (WritesToTheOriginal, "leaves_inputs_as_found"),
    (WritesToTheSamples, "leaves_inputs_as_found"),
    (MovesTheCandidates, "leaves_inputs_as_found"),
    (SeedsTheWorld, "leaves_inputs_as_found"),
    (RollsItsOwnDice, "repeats"),
    (IgnoresBudget, "obeys_budget"),
    (AccountsForHalf, "obeys_budget"),
    (StaysAwake, "hands_over_a_model_of_the_same_make"),
    (Exchanges, "hands_over_a_model_of_the_same_make"),
    (TrustsSampleOrder, "indifferent_to_sample_order"),
)


@pytest.mark.parametrize("check", repair_checks.CHECKS, ids=lambda c: c.__name__)
def test_honest_repair_passes(check: repair_checks.Check) -> None:
    check(Honest(), twins("image"))


@pytest.mark.parametrize(("cheat", "promise"), CHEATS, ids=[c.__name__ for c, _ in CHEATS])
def test_cheating_repair_is_caught(cheat: type[Repair], promise: str) -> None:
    check = {c.__name__: c for c in repair_checks.CHECKS}[f"check_{promise}"]
    with pytest.raises(AssertionError):
        check(cheat(), twins("image"))


def test_repair_that_hides_its_needs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair whose matching of needs was switched off works without them, or refuses without naming them."""
    monkeypatch.setattr("laocoon.core.methods._lacking", lambda *_: "")
    with pytest.raises(AssertionError):
        repair_checks.check_says_what_is_missing(Honest(), twins("image"))


@pytest.mark.parametrize("change", [
    {"misses": ""}, {"url": "a paper, somewhere"}, {"quick": {"stepz": 3}}, {"fails": {"check_typo": "because"}},
    {"modalities": frozenset()},
], ids=lambda c: next(iter(c)))
def test_incomplete_card_is_caught(change: dict[str, Any]) -> None:
    cheat = type("Cheat", (Honest,), {"card": replace(Honest.card, **change)})
    with pytest.raises(AssertionError):
        repair_checks.check_card_is_complete(cheat(), twins("image"))


def test_every_repair_check_catches_a_cheat() -> None:
    caught = {f"check_{promise}" for _, promise in CHEATS} | {"check_card_is_complete", "check_says_what_is_missing"}
    assert caught == {c.__name__ for c in repair_checks.CHECKS}
