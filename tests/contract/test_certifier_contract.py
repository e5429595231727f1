"""The contract suite of certifiers, and certifiers that claim too much: the attacks must contradict every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from laocoon.certifiers.dpa_votes import DPAVotes
from laocoon.certifiers.patch_absence import PatchAbsence
from laocoon.certifiers.smoothing import Smoothing
from laocoon.core.card import Card
from laocoon.core.cases import ModelCase
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.testing import certifier_checks
from laocoon.testing.certifier_checks import bench

CERTIFIERS = classes("laocoon.certifiers", Certifier)  # type: ignore[type-abstract]


def cases() -> Iterator[Any]:
    for method in CERTIFIERS:
        for check in certifier_checks.CHECKS:
            reason = method.card.fails.get(check.__name__)
            marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
            marks.append(pytest.mark.xdist_group(f"certifier-{method.card.name}"))
            yield pytest.param(method, check, marks=marks,
                               id=f"{method.card.name}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "check"), list(cases()))
def test_certifier(method: type[Certifier], check: certifier_checks.Check) -> None:
    if method.card.name == "marabou_absence":
        _need_marabou()
    check(certifier_checks.quick(method), bench())


def _need_marabou() -> None:
    from importlib.util import find_spec

    if find_spec("maraboupy") is None:  # it warns when it is imported
        pytest.skip("maraboupy is not installed")


@dataclass(frozen=True)
class Trusting(PatchAbsence):
    """Believes that no patch works where its own weak search found none."""

    inputs: int = 6
    starts: int = 0
    boxes: int = 1

    card: ClassVar[Card] = replace(PatchAbsence.card, name="trusting", quick={})

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        return replace(super().certify(case, ctx), holds=True)


@dataclass(frozen=True)
class ShowsAnything(PatchAbsence):
    """Refutes with a patch that does nothing."""

    inputs: int = 6
    boxes: int = 1
    card: ClassVar[Card] = replace(PatchAbsence.card, name="shows_anything", quick={})

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        found = super().certify(case, ctx)
        return replace(found, holds=False, reason="so it seems", counterexample={"patch": torch.zeros(1, 2, 2)})


@dataclass(frozen=True)
class Generous(Smoothing):
    """Radii four times too large."""

    card: ClassVar[Card] = replace(Smoothing.card, name="generous", quick=Smoothing.card.quick)

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        found = super().certify(case, ctx)
        return replace(found, holds=True, values={**found.values, "radii": [4 * r for r in found.values["radii"]]})


@dataclass(frozen=True)
class CountsTwice(DPAVotes):
    """Says that every answer withstands a good part of the data."""

    card: ClassVar[Card] = replace(DPAVotes.card, name="counts_twice", quick={})

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        found = super().certify(case, ctx)
        return replace(found, values={**found.values, "withstands": [60] * len(found.values["withstands"])})


@dataclass(frozen=True)
class Mute(PatchAbsence):
    card: ClassVar[Card] = replace(PatchAbsence.card, name="mute", quick={})
    inputs: int = 6
    boxes: int = 1

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        return replace(super().certify(case, ctx), holds=None, reason="who knows")


class SaysNoAssumptions(Mute):
    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        return replace(super().certify(case, ctx), assumptions=())


class WritesToTheSubject(Mute):
    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        with torch.no_grad():
            next(case.subject.module.parameters()).mul_(1.0001)
        return super().certify(case, ctx)


class RollsItsOwnDice(Mute):
    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        found = super().certify(case, ctx)
        return replace(found, values={**found.values, "luck": float(torch.rand(()))})


class IgnoresBudget(Mute):
    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        return replace(super().certify(case, Context()), holds=True)


CHEATS: tuple[tuple[type[Certifier], str], ...] = (
    (Trusting, "nothing_contradicts_it"),
    (ShowsAnything, "nothing_contradicts_it"),
    (Generous, "nothing_contradicts_it"),
    (CountsTwice, "nothing_contradicts_it"),
    (Mute, "decides_something"),
    (SaysNoAssumptions, "certificates_are_complete"),
    (WritesToTheSubject, "leaves_subject_as_found"),
    (RollsItsOwnDice, "repeats"),
    (IgnoresBudget, "is_undecided_without_means"),
)


@pytest.mark.parametrize(("cheat", "promise"), CHEATS, ids=[c.__name__ for c, _ in CHEATS])
def test_cheating_certifier_is_caught(cheat: type[Certifier], promise: str) -> None:
    check = {c.__name__: c for c in certifier_checks.CHECKS}[f"check_{promise}"]
    with pytest.raises(AssertionError):
        check(certifier_checks.quick(cheat), bench())


@pytest.mark.parametrize("change", [{"misses": ""}, {"url": "a paper"}, {"quick": {"stepz": 3}},
                                    {"fails": {"check_typo": "because"}}], ids=lambda c: next(iter(c)))
def test_incomplete_card_is_caught(change: dict[str, Any]) -> None:
    cheat = type("Cheat", (Mute,), {"card": replace(Mute.card, **change)})
    with pytest.raises(AssertionError):
        certifier_checks.check_card_is_complete(cheat(), bench())


def test_every_certifier_check_catches_a_cheat() -> None:
    caught = {f"check_{promise}" for _, promise in CHEATS} | {"check_card_is_complete"}
    assert caught == {c.__name__ for c in certifier_checks.CHECKS}
