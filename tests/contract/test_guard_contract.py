"""The contract suite of guards, and guards that break one promise each: the suite must catch every one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Checked, Guard
from laocoon.guards.mahalanobis import Mahalanobis
from laocoon.testing import guard_checks
from laocoon.testing.twins import twins

GUARDS = classes("laocoon.guards", Guard)  # type: ignore[type-abstract]


def cases() -> Iterator[Any]:
    for method in GUARDS:
        for modality in sorted(method.card.modalities):
            for check in guard_checks.CHECKS:
                reason = method.card.known_failure(check.__name__, modality)
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
                marks.append(pytest.mark.xdist_group(f"guard-{modality}-{method.card.name}"))
                yield pytest.param(method, modality, check, marks=marks,
                                   id=f"{method.card.name}-{modality}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "modality", "check"), list(cases()))
def test_guard(method: type[Guard], modality: str, check: guard_checks.Check) -> None:
    try:
        check(guard_checks.quick(method), twins(modality))
    except guard_checks.NotTested as reason:
        pytest.skip(str(reason))


CARD = Card(name="cheat", paper="none (2026)", url="https://example.invalid", modalities=frozenset({"image"}),
            needs=frozenset({Capability.CLEAN, Capability.FEATURES}), misses="everything", summary="breaks a promise")


@dataclass(frozen=True, eq=False)
class Bent:
    """An honest watch, bent in one place."""

    honest: Any
    cheat: Cheat
    subject: Any
    state: dict[str, Any]

    @property
    def passes(self) -> float:
        return self.honest.passes * (1000 if self.cheat.how == "unbounded" else 1)

    def check(self, batch: Tensor) -> Checked:
        how = self.cheat.how
        if how == "accepts NaN":
            batch = batch.float().nan_to_num(0, 0, 0)
        if how == "hides failures":
            try:
                said = self.honest.check(batch)
            except InputError:
                raise
            except RuntimeError:
                return Checked(torch.zeros(len(batch), 10), torch.zeros(len(batch)))
        elif how == "mixes threads":
            return self._shared(batch)
        else:
            said = self.honest.check(batch)
        if how == "further passes":
            with torch.no_grad():
                self.subject.module(batch)
        if how == "within the batch" and len(batch):
            return Checked(said.logits, said.scores - said.scores.mean())
        if how == "global randomness":
            return Checked(said.logits, said.scores + torch.randn(len(batch)))
        if how == "upside down":
            return Checked(said.logits, -said.scores)
        if how == "NaN scores":
            return Checked(said.logits, said.scores * float("nan"))
        if how == "other answers":
            return Checked(said.logits + 1, said.scores)
        if how == "hangs on a graph":
            return Checked(said.logits, said.scores * torch.ones((), requires_grad=True))
        return said

    def _shared(self, batch: Tensor) -> Checked:
        """What a hook on a shared layer does: the last who came is read by all."""
        self.state["batch"] = batch
        self.state["gate"].wait(0.002)
        said = self.honest.check(self.state["batch"])
        return said if len(said.scores) == len(batch) else self.honest.check(batch)


@dataclass(frozen=True)
class Cheat(Guard):
    how: str = ""

    card: ClassVar[Card] = CARD

    def fit(self, case: ModelCase, ctx: Context) -> Any:
        ctx = Context(seed=ctx.seed) if self.how == "ignores the budget" else ctx
        watch = Mahalanobis().fit(case, ctx)
        if self.how == "leaves a hook":
            case.subject.module.register_forward_hook(lambda *_: None)
        if self.how == "trains the model":
            next(case.subject.module.parameters()).data.mul_(1.01)
        if self.how == "needs nothing":
            object.__setattr__(self, "card", replace(CARD, needs=frozenset()))
        if self.how == "pays nothing":
            ctx.spent = 0.0
        return Bent(watch, self, case.subject, {"gate": threading.Event()})


@pytest.mark.parametrize(("how", "check"), [
    ("upside down", guard_checks.check_scores_stamped_above_clean),
    ("NaN scores", guard_checks.check_answers_as_the_model),
    ("other answers", guard_checks.check_answers_as_the_model),
    ("leaves a hook", guard_checks.check_leaves_model_alone),
    ("trains the model", guard_checks.check_leaves_model_alone),
    ("accepts NaN", guard_checks.check_refuses_bad_batches),
    ("further passes", guard_checks.check_cost_is_bounded),
    ("unbounded", guard_checks.check_cost_is_bounded),
    ("pays nothing", guard_checks.check_cost_is_bounded),
    ("global randomness", guard_checks.check_repeats),
    ("within the batch", guard_checks.check_judges_each_sample_alone),
    ("hangs on a graph", guard_checks.check_keeps_no_gradient),
    ("mixes threads", guard_checks.check_threads_do_not_mix),
    ("hides failures", guard_checks.check_survives_failures),
])
def test_cheats_are_caught(how: str, check: guard_checks.Check) -> None:
    with pytest.raises(AssertionError):
        check(Cheat(how), twins("image"))


@pytest.mark.parametrize("check", guard_checks.CHECKS[1:])
def test_the_honest_guard_inside_the_cheats_passes(check: guard_checks.Check) -> None:
    check(Cheat(""), twins("image"))
