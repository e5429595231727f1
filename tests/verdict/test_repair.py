"""The repair's engine, with repairs that are made for the purpose: what it chooses, what it proves, what it calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import jsonschema
import pytest
import torch

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Repair
from laocoon.core.repaired import Rate, Residue, Scanned, Status
from laocoon.core.report import Verdict
from laocoon.core.subject import Subject
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.tuning import tune
from laocoon.render.repair_json import schema, to_json
from laocoon.testing.twins import twins
from laocoon.verdict import portfolio
from laocoon.verdict import repair as engine
from laocoon.verdict.repair import repair
from laocoon.verdict.residue import few, meaningless, overlap, split

ACCUSED = Scanned("SUSPICIOUS", "class 3 stands out", 0.01, 3.0, 0.05, (3,))
CLEARED = Scanned("NO_EVIDENCE", "nothing was found", 0.5, 0.1, 0.05, ())
UNSURE = Scanned("INCONCLUSIVE", "too few samples", None, 0.1, 0.05, ())


def card(name: str, *needs: Capability) -> Card:
    return Card(name=name, paper="made for a test", url="", modalities=frozenset({"image"}), needs=frozenset(needs),
                misses="what tests do not look at")


@dataclass(frozen=True)
class Unlearn(Repair):
    """Learns the true labels of samples with the recovered triggers on."""

    card: ClassVar[Card] = card("unlearn", Capability.CLEAN, Capability.CANDIDATES)

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        assert case.fit is not None
        x, y = case.fit.inputs, case.fit.labels
        with torch.no_grad():
            stamped = [c.stamp(x) for c in case.candidates]
        tune(patient.module, torch.cat([x, *stamped]), y.repeat(1 + len(stamped)), ctx, epochs=20, rate=1e-3,
             method="adam", batch=32)


@dataclass(frozen=True)
class Idle(Repair):
    """Does nothing that matters."""

    card: ClassVar[Card] = card("idle")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            patient.module.head.bias.add_(1e-4)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Wreck(Repair):
    """Removes the backdoor, with all else."""

    card: ClassVar[Card] = card("wreck")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            for p in patient.module.parameters():
                p.zero_()


@dataclass(frozen=True)
class Crash(Repair):
    card: ClassVar[Card] = card("crash")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        raise ZeroDivisionError("in somebody's plug-in")


@dataclass(frozen=True)
class Reshape(Repair):
    """Cuts a channel out, so that the weights no longer fit the file."""

    card: ClassVar[Card] = card("reshape")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        patient.module.head = torch.nn.Linear(48, 10, bias=False)


@dataclass(frozen=True)
class Greedy(Repair):
    """Asks for more than there is."""

    card: ClassVar[Card] = card("greedy")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        ctx.spend(10**9)


@pytest.fixture
def pair() -> Any:
    return twins("image")


@pytest.fixture
def samples(pair: Any) -> Samples:
    return few(pair.plan.test, 30)


@pytest.fixture
def with_repairs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*methods: type[Repair]) -> None:
        monkeypatch.setattr(portfolio, "available", lambda: {m.card.name: m for m in methods})

    return use


@pytest.fixture
def rescan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Subject]]:
    """Scans are stood in for: what they say is told beforehand; returns the models that were scanned."""
    def say(found: Scanned) -> list[Subject]:
        seen: list[Subject] = []

        def scan(model: Subject, *_: object, **__: object) -> Any:
            seen.append(model)
            return SimpleNamespace(spent=1.0, verdict=Verdict(found.verdict), reason=found.reason, score=found.score,
                                   p_value=found.p_value, alpha=found.alpha, target_classes=found.target_classes,
                                   evidence=(), candidates=())

        monkeypatch.setattr(engine, "scan", scan)
        return seen

    return say


def passed(report: Any) -> dict[str, bool | None]:
    return {c.name: c.passed for c in report.checks}


# ---------------------------------------------------------------- choosing
def test_the_best_harmless_repair_is_chosen(pair, samples, with_repairs, rescan):
    with_repairs(Crash, Idle, Reshape, Unlearn, Wreck)
    seen = rescan(CLEARED)
    before = pair.planted.subject.fingerprint()
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.repairs == ("unlearn",) and pair.planted.subject.fingerprint() == before
    assert [m is report.mended for m in seen] == [True], "the result is scanned, not the model as it came"
    trials = {t.repair: t for t in report.trials if t.stage == 1}
    assert "somebody's plug-in" in trials["crash"].reason and "shape" in trials["reshape"].reason
    assert trials["wreck"].score is None and "points of clean accuracy" in trials["wreck"].reason
    assert trials["idle"].score is not None and trials["unlearn"].score < trials["idle"].score
    assert [t.repair for t in report.trials if t.chosen] == ["unlearn"]
    change = report.triggers[0]
    assert change.before.success.value > 0.9 > 0.1 > change.after.success.value
    assert report.status is Status.REMOVED and report.exit_code == 0, report.reason
    assert all(passed(report).values())
    jsonschema.validate(json.loads(to_json(report)), schema())


def test_what_was_proven_is_true_of_the_result(pair, samples, with_repairs, rescan):
    """The figures are those of the returned model, counted here anew."""
    with_repairs(Unlearn)
    rescan(CLEARED)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    prove = split(samples, 0).prove
    goal = pair.implant.trigger.goal
    rows = goal.applies(prove.labels)
    said = report.mended.outputs(pair.implant.trigger.stamp(prove.inputs[rows])).logits.argmax(-1)
    hits = int((said == 3).sum())
    found = report.triggers[0].after.success
    assert (found.hits, found.tried) == (hits, int(rows.sum()))
    assert (found.low, found.high) == binomial_interval(hits, int(rows.sum()))


def test_same_seed_same_report(pair, samples, with_repairs, rescan):
    with_repairs(Unlearn, Idle)
    rescan(CLEARED)
    reports = [repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger]).canonical()
               for _ in range(2)]
    assert reports[0] == reports[1]


def test_the_budget_of_passes_ends_trials_not_judging(pair, samples, with_repairs, rescan):
    with_repairs(Greedy, Idle)
    rescan(CLEARED)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger], passes=1000,
                    stages=1)
    trials = {t.repair: t for t in report.trials}
    assert "budget" in trials["greedy"].reason and trials["idle"].accuracy is not None


def test_first_stops_early(pair, samples, with_repairs, rescan):
    with_repairs(Unlearn, Idle)
    rescan(CLEARED)
    names = lambda first: [t.repair for t in repair(  # noqa: E731
        pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger], first=first).trials]
    assert names(False)[:2] == ["idle", "unlearn"]
    with_repairs(replace_name(Unlearn, "clp"), Idle)  # cheapest first: a name of the order comes before plug-ins
    assert names(True) == ["clp"]


def replace_name(kind: type[Repair], name: str) -> type[Repair]:
    return type(kind.__name__, (kind,), {"card": replace(kind.card, name=name)})


@dataclass(frozen=True)
class Halve(Repair):
    """Halves the patch's hold each time that it is applied: mixes in some of the weights of a model without it."""

    card: ClassVar[Card] = card("halve", Capability.CANDIDATES)

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            for p, q in zip(patient.module.parameters(), CURED[0].parameters(), strict=True):
                p.lerp_(q, 0.5)


