"""The contract suite: everything in the catalogue, in each modality, under every check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from laocoon.core.catalogue import classes
from laocoon.core.methods import Attack, Detector
from laocoon.testing import attack_checks, detector_checks
from laocoon.testing.twins import twins

DETECTORS = classes("laocoon.detectors", Detector)  # type: ignore[type-abstract]
ATTACKS = classes("laocoon.attacks", Attack)  # type: ignore[type-abstract]
TWINS = ("image", "tabular", "text")
ENCODERS = ("image_encoder", "text_encoder")  # made by attacks on images and texts


def cases(methods: list[type], checks: tuple[Any, ...]) -> list[Any]:
    return list(each_case(methods, checks))


def each_case(methods: list[type], checks: tuple[Any, ...]) -> Iterator[Any]:
    for method in methods:
        for modality in sorted(method.card.modalities):
            for check in checks:
                reason = method.card.known_failure(check.__name__, modality)
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
                # One worker a method: its runs are cached in the process.
                marks.append(pytest.mark.xdist_group(f"{modality}-{method.card.name}"))
                yield pytest.param(method, modality, check, marks=marks,
                                   id=f"{method.card.name}-{modality}-{check.__name__.removeprefix('check_')}")


@pytest.mark.parametrize(("method", "modality", "check"), cases(DETECTORS, detector_checks.CHECKS))
def test_detector(method: type[Detector], modality: str, check: detector_checks.Check) -> None:
    assert modality in (*TWINS, *ENCODERS), f"there are no twins for {modality!r}"
    try:
        check(detector_checks.quick(method), twins(modality, method.card.goal))
    except detector_checks.NotTested as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("method", "modality", "check"), cases(ATTACKS, attack_checks.CHECKS))
def test_attack(method: type[Attack], modality: str, check: attack_checks.Check) -> None:
    assert modality in TWINS, f"there are no twins for {modality!r}"
    check(attack_checks.quick(method), twins(modality))


def test_catalogue_holds_each_modality() -> None:
    for methods in (DETECTORS, ATTACKS):
        assert set(TWINS) <= {m for method in methods for m in method.card.modalities}


@pytest.mark.parametrize(("modality", "goal"), [
    *((modality, "all-to-one") for modality in (*TWINS, *ENCODERS)), ("image", "source-to-target"),
    ("image", "all-to-all"), ("image", "whole-image")])
def test_twins_are_what_they_say(modality: str, goal: str) -> None:
    pair = twins(modality, goal)
    assert pair.success > 0.9, "the planted twin's backdoor did not take"
    floor = 0.9 if modality == "image_encoder" else 0.93  # a linear head on what was learnt without labels
    assert min(pair.accuracy, pair.planted_accuracy) > floor
    assert not hasattr(pair.planted, "implant"), "a case must not carry the truth"
