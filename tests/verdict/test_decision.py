"""What a verdict means, one rule at a time, on references made for the test."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from laocoon.core.cases import Samples
from laocoon.core.errors import InputError
from laocoon.core.report import Finding, Report, Verdict
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.verdict import scan as scanning
from laocoon.verdict.calibrate import Profile, Reference, calibrate, group_of, parse, widening
from laocoon.verdict.examination import Examined, Prepared, prepare
from laocoon.verdict.fuse import Fused, Scale, contrasted, covariates, fuse, statistics


def reference(clean_scores, planted_scores=(), rule="trigger_inversion.patch"):
    row = lambda i, v, kind: {  # noqa: E731
        "digest": f"{kind}{i}", "data": "digits", "architecture": "cnn", "kind": kind, "classes": 10,
        "table": {rule: [v] + [0.0] * 9}, "attack_success": 1.0, "targets": [0]}
    return parse(json.dumps({
        "scales": {rule: [0.3, 0.2, 1.0, {}, {}]}, "core": ["patch"], "provenance": {},
        "clean": [row(i, v, "clean") for i, v in enumerate(clean_scores)],
        "planted": [row(i, v, "patch") for i, v in enumerate(planted_scores)]}))


CLEAN = [0.1 + 0.005 * i for i in range(99)]
GOOD = reference(CLEAN, [3.0] * 30)


def report(score, *, complete=True, skipped=False, reason="", method="trigger_inversion"):
    finding = Finding(f"{method}.patch", "class 3", score, "made for the test", (3,))
    return Report(method, {}, () if skipped else (finding,), () if skipped else (method,),
                  (method,) if skipped else (), reason, "", 0, 10.0, 0.1, "0", complete)


class Net(nn.Module):
    """Tells ten classes apart by one pixel each."""

    def forward(self, x):
        return x.flatten(1)[:, :10] * 10


def subject():
    return Subject(Net(), Image(), 10, (1, 4, 4))


def samples(n=100, scale=1.0):
    labels = torch.arange(n) % 10
    inputs = torch.zeros(n, 1, 4, 4)
    inputs.view(n, -1)[torch.arange(n), labels] = scale
    return Samples(inputs, labels)


@pytest.fixture
def answer(monkeypatch):
    def run(*reports, refs=GOOD, data=True, **options):
        monkeypatch.setattr(scanning, "run", lambda *a, **k: Examined(tuple(reports), ()))
        return scanning.scan(subject(), samples() if data is True else data, reference=refs, **options)

    return run


def test_a_score_above_every_reference_is_suspicious(answer):
    said = answer(report(3.0))
    assert said.verdict is Verdict.SUSPICIOUS and said.p_value == 1 / 100 and said.exit_code == 1
    assert said.target_classes[0] == 3


def test_an_ordinary_score_is_no_evidence_with_power_beside_it(answer):
    said = answer(report(0.2))
    assert said.verdict is Verdict.NO_EVIDENCE and said.exit_code == 0
    assert said.power and said.power[0].found == 30


def test_a_crash_is_inconclusive(answer):
    said = answer(report(0.2), report(0.0, complete=False, skipped=True, reason="ban failed: ValueError: x", method="ban"))
    assert said.verdict is Verdict.INCONCLUSIVE and "ban" in said.reason and said.exit_code == 3


def test_a_spent_budget_is_inconclusive(answer):
    said = answer(report(0.2, complete=False, reason="the budget of 10 passes is spent."))
    assert said.verdict is Verdict.INCONCLUSIVE


def test_a_missing_core_method_is_inconclusive(answer):
    said = answer(report(0.2, complete=False, skipped=True, reason="trigger_inversion needs clean samples."))
    assert said.verdict is Verdict.INCONCLUSIVE and "needs clean samples" in said.reason


def test_little_power_is_inconclusive(answer):
    said = answer(report(0.2), refs=reference(CLEAN, [3.0] * 2 + [0.1] * 20))
    assert said.verdict is Verdict.INCONCLUSIVE and "power" in said.reason


def test_an_alpha_finer_than_the_references_is_inconclusive(answer):
    assert answer(report(3.0), alpha=0.005).verdict is Verdict.INCONCLUSIVE


def test_a_proof_needs_no_reference(answer):
    proof = Finding("graph.constant", "the graph", 9.0, "a trigger constant", (), conclusive=True)
    said = answer(Report("architectural_backdoor", {}, (proof,), ("architectural_backdoor",), (), "", "", 0, 0, 0, "0"))
    assert said.verdict is Verdict.SUSPICIOUS and "trigger constant" in said.reason


def test_a_model_at_chance_gets_the_likely_cause_and_no_verdict(answer):
    bright = Samples(1 - samples().inputs, samples().labels)
    said = answer(report(3.0), data=bright)
    assert said.verdict is Verdict.INCONCLUSIVE and "inverted" in said.reason


@pytest.mark.parametrize("alpha", [0, 1, -1, float("nan"), "0.05"])
def test_alpha_must_be_a_rate(answer, alpha):
    with pytest.raises(InputError, match="alpha"):
        answer(report(0.2), alpha=alpha)


def test_no_profile_no_p_value():
    fused = fuse({"trigger_inversion.patch": [3.0]}, GOOD.scales, 2)
    p, _ = calibrate(fused, frozenset({"trigger_inversion.patch"}), Profile("image", 2, 20, 1.0), GOOD, "x")
    assert p is None


def test_references_of_few_classes_speak_for_theirs_alone():
    few = replace(GOOD, clean=tuple(replace(row, classes=2 + i % 2) for i, row in enumerate(GOOD.clean)))
    for classes, inside in ((2, True), (3, True), (4, False), (10, False)):
        assert (widening(Profile("image", classes, 20, 0.9), few) == (1.0, "")) is inside
    for classes, inside in ((3, False), (7, False), (8, True), (1000, True), (1001, False)):
        assert math.isfinite(widening(Profile("image", classes, 20, 0.9), GOOD)[0]) is inside
    several = replace(GOOD, clean=tuple(replace(row, classes=4 + i % 4) for i, row in enumerate(GOOD.clean)))
    for classes, inside in ((3, False), (4, True), (7, True), (8, False)):
        assert (widening(Profile("image", classes, 20, 0.9), several) == (1.0, "")) is inside
    assert widening(Profile("image", 2, 20, 0.9), replace(GOOD, clean=()))[0] == math.inf


def test_far_from_the_references_p_is_widened_never_narrowed():
    assert widening(Profile("image", 10, 20, 0.9), GOOD) == (1.0, "")
    for profile in (Profile("image", 200, 20, 0.9), Profile("image", 10, 5, 0.9), Profile("image", 10, 20, 0.2)):
        assert widening(profile, GOOD)[0] > 1


def test_the_null_is_restricted_to_the_rules_that_ran():
    other = reference([9.0] * 99, rule="other.rule")
    fused = fuse({"trigger_inversion.patch": [3.0] + [0.0] * 9}, GOOD.scales, 10)
    p, _ = calibrate(fused, frozenset({"trigger_inversion.patch"}), Profile("image", 10, 20, 1.0), other, "x")
    assert p == 1 / 100


def test_fusion_adds_what_points_to_one_class_and_not_what_points_apart():
    scales = {"a.x": Scale(0, 1), "b.x": Scale(0, 1)}
    same = fuse({"a.x": [3.0, 0, 0], "b.x": [3.0, 0, 0]}, scales, 3)
    apart = fuse({"a.x": [3.0, 0, 0], "b.x": [0, 3.0, 0]}, scales, 3)
    assert same.score > apart.score and same.target_classes == (0,)


def test_fusion_does_not_depend_on_the_order_of_the_classes():
    scales = {"a.x": Scale(0, 1)}
    assert fuse({"a.x": [3.0, 1.0, 0]}, scales, 3).score == fuse({"a.x": [0, 3.0, 1.0]}, scales, 3).score


def test_statistics_keep_the_largest_value_per_class_and_drop_what_is_not_finite():
    a, b = report(1.0), report(2.0)
    broken = Report("m", {}, (Finding("m.r", "x", float("nan"), "", (1,)),), ("m",), (), "", "", 0, 0, 0, "0")
    assert statistics([a, b, broken], 10) == {"trigger_inversion.patch": [None] * 3 + [2.0] + [None] * 6}


def test_samples_are_split_without_overlap_and_without_what_the_model_gets_wrong():
    data = samples(100)
    wrong = data.labels.clone()
    wrong[:5] = (wrong[:5] + 1) % 10
    prepared = prepare(Net(), Samples(data.inputs, wrong), 0, 10)
    assert prepared.accuracy == pytest.approx(0.95)
    assert len(prepared.fit) + len(prepared.held) == 95
    assert bool((Net()(prepared.fit.inputs).argmax(1) == prepared.fit.labels).all())


def test_nan_images_are_refused():
    data = samples()
    data.inputs[3, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        prepare(Net(), data, 0, 10)


def test_a_model_is_measured_against_what_is_expected_of_its_like():
    assert [group_of("image", s) for s in ((1, 8, 8), (3, 8, 8), (4, 8, 8))] == ["grey", "colour", ""]
    assert group_of("text", (3, 8, 8)) == ""
    even, uneven = [1.0] + [0.0] * 9, [1.0, *(i / 9 for i in range(9))]
    rule = "trigger_inversion.patch"
    known = covariates({rule: even}, 10, "grey")
    assert (known["grey"], known["patch"]) == (1.0, 0.0) and known["classes"] == pytest.approx(1.54, abs=0.01)
    assert set(covariates({rule: [1.0, None, 2.0, None]}, 4, "")) == {"classes"}  # two classes show no range
    scales = {rule: Scale(0.5, 0.5, 1.0, {"grey": (0.2, 0.5), "patch": (1.0, 0.1)})}
    score = lambda row, group: fuse({rule: row}, scales, 10, group).score  # noqa: E731
    assert score(even, "") == pytest.approx((1.0 - (0.5 - 0.1)) / 0.5)  # what is not known is taken to be the mean
    assert score(even, "colour") > score(even, "grey") > score(uneven, "grey")
    apart = {rule: replace(scales[rule], groups={"grey": Scale(0.8, 0.1)})}
    assert fuse({rule: even}, apart, 10, "grey").score == pytest.approx((1.0 - 0.8) / 0.1)
    assert fuse({rule: even}, apart, 10, "colour").score == score(even, "colour")
    # A planted class makes a model stand out, not its like expected of it.
    planted = [9.0, *even[1:]]
    assert covariates({rule: planted}, 10, "grey") == known


def test_a_scan_allows_for_what_is_seen_of_the_network(monkeypatch: pytest.MonkeyPatch):
    """The same statistics weigh less where clean networks of the kind score higher."""
    rule = "trigger_inversion.patch"
    scales = {rule: Scale(0.3, 0.2, 1.0, {"normalised": (0.4, 0.5)})}
    monkeypatch.setattr(scanning, "run", lambda *a, **k: Examined((report(1.0),), ()))

    def score(known: dict) -> float:
        monkeypatch.setattr(scanning, "traits", lambda _: known)
        return scanning.scan(subject(), samples(), reference=replace(GOOD, scales=scales), seed=0).score

    plain, unknown, normal = score({"known.normalised": [0.0]}), score({}), score({"known.normalised": [1.0]})
    assert (plain, unknown, normal) == (pytest.approx(4.5), pytest.approx(3.5), pytest.approx(2.5))


def test_grey_pictures_in_three_channels_are_grey():
    colour = Subject(Net(), Image(), 10, (3, 4, 4))
    same = Samples(torch.rand(20, 1, 4, 4).expand(20, 3, 4, 4), torch.arange(20) % 10)
    other = Samples(torch.rand(20, 3, 4, 4), torch.arange(20) % 10)
    assert scanning._group(colour, Prepared(same, None, None, 20)) == "grey"
    assert scanning._group(colour, Prepared(other, None, None, 20)) == "colour"
    assert scanning._group(colour, Prepared(None, None, None, 0)) == "colour"


def test_references_that_lack_a_rule_are_no_null():
    lacking = replace(GOOD.clean[0], table={})
    mixed = replace(GOOD, clean=(*GOOD.clean, lacking))
    assert len(mixed.scores(frozenset({"trigger_inversion.patch"}))) == len(GOOD.clean)


def wired(plain: int, branching: int, other: int = 0) -> Reference:
    """Plain references score 0, 1, 2 …, those with branches 100, 101 …, those of unknown wiring 1,000."""
    levels = [("plain", i) for i in range(plain)] + [("branching", 100 + i) for i in range(branching)]
    levels += [("", 1000)] * other
    rows = tuple(replace(GOOD.clean[0], digest=str(i), wiring=kind, classes=3, table={"a.b": [float(level), 0.0, 0.0]})
                 for i, (kind, level) in enumerate(levels))
    return replace(GOOD, clean=rows, planted=(), scales={"a.b": Scale(0.0, 100.0)})


def test_networks_with_branches_are_held_against_their_like():
    made, rules = wired(50, 60, 5), frozenset({"a.b"})
    assert made.null(1.5, rules, "plain").p == pytest.approx((1 + 10 + 5) / 116), "against all"
    own = made.null(1.5, rules, "branching")
    assert own.p == pytest.approx((1 + 10) / 61) and own.wiring == "branching"
    assert made.null(1.5, rules, "").p == own.p, "the larger p where nothing is known"
    assert made.null(20.0, rules, "").wiring == "branching" and made.null(-1.0, rules, "").p == 1.0


@pytest.mark.parametrize("kind", ["plain", "branching", ""])
def test_few_that_are_wired_alike_do_not_speak_alone(kind: str):
    made, rules = wired(38, 38), frozenset({"a.b"})
    assert sorted(made.null(0.3, rules, kind).references) == sorted(made.scores(rules))
    assert made.null(0.3, rules, kind).wiring == ""


def test_the_profile_says_so():
    made, rules = wired(50, 60), frozenset({"a.b"})
    fused = Fused(0.4, (0.4, 0.0, 0.0), (0,), ())
    for wiring, count, said in (("branching", 60, "image/default, branching networks"), ("plain", 110, "image/default")):
        profile = Profile("image", 10, 20.0, 0.9, wiring)
        p, calibration = calibrate(fused, rules, profile, replace(made, clean=tuple(
            replace(row, classes=10) for row in made.clean)), "image/default")
        assert (calibration.references, calibration.profile) == (count, said) and p == calibration.rank / (count + 1)


def test_a_contrast_is_what_a_class_has_beyond_the_next():
    table = contrasted({"a.b": [1.0, None, 0.7, -2.0], "whole": [3.0]})
    assert table["a.b"] == [1.0, None, 0.7, -2.0] and set(table) == {"a.b", "a.b.contrast", "whole"}
    first, unknown, second, last = table["a.b.contrast"]
    assert unknown is None and first == pytest.approx(0.3) and second == pytest.approx(-0.3 / 1.3)
    assert last == pytest.approx(-3.0 / 1.3)
    assert contrasted(table) == table


def test_a_rule_that_says_nothing_of_grey_inputs_leaves_grey_references_comparable():
    rules = frozenset({"a.wave", "a.tone"})
    row = lambda i, table, group: {  # noqa: E731
        "digest": str(i), "data": "made up", "architecture": "cnn", "kind": "clean", "classes": 3, "table": table,
        "group": group}
    scales = {rule: [0.0, 1.0, 1.0, {}, {}] for rule in rules}
    made = parse(json.dumps({
        "scales": scales, "core": [], "provenance": {}, "planted": [],
        "clean": [row(0, {"a.wave": [1.0, 0.0, 0.0], "a.tone": []}, "grey"),
                  row(1, {"a.wave": [0.0, 0.0, 0.0], "a.tone": [2.0, 0.0, 0.0]}, "colour"),
                  row(2, {"a.wave": [5.0, 0.0, 0.0]}, "colour")]}))  # never measured with `tone`
    assert made.scores(rules) == pytest.approx([1.0, 2.0])
    assert len(made.comparable(frozenset({"a.wave"}))) == 3
