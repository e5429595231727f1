"""The contract suite of data detectors: everything in the catalogue, under every check; and cheats that must be caught."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laocoon.core.cases import DataCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import DataDetector
from laocoon.detectors.data.scan_em import ScanEm
from laocoon.testing import data_checks
from laocoon.testing.twins import twins

METHODS = classes("laocoon.detectors.data", DataDetector)  # type: ignore[type-abstract]


def cases() -> Iterator[Any]:
    for method in METHODS:
        for modality in sorted(method.card.modalities):
            for check in data_checks.CHECKS:
                reason = method.card.known_failure(check.__name__, modality)
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
                marks.append(pytest.mark.xdist_group(f"data-{modality}-{method.card.name}"))
                yield pytest.param(method, modality, check, marks=marks,
                                   id=f"{method.card.name}-{modality}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "modality", "check"), list(cases()))
def test_data_detector(method: type[DataDetector], modality: str, check: data_checks.Check) -> None:
    try:
        check(data_checks.quick(method), twins(modality, method.card.goal))
    except data_checks.NotTested as reason:
        pytest.skip(str(reason))


def test_the_case_does_not_carry_the_truth() -> None:
    case = data_checks.case_of(twins("image"))
    poisoned = twins("image").implant.poisoned
    assert len(case.suspects) == len(twins("image").plan.train) and len(poisoned)
    assert not {"poisoned", "truth", "implant"} & set(vars(case))


@dataclass(frozen=True)
class Honest(ScanEm):
    """Keeps every promise; each cheat below differs from it in one thing."""


class LeavesHook(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        assert case.subject is not None
        list(case.subject.module.modules())[-1].register_forward_hook(lambda *_: None)
        return Honest.scores(self, case, ctx)


class WritesOnSamples(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        found = Honest.scores(self, case, ctx)
        case.suspects.labels[0] += 1
        return found


class MutatesWeights(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        assert case.subject is not None
        found = Honest.scores(self, case, ctx)
        next(case.subject.module.parameters()).data.mul_(1.001)
        return found


class SeedsTheWorld(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        torch.manual_seed(0)
        return Honest.scores(self, case, ctx)


class DrawsFromTheWorld(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return Honest.scores(self, case, ctx) + 1e-3 * (torch.rand(1) + random.random() + np.random.rand())


class UpsideDown(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return -Honest.scores(self, case, ctx)


class CountsFromTheFront(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return Honest.scores(self, case, ctx) + 100 * torch.arange(len(case.suspects)) / len(case.suspects)


class PaysNothing(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return Honest.scores(self, case, Context(seed=ctx.seed))


class PaysHalf(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        assert case.subject is not None
        case.subject.outputs(case.suspects.inputs)
        return Honest.scores(self, case, ctx)


class TrainsForNothing(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        assert case.untrained is not None
        case.untrained(ctx).outputs(case.suspects.inputs)
        return Honest.scores(self, case, ctx)


class GivesFewer(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return Honest.scores(self, case, ctx)[:-1]


class GivesNan(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        found = Honest.scores(self, case, ctx)
        thin = torch.bincount(case.suspects.labels).clamp_min(1).min() == 1
        return found / 0 if thin else found


class SwallowsFailure(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        try:
            return Honest.scores(self, case, ctx)
        except RuntimeError:
            return torch.zeros(len(case.suspects))


class HidesNeed(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        found = Honest.scores(self, case, ctx)
        return found if case.trusted is not None else found[:-1]


class DependsOnBatch(Honest):
    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        found = Honest.scores(self, case, ctx)
        return found if ctx.batch > 100 else found.abs().cos()


class ForgetsMisses(Honest):
    card = replace(ScanEm.card, misses="")


CHEATS: list[tuple[type[DataDetector], data_checks.Check]] = [
    (LeavesHook, data_checks.check_leaves_everything_as_found),
    (WritesOnSamples, data_checks.check_leaves_everything_as_found),
    (MutatesWeights, data_checks.check_leaves_everything_as_found),
    (SeedsTheWorld, data_checks.check_leaves_everything_as_found),
    (DrawsFromTheWorld, data_checks.check_repeats),
    (UpsideDown, data_checks.check_scores_poison_above_clean),
    (CountsFromTheFront, data_checks.check_indifferent_to_sample_order),
    (PaysNothing, data_checks.check_obeys_budget),
    (PaysHalf, data_checks.check_obeys_budget),
    (TrainsForNothing, data_checks.check_obeys_budget),
    (GivesFewer, data_checks.check_scores_are_finite_and_shaped),
    (GivesNan, data_checks.check_scores_are_finite_and_shaped),
    (SwallowsFailure, data_checks.check_does_not_hide_failures),
    (HidesNeed, data_checks.check_manages_without_extras),
    (DependsOnBatch, data_checks.check_indifferent_to_batch_size),
    (ForgetsMisses, data_checks.check_card_is_complete),
]


@pytest.mark.parametrize(("cheat", "check"), CHEATS, ids=[c.__name__ for c, _ in CHEATS])
def test_cheats_are_caught(cheat: type[DataDetector], check: data_checks.Check) -> None:
    with pytest.raises(AssertionError):
        check(cheat(), twins("image"))


@pytest.mark.parametrize("check", data_checks.CHECKS)
def test_the_honest_one_passes(check: data_checks.Check) -> None:
    check(Honest(), twins("image"))


def test_a_class_of_one_sample_is_no_reason_to_fail() -> None:
    case = data_checks.case_of(twins("image"))
    rows = torch.cat([torch.arange(60), torch.tensor([60])])
    labels = torch.cat([torch.zeros(60, dtype=torch.long), torch.ones(1, dtype=torch.long)])
    tiny = replace(case, suspects=Samples(case.suspects.inputs[rows], labels))
    for method in METHODS:
        if method.card.name in {"activation_clustering", "spectral_signatures", "spectre", "scan_em"}:
            scored = method().examine(tiny, Context())
            assert scored.scores is not None and float(scored.scores[-1]) == 0.0, method.card.name
