"""What a clean model is expected to score, fitted on rows as the reference file holds them."""

import json

import numpy as np
import pytest

from laocoon.lab.scales import FLOOR, LEAST, scales
from laocoon.verdict.calibrate import parse
from laocoon.verdict.fuse import fuse

RULE = "trigger_inversion.patch"


def rows(group: str, count: int, level: float, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"group": group, "classes": 10, "table": {RULE: [round(level + 0.3 * float(rng.normal()), 3), *[0.0] * 9]}}
            for _ in range(count)]


def reference(found: dict):
    return parse(json.dumps({"scales": found, "clean": [], "planted": [], "core": [], "provenance": {}}))


def test_a_group_with_enough_models_is_judged_by_its_own():
    found = scales([*rows("grey", 40, 0.5), *rows("colour", 40, 2.5)], {RULE: 0.7}, ("grey", "colour"))
    scale = reference(found).scales[RULE]
    assert scale.weight == 0.7 and set(scale.groups) == {"grey", "colour"}
    known = {"classes": 1.54}
    grey, colour = (scale.standard(level, known, group) for level, group in ((0.5, "grey"), (2.5, "colour")))
    assert abs(grey) < 0.7 and abs(colour) < 0.7
    assert scale.standard(2.5, known, "grey") > 4
    assert abs(scale.standard(1.5, known, "")) < 1.5, "what is of no group is judged by all"


def test_a_group_with_few_models_is_judged_by_all_and_few_models_give_no_scale():
    found = scales([*rows("grey", 40, 0.5), *rows("colour", LEAST - 1, 2.5)], {RULE: 1.0}, ("grey", "colour"))
    scale = reference(found).scales[RULE]
    assert set(scale.groups) == {"grey"}
    assert scale.standard(1.0, {}, "colour") == scale.standard(1.0, {}, "")
    assert scales(rows("grey", LEAST - 1, 0.5), {RULE: 1.0}) == {}


def test_models_that_all_agree_still_have_a_spread():
    alike = [{"group": "grey", "classes": 10, "table": {RULE: [0.4, *[0.0] * 9]}} for _ in range(LEAST)]
    scale = reference(scales(alike, {RULE: 1.0}, ("grey",))).scales[RULE]
    assert scale.groups["grey"].spread == FLOOR and scale.groups["grey"].location == pytest.approx(0.4)
    assert not scale.groups["grey"].slopes, "a covariate that never varies tells nothing"


def test_a_rule_that_is_silent_about_a_group_adds_nothing_there():
    both = [*rows("grey", 40, 5.0), *rows("colour", 40, 0.5)]
    heard, quiet = (reference(scales(both, {RULE: 1.0}, ("grey", "colour"), silent)) for silent in ({}, {RULE: ("grey",)}))
    table = {RULE: [8.0, *[0.0] * 9]}
    score = lambda fitted, group: fuse(table, fitted.scales, 10, group)  # noqa: E731
    assert score(heard, "grey").score > 4 and score(quiet, "grey").score == 0
    assert score(quiet, "grey").contributions == () and score(quiet, "grey").target_classes == ()
    assert score(quiet, "colour") == score(heard, "colour")
    assert quiet.scales[RULE].location == pytest.approx(0.5, abs=0.2), "grey models say nothing of the others either"


def test_what_is_seen_of_a_network_moves_what_is_expected_of_it():
    plain, normal = rows("grey", 40, 0.5, seed=1), rows("grey", 40, 2.0, seed=2)
    for each, known in ((plain, 0.0), (normal, 1.0)):
        for row in each:
            row["table"]["known.normalised"] = [known]
    scale = reference(scales([*plain, *normal], {RULE: 1.0}, ("grey",))).scales[RULE]
    for level, known in ((0.5, 0.0), (2.0, 1.0)):
        assert abs(scale.standard(level, {"classes": 1.54, "normalised": known}, "grey")) < 0.5
    assert scale.standard(2.0, {"classes": 1.54, "normalised": 0.0}, "grey") > 3
    assert 1 < scale.standard(2.0, {"classes": 1.54}, "grey") < 4, "not known: between the two"