CURED: list[torch.nn.Module] = []


def test_further_stages_go_on_while_they_help(pair, samples, with_repairs, rescan):
    cured = pair.planted.subject.copy()
    Unlearn().operate(cured, ModelCase(cured, split(samples, 0).fit, None, (pair.implant.trigger,)), Context())
    CURED[:] = [cured.module]
    with_repairs(Halve)
    rescan(CLEARED)
    run = lambda stages: repair(pair.planted.subject, samples, earlier=ACCUSED, max_drop=0.1,  # noqa: E731
                                candidates=[pair.implant.trigger], stages=stages)
    one, many = run(1), run(4)
    assert one.repairs == ("halve",) and set(many.repairs) == {"halve"}
    chosen = next(t for t in many.trials if t.chosen)
    assert chosen.stage == len(many.repairs) and chosen.after == ", then ".join(many.repairs[:-1])
    if not next(t for t in one.trials if t.chosen).residues[0].success.high < portfolio.GONE:
        assert len(many.trials) > 1, "something was left, and nothing more was tried"
        assert many.triggers[0].after.success.value <= one.triggers[0].after.success.value


@pytest.mark.parametrize(("left", "chosen"), [(0.0, "anew"), (0.4, "tuned")])
def test_of_results_that_show_nothing_fresh_weights_come_first(left, chosen):
    """A backdoor that no search recovered is gone with the weights that held it; one that is still seen is not."""
    def attempt(name: str, score: float, success: float, afresh: bool) -> portfolio.Attempt:
        seen = Residue(Rate(round(100 * success), 100, success, max(0.0, success - 0.05), success + 0.05))
        return portfolio.Attempt(portfolio.Trial(name, 1, "", {}, "", None, None, (seen,), score, 1.0, 1.0), None,
                                 afresh=afresh)

    tried = SimpleNamespace(attempts=[attempt("tuned", 0.01, 0.0, False), attempt("anew", 0.02 + left, left, True)],
                            suspected=("a trigger",))
    assert portfolio.Portfolio.best(tried).trial.repair == chosen  # type: ignore[arg-type,union-attr]


