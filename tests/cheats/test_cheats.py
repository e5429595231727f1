"""Methods that break one promise each. The contract suite must catch every one of them, by the right check."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Detector, Plan
from laocoon.core.report import Finding
from laocoon.detectors.model.tabular_inversion import TabularInversion
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.testing import attack_checks, detector_checks
from laocoon.testing.twins import twins

Found = Iterator[Finding | Candidate]


@dataclass(frozen=True)
class Honest(TabularInversion):
    """Keeps every promise; each cheat below differs from it in one thing."""

    steps: int = 30

    def honest(self, case: ModelCase, ctx: Context) -> list[Finding]:
        return [f for f in TabularInversion.findings(self, case, ctx) if isinstance(f, Finding)]

    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, ctx)

    def shifted(self, case: ModelCase, ctx: Context, by: float) -> Found:
        for finding in self.honest(case, ctx):
            yield replace(finding, score=finding.score + by)


class LeavesHook(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        list(case.subject.module.modules())[-1].register_forward_hook(lambda *_: None)
        yield from self.honest(case, ctx)


class LeavesHookOnException(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        handle = list(case.subject.module.modules())[-1].register_forward_hook(lambda *_: None)
        yield from self.honest(case, ctx)
        handle.remove()


class MutatesWeights(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, ctx)
        next(case.subject.module.parameters()).data.mul_(1.0001)


class LeavesTrainMode(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, ctx)
        case.subject.module.train()


class LeavesGradients(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, ctx)
        weight = next(case.subject.module.parameters())
        weight.grad = torch.zeros_like(weight)


class SeedsTheWorld(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        torch.manual_seed(0)
        yield from self.honest(case, ctx)


class TurnsGradientsOff(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        found = self.honest(case, ctx)
        torch.set_grad_enabled(False)
        yield from found


class IgnoresBudget(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, Context(seed=ctx.seed))


class AccountsForHalf(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        inner = Context(seed=ctx.seed)
        found = self.honest(case, inner)
        ctx.spend(int(inner.spent / 2))
        yield from found


class HidesSpentBudget(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        from laocoon.core.errors import BudgetSpent

        try:
            yield from self.honest(case, ctx)
        except BudgetSpent:
            return


class GlobalRandomness(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.shifted(case, ctx, float(np.random.default_rng().random()) * 1e-3)


class TorchRandomness(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.shifted(case, ctx, float(torch.rand(())) * 1e-3)


CALLS: list[int] = []


class Remembers(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        CALLS.append(1)
        yield from self.shifted(case, ctx, len(CALLS) * 1e-3)


class UpsideDown(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        found = [f for f in self.honest(case, ctx) if isinstance(f, Finding)]
        most = max(f.score for f in found)
        yield from (replace(f, score=-most) for f in found)


class AlwaysAlarmed(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield Finding("always", "everywhere", 1.0, "one can never be too careful")


class SwallowsExceptions(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        try:
            yield from self.honest(case, ctx)
        except RuntimeError:
            return


class FavouriteClass(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        for finding in self.honest(case, ctx):
            yield replace(finding, score=finding.score + 3.0 * finding.target_classes[0])


class ReadsLayerNames(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.shifted(case, ctx, 5.0 if "head" in dict(case.subject.module.named_modules()) else 0.0)


class TrustsSampleOrder(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        assert case.fit is not None
        yield from self.shifted(case, ctx, float(case.fit.labels[:20].float().mean()) * 5)


class TrustsBatchSize(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.shifted(case, ctx, ctx.batch / 100)


class IgnoresNeeds(Honest):
    def missing(self, case: ModelCase) -> str:
        return ""


class SkipsWithoutReason(Honest):
    def missing(self, case: ModelCase) -> str:
        return super().missing(case) and "not today"


class ReportsInfinity(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        yield from self.honest(case, ctx)
        yield Finding("infinite", "somewhere", math.inf, "very suspicious")


class ReportsTensors(Honest):
    def findings(self, case: ModelCase, ctx: Context) -> Found:
        for finding in self.honest(case, ctx):
            yield replace(finding, numbers={"success": torch.tensor(0.5)})  # type: ignore[dict-item]


CHEATS: tuple[tuple[type[Detector], str], ...] = (
    (LeavesHook, "leaves_subject_as_found"),
    (LeavesHookOnException, "leaves_subject_as_found"),
    (MutatesWeights, "leaves_subject_as_found"),
    (LeavesTrainMode, "leaves_subject_as_found"),
    (LeavesGradients, "leaves_subject_as_found"),
    (SeedsTheWorld, "leaves_subject_as_found"),
    (TurnsGradientsOff, "leaves_subject_as_found"),
    (IgnoresBudget, "obeys_budget"),
    (AccountsForHalf, "obeys_budget"),
    (HidesSpentBudget, "obeys_budget"),
    (GlobalRandomness, "repeats"),
    (TorchRandomness, "repeats"),
    (Remembers, "repeats"),
    (UpsideDown, "scores_planted_above_clean"),
    (AlwaysAlarmed, "scores_planted_above_clean"),
    (SwallowsExceptions, "does_not_hide_failures"),
    (FavouriteClass, "indifferent_to_class_order"),
    (ReadsLayerNames, "indifferent_to_layer_names"),
    (TrustsSampleOrder, "indifferent_to_sample_order"),
    (TrustsBatchSize, "indifferent_to_batch_size"),
    (IgnoresNeeds, "says_what_is_missing"),
    (SkipsWithoutReason, "says_what_is_missing"),
    (ReportsInfinity, "report_round_trips"),
    (ReportsTensors, "report_round_trips"),
)


@pytest.mark.parametrize("check", detector_checks.CHECKS, ids=lambda c: c.__name__)
def test_honest_detector_passes(check: detector_checks.Check) -> None:
    check(Honest(), twins("tabular"))


@pytest.mark.parametrize(("cheat", "promise"), CHEATS, ids=[c.__name__ for c, _ in CHEATS])
def test_cheating_detector_is_caught(cheat: type[Detector], promise: str) -> None:
    check = {c.__name__: c for c in detector_checks.CHECKS}[f"check_{promise}"]
    with pytest.raises((AssertionError, TypeError)):
        check(cheat(), twins("tabular"))


def test_every_detector_check_catches_a_cheat() -> None:
    caught = {f"check_{promise}" for _, promise in CHEATS} | {"check_card_is_complete"}
    assert caught == {c.__name__ for c in detector_checks.CHECKS}


@pytest.mark.parametrize("change", [
    {"misses": ""}, {"url": "a paper, somewhere"}, {"quick": {"stepz": 3}}, {"fails": {"check_typo": "because"}},
    {"modalities": frozenset()},
], ids=lambda c: next(iter(c)))
def test_incomplete_card_is_caught(change: dict[str, Any]) -> None:
    cheat = type("Cheat", (Honest,), {"card": replace(Honest.card, **change)})
    with pytest.raises(AssertionError):
        detector_checks.check_card_is_complete(cheat(), twins("tabular"))


class LiesAboutIndices(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, poisoned = super().poison(plan, trigger, ctx)
        return train, (poisoned + 1) % len(train)


class PoisonsMore(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate * 1.5, ctx.rng)


class PoisonsInPlace(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, poisoned = super().poison(plan, trigger, ctx)
        first = poisoned[0]
        plan.train.labels[first] = 1 - plan.train.labels[first]
        UNDO.append(lambda: plan.train.labels.__setitem__(first, 1 - plan.train.labels[first]))
        return train, poisoned


UNDO: list[Any] = []


class ReturnsAnotherTrigger(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        other = TabularBadNets.trigger(self, plan, ctx)
        return stamp_and_relabel(plan.train, replace(trigger, trigger=other.trigger), self.rate, ctx.rng)


class WrongLabels(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        other = replace(trigger, goal=all_to_one(1 - plan.target, plan.classes))
        return stamp_and_relabel(plan.train, other, self.rate, ctx.rng)


class DoesNothing(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return plan.train, torch.empty(0, dtype=torch.long)


class RuinsTheModel(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, replace(trigger, trigger={
            **trigger.trigger, "mask": torch.zeros_like(trigger.trigger["mask"])}), 0.35, ctx.rng)


class RollsItsOwnDice(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, torch.Generator().manual_seed(
            int(torch.randint(0, 2**31, ()))))


class AlwaysTheSame(TabularBadNets):
    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, torch.Generator().manual_seed(0))


ATTACK_CHEATS: tuple[tuple[type[Attack], str], ...] = (
    (LiesAboutIndices, "indices_are_true"),
    (PoisonsInPlace, "indices_are_true"),
    (PoisonsMore, "poison_rate_is_exact"),
    (ReturnsAnotherTrigger, "stamps_only_what_it_says"),
    (WrongLabels, "stamps_only_what_it_says"),
    (DoesNothing, "takes_and_keeps_accuracy"),
    (RuinsTheModel, "takes_and_keeps_accuracy"),
    (RollsItsOwnDice, "repeats"),
    (AlwaysTheSame, "repeats"),
)


@pytest.mark.parametrize(("cheat", "promise"), ATTACK_CHEATS, ids=[c.__name__ for c, _ in ATTACK_CHEATS])
def test_cheating_attack_is_caught(cheat: type[Attack], promise: str) -> None:
    check = {c.__name__: c for c in attack_checks.CHECKS}[f"check_{promise}"]
    try:
        with pytest.raises(AssertionError):
            check(cheat(), twins("tabular"))
    finally:
        while UNDO:
            UNDO.pop()()


def test_every_attack_check_catches_a_cheat() -> None:
    caught = {f"check_{promise}" for _, promise in ATTACK_CHEATS} | {"check_card_is_complete"}
    assert caught == {c.__name__ for c in attack_checks.CHECKS}


def test_attack_that_needs_more_than_its_threat_model_is_caught() -> None:
    cheat = type("Cheat", (TabularBadNets,), {"threat": replace(TabularBadNets.threat, labels=False)})
    with pytest.raises(AssertionError, match="labels"):
        attack_checks.check_card_is_complete(cheat(), twins("tabular"))
