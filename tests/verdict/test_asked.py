"""Which methods, references and words belong to a model that can only be asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.report import Verdict
from laocoon.detectors.model.b3d import B3d
from laocoon.testing.twins import twins
from laocoon.verdict.asked import allowance, only_asked, qualified, reference_name
from laocoon.verdict.calibrate import shipped
from laocoon.verdict.schedule import ASKING, ORDER, STAGES, plan


def names(*arguments, **options):
    return [m.card.name for m in plan(*arguments, **options).methods]


def test_white_box_schedules_hold_no_method_that_only_asks():
    asking = {n for stage in ORDER for n in ASKING[stage]}
    assert asking == {"sparse_rs", "b3d", "aeva"}
    for budget in (*ORDER, "1000"):
        assert not asking & set(names(budget))
    assert names("quick", ["sparse_rs"]) == ["sparse_rs"]


def test_what_a_model_that_can_only_be_asked_gets():
    white = {n for stage in ORDER for n in STAGES[stage]}
    for budget, expected in (("quick", ["sparse_rs"]), ("default", ["sparse_rs"]), ("deep", ["sparse_rs", "b3d", "aeva"])):
        found = names(budget, only_asked=True)
        assert [n for n in found if n in ASKING["quick"] + ASKING["deep"]] == expected
        assert not white & set(found)


def test_only_asked():
    subject = twins("image").clean.subject
    assert not only_asked(subject) and reference_name(subject) == "image"
    for offered in ({Capability.QUERY}, {Capability.QUERY, Capability.HARD_LABEL}):
        hidden = replace(subject, capabilities=frozenset(offered))
        assert only_asked(hidden) and reference_name(hidden) == "query"
    for classes, name in ((2, "image_few"), (3, "image_few"), (4, "image_several"), (7, "image_several"),
                          (8, "image")):
        assert reference_name(replace(subject, classes=classes)) == name
    table = replace(twins("tabular").clean.subject, capabilities=frozenset({Capability.QUERY}))
    assert not only_asked(table) and reference_name(table) == "tabular"  # trees have references of their own


def test_a_local_model_keeps_its_budget_and_its_words():
    subject = twins("image").clean.subject
    assert allowance(subject, None, 123.0, 5) == 123.0
    assert qualified(subject, Verdict.NO_EVIDENCE, "nothing") == (Verdict.NO_EVIDENCE, "nothing")
    hidden = replace(subject, capabilities=frozenset({Capability.QUERY}))
    assert "small patches" in qualified(hidden, Verdict.NO_EVIDENCE, "nothing")[1]
    assert qualified(hidden, Verdict.SUSPICIOUS, "found") == (Verdict.SUSPICIOUS, "found")


def test_the_shipped_references_of_asking():
    reference = shipped("query")
    for rule in ("sparse_rs.margin", "sparse_rs.labels"):
        assert len(reference.scores(frozenset({rule}))) >= 40
    assert {row.kind for row in reference.planted} > set(reference.core)  # power is told of other kinds too
    assert not {row.digest for row in reference.clean} & {row.digest for row in reference.planted}


def test_scores_are_needed_by_b3d():
    case = twins("image").clean
    mute = replace(case.subject, capabilities=frozenset({Capability.QUERY, Capability.HARD_LABEL}))
    report = B3d().examine(ModelCase(mute, case.fit, case.held), Context())
    assert report.skipped == ("b3d",) and "labels only" in report.reason


@pytest.mark.parametrize("labels", [False, True])
def test_rules_name_what_was_answered(labels):
    from laocoon.detectors.model.sparse_rs import SparseRs

    case = twins("image").planted
    offered = {Capability.QUERY, Capability.HARD_LABEL} if labels else {Capability.QUERY}
    subject = replace(case.subject, capabilities=frozenset(offered))
    report = SparseRs(**SparseRs.card.quick).examine(ModelCase(subject, case.fit, case.held), Context())
    assert {f.rule for f in report.findings} == {"sparse_rs.labels" if labels else "sparse_rs.margin"}
    assert report.findings[0].target_classes == (3,) and report.findings[0].score > 0.5