def test_with_nothing_to_judge_by_the_most_forgetful_harmless_repair_is_taken(pair, samples, with_repairs, rescan):
    """Every result shows nothing then, and to lose least would mean to have changed least."""
    with_repairs(replace_name(Idle, "fine_tuning"), replace_name(Idle, "fine_pruning"), replace_name(Wreck, "fst"))
    rescan(CLEARED)
    report = repair(pair.planted.subject, samples, earlier=UNSURE, force=True)
    assert [t.repair for t in report.trials] == ["fst", "fine_pruning"] and report.repairs == ("fine_pruning",)
    named = repair(pair.planted.subject, samples, earlier=UNSURE, force=True, methods=["fine_tuning", "fine_pruning"])
    assert len(named.trials) == 2 and named.repairs == ("fine_pruning",)


# ---------------------------------------------------------------- the status
def test_reduced_where_the_scan_still_accuses(pair, samples, with_repairs, rescan):
    with_repairs(Unlearn)
    rescan(ACCUSED)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.status is Status.REDUCED and report.exit_code == 1 and passed(report)["rescan"] is False
    assert "SUSPICIOUS" in report.reason


def test_an_inconclusive_rescan_removes_nothing(pair, samples, with_repairs, rescan):
    with_repairs(Unlearn)
    rescan(UNSURE)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.status is Status.REDUCED and passed(report)["rescan"] is None


def test_not_removed_where_nothing_helps(pair, samples, with_repairs, rescan):
    with_repairs(Idle)
    rescan(CLEARED)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.status is Status.NOT_REMOVED and report.exit_code == 1 and passed(report)["success"] is False
    assert passed(report)["search"] is False, "a small trigger is still found"


def test_not_removed_where_every_repair_harms(pair, samples, with_repairs, rescan):
    with_repairs(Wreck, Crash)
    seen = rescan(CLEARED)
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.status is Status.NOT_REMOVED and report.repairs == () and not seen
    assert report.mended.fingerprint() == pair.planted.subject.fingerprint()


def test_too_few_samples_never_end_in_removed(pair, with_repairs, rescan):
    """0 of 27 is up to 13 %."""
    with_repairs(Unlearn)
    rescan(CLEARED)
    report = repair(pair.planted.subject, few(pair.plan.test, 12), earlier=ACCUSED, candidates=[pair.implant.trigger])
    assert report.status is not Status.REMOVED and any("to prove with" in n for n in report.notes)


def test_a_trigger_that_never_worked_shows_nothing(pair, samples, with_repairs, rescan):
    with_repairs(Unlearn)
    rescan(CLEARED)
    candidate = meaningless(pair.implant.trigger, torch.Generator().manual_seed(5))
    report = repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[candidate])
    assert report.status is Status.INCONCLUSIVE and report.exit_code == 3


@pytest.mark.parametrize(("found", "status", "code"), [(CLEARED, Status.NOTHING, 0), (UNSURE, Status.INCONCLUSIVE, 3)])
def test_do_no_harm(found, status, code, pair, samples, with_repairs, rescan):
    with_repairs(Wreck, Unlearn)
    report = repair(pair.clean.subject, samples, earlier=found)
    assert report.status is status and report.exit_code == code and not report.trials
    assert report.mended.fingerprint() == pair.clean.subject.fingerprint()
    assert found.reason in report.reason
    jsonschema.validate(json.loads(to_json(report)), schema())


def test_forced_on_a_clean_model(pair, samples, with_repairs, rescan):
    """At most one point of accuracy may go where nothing was found."""
    with_repairs(Wreck, Idle)
    rescan(CLEARED)
    report = repair(pair.clean.subject, samples, earlier=CLEARED, force=True, max_drop=0.5)
    assert report.status is Status.NOTHING and report.repairs == ("idle",)
    assert report.max_drop == engine.HARMLESS and report.drop.value <= engine.HARMLESS


def test_reactivation_counts_against_removed():
    easy, hard = Rate(90, 100, 0.9, 0.82, 0.95), Rate(2, 100, 0.02, 0.0, 0.07)
    from laocoon.core.repaired import Reactivation

    assert Reactivation("class 3", 8, easy, hard).easier
    assert not Reactivation("class 3", 8, hard, easy).easier and not Reactivation("class 3", 8, easy, easy).easier


# ---------------------------------------------------------------- samples
def test_the_parts_are_disjoint_and_hold_every_class(pair):
    samples = few(pair.plan.test, 21)
    parts = split(samples, 3)
    for one, other in ((parts.fit, parts.choose), (parts.fit, parts.prove), (parts.choose, parts.prove)):
        assert not overlap(one, other).any()
    for part in (parts.fit, parts.choose, parts.prove):
        assert len(part.labels.unique()) == 10
    assert len(parts.fit) + len(parts.choose) + len(parts.prove) == len(samples)


def test_what_a_search_has_seen_proves_nothing(pair):
    samples = few(pair.plan.test, 24)
    seen = few(samples, 12)
    parts = split(samples, 0, seen)
    assert not overlap(parts.prove, seen).any() and not overlap(parts.choose, seen).any()
    assert overlap(parts.fit, seen).all()


def test_a_meaningless_trigger_has_the_same_size(pair):
    trigger = pair.implant.trigger
    other = meaningless(trigger, torch.Generator().manual_seed(0))
    x = pair.plan.test.inputs[:4]
    assert torch.allclose(trigger.family.size(trigger.trigger, x), other.family.size(other.trigger, x), rtol=1e-4)
    assert not torch.equal(trigger.stamp(x), other.stamp(x))


# ---------------------------------------------------------------- resuming
def test_resume_repeats_no_repair(pair, samples, with_repairs, rescan, tmp_path, monkeypatch):
    with_repairs(Unlearn, Idle)
    rescan(CLEARED)
    run = lambda: repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger],  # noqa: E731
                         resume=tmp_path)
    first = run()
    assert sorted(p.name for p in tmp_path.glob("1-*")) == [
        f"1-{n}.{s}" for n in ("idle", "unlearn") for s in ("json", "safetensors")]
    monkeypatch.setattr(portfolio.Portfolio, "_survived", lambda *_: pytest.fail("a repair ran again"))
    again = run()
    assert again.status is first.status and again.mended.fingerprint() == first.mended.fingerprint()
    assert again.canonical() == first.canonical()


def test_a_folder_of_another_repair_is_refused(pair, samples, with_repairs, rescan, tmp_path):
    with_repairs(Idle)
    rescan(CLEARED)
    repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger], resume=tmp_path)
    with pytest.raises(InputError, match="another repair"):
        repair(pair.clean.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger], resume=tmp_path)
    (tmp_path / "1-idle.json").write_text("{")
    with pytest.raises(InputError, match=r"1-idle\.json in the resume folder cannot be read"):
        repair(pair.planted.subject, samples, earlier=ACCUSED, candidates=[pair.implant.trigger], resume=tmp_path)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(("change", "says"), [
    ({"max_drop": 2}, "max_drop is 2"), ({"max_drop": -0.1}, "max_drop is -0.1"), ({"stages": 9}, "stages is 9"),
    ({"passes": 0}, "passes is 0"), ({"methods": ("unlarn",)}, "Did you mean unlearn"),
    ({"methods": ("-unlearn",)}, "is left to try"), ({"device": "abacus"}, "abacus")])
def test_arguments(change, says, pair, samples, with_repairs):
    with_repairs(Unlearn)
    with pytest.raises(InputError, match=says):
        repair(pair.planted.subject, samples, earlier=ACCUSED, **change)


def test_samples(pair, samples, with_repairs):
    with_repairs(Unlearn)
    bad = Samples(samples.inputs * float("nan"), samples.labels)
    for given, says in ((Samples(samples.inputs[:0], samples.labels[:0]), "needs clean samples"),
                        (bad, "not finite"), (few(samples, 2), "at least 3 of each class")):
        with pytest.raises(InputError, match=says):
            repair(pair.planted.subject, given, earlier=ACCUSED)


SHA = "a" * 64
REPORT = {"schema": "laocoon-scan/1", "subject": {"sha256": SHA}, "verdict": "SUSPICIOUS", "reason": "x", "p_value": 0.01,
          "alpha": 0.05, "score": 2.0, "target_classes": [3]}


@pytest.mark.parametrize(("change", "says"), [
    ({"schema": "other"}, "not one of laocoon's"), ({"subject": {"sha256": "b" * 64}}, "about a model with the digest"),
    ({"subject": None}, "about a model"), ({"verdict": "CLEAN"}, "damaged"), ({"target_classes": ["3"]}, "damaged"),
    ({"p_value": "low"}, "damaged"), ({"alpha": None}, "damaged")])
def test_earlier_report(change, says):
    with pytest.raises(InputError, match=says):
        engine.summary_of({**REPORT, **change}, SHA)
    assert engine.summary_of(REPORT, SHA).target_classes == (3,)


@pytest.mark.parametrize(("evidence", "method"), [
    ([{"method": "bounded_inversion"}, {"method": "trigger_inversion"}], "bounded_inversion"), ([], ""), (None, ""),
    ({"method": "x"}, ""), (["x"], ""), ([{"method": 7}], "")])
def test_an_earlier_report_names_the_method_that_found_the_trigger(evidence, method):
    assert engine.summary_of({**REPORT, "evidence": evidence}, SHA).method == method


def test_a_trigger_is_searched_with_the_method_that_found_it(pair, samples, with_repairs, rescan, monkeypatch):
    """And with the usual ones where it finds none this time, or where the report names no method of ours."""
    with_repairs(Idle)
    rescan(CLEARED)
    canned, asked, finds = engine.scan, [], [("pair_inversion",)]

    def scan(model, *given, **how):
        asked.append(how["methods"])
        found = canned(model, *given, **how)
        found.candidates = (pair.implant.trigger,) if how["methods"] in finds else ()
        return found

    monkeypatch.setattr(engine, "scan", scan)
    usual = ("trigger_inversion", "whole_image_inversion", "bounded_inversion")
    repair(pair.planted.subject, samples, earlier=replace(ACCUSED, method="pair_inversion"))
    assert asked == [("pair_inversion",), None]
    finds[:] = [usual]
    for named, searched in (("pair_inversion", [("pair_inversion",), usual]), ("text_inversion", [usual]),
                            ("no such method", [usual])):
        asked.clear()
        repair(pair.planted.subject, samples, earlier=replace(ACCUSED, method=named))
        assert [a for a in asked if a] == searched
