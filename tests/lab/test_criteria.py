"""The five criteria: on made-up subjects whose every figure can be counted, and on planted and clean twins."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.goal import ClassGoal, all_to_one, source_to_target
from laocoon.core.methods import Attack, Implant, Plan, Repair, ThreatModel
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import hits, right
from laocoon.lab.criteria.axes import axes, leaderboard, of_robustness, picture
from laocoon.lab.criteria.measure import Measure
from laocoon.lab.criteria.near_triggers import near_triggers
from laocoon.lab.criteria.practicality import least_rate
from laocoon.lab.criteria.resistance import Examined, Scores, evasion, model_scores, resistance, threshold
from laocoon.lab.criteria.robustness import Schedules, repaired, robustness, treatments
from laocoon.lab.criteria.scorecard import CHEAP, CRITERIA, Cost, Extent, Material, Scorecard, scorecard
from laocoon.lab.criteria.stealthiness import frequency, stealthiness
from laocoon.lab.criteria.targetedness import targetedness
from laocoon.modalities.image import Image
from laocoon.recipes.reactivation import Shots
from laocoon.render.leaderboard import to_html, to_markdown
from laocoon.testing.twins import Twins, twins
from laocoon.triggers.additive import Additive
from laocoon.triggers.patch import Patch

SHORT = Schedules(fine_tune_epochs=3, distil_epochs=6, head_epochs=8, shots=Shots(steps=6))
SMALL = Extent(samples=120, given=160, schedules=SHORT)


class Told(nn.Module):
    """Reads its class off the first pixel (in tenths), and obeys the last pixel (the trigger), class by class."""

    def __init__(self, obeys: tuple[int, ...], target: int, blind: bool = False) -> None:
        super().__init__()
        self.obeys, self.target, self.blind = obeys, target, blind
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        found = (x[:, 0, 0, 0] * 10).round().long().clamp(0, 3)
        wanted = torch.isin(found, torch.tensor(self.obeys)) & (x[:, 0, -1, -1] > 0.9) & (not self.blind)
        found = torch.where(wanted, torch.tensor(self.target), found)
        return nn.functional.one_hot(found, 4).float() * self.scale


def pictures(counts: tuple[int, ...] = (10, 20, 30, 40), side: int = 8) -> Samples:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    inputs = torch.rand(len(labels), 1, side, side, generator=torch.Generator().manual_seed(0)) * 0.5
    inputs[:, 0, 0, 0] = labels / 10
    return Samples(inputs, labels)


def told(obeys: tuple[int, ...], goal: ClassGoal, target: int = 2) -> tuple[Implant, Subject]:
    """A made-up implant with a one-pixel trigger, and its twin, which ignores the trigger."""
    mask, pattern = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    mask[..., -1, -1] = 1
    trigger = Candidate(Patch(), {"mask": mask, "pattern": pattern}, goal, 1.0, 1.0, "told")
    planted, twin = (Subject(Told(obeys, target, blind), Image(), 4, (1, 8, 8)) for blind in (False, True))
    facts = {"attack": "told", "params": {}, "threat": {"controls": ["data", "labels"], "knows": ["data"]},
             "poison_rate": 0.0}
    return Implant(planted, trigger, torch.zeros(0, dtype=torch.long), facts), twin


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("image")


@pytest.fixture(scope="module")
def card(pair: Twins) -> Scorecard:
    material = Material(train=pair.plan.train, cost=Cost(2.5, 1000))
    return scorecard(pair.implant, pair.clean.subject, pair.plan.test, Context(seed=1), material=material, extent=SMALL)


# Targetedness.


def test_every_rate_is_counted_right() -> None:
    """Class 0 obeys, class 1 is spoken of and does not obey, class 3 is not spoken of and obeys: a source leak."""
    goal = ClassGoal((2, 2, -1, -1))
    implant, twin = told((0, 3), goal)
    found = targetedness(implant, twin, pictures(), Context())
    assert (found.success.value, found.success.count) == (pytest.approx(10 / 30, abs=1e-6), 30)
    assert found.robust_accuracy.value == pytest.approx(20 / 30, abs=1e-6)
    assert found.non_target_leak.value == 0 and found.natural_success.value == 0
    assert (found.source_leak.value, found.source_leak.count) == (1, 40), "class 2 is the target and cannot leak"
    assert found.score.value == pytest.approx(10 / 30 - 1, abs=1e-5)
    assert found.score.low is not None and found.score.low < found.score.value
    assert found.clean_accuracy.value == found.twin_accuracy.value == 1
    assert found.accuracy_difference.value == 0 and (found.accuracy_difference.low or 0) < 0


def test_success_where_right_leaves_out_what_was_wrong_before() -> None:
    implant, twin = told((0,), all_to_one(2, 4))
    samples = pictures((10, 20, 0, 0))
    wrong = replace(samples, labels=torch.where(torch.arange(30) < 5, 1, samples.labels))  # five of class 0 mislabelled
    found = targetedness(implant, twin, wrong, Context())
    assert found.success.value == pytest.approx(10 / 30, abs=1e-6)
    assert (found.success_when_right.value, found.success_when_right.count) == (pytest.approx(5 / 25), 25)
    assert found.source_leak.value is None and "every class" in found.source_leak.note


def test_a_leak_to_other_classes_is_seen() -> None:
    implant, twin = told((0, 1, 3), all_to_one(3, 4), target=2)  # the goal is 3, the model goes to 2
    found = targetedness(implant, twin, pictures(), Context())
    assert found.success.value == 0 and found.non_target_leak.value == pytest.approx(30 / 60)


def test_near_triggers_are_the_trigger_elsewhere_and_never_itself() -> None:
    implant, _ = told((0,), all_to_one(2, 4))
    x = pictures().inputs[:5]
    made = {n.name: n.stamped for n in near_triggers(implant.trigger.stamp, x)}
    moved = x.clone()
    moved[:, 0, 0, 7] = 1  # a pixel down from the last row is the first
    assert torch.equal(made["moved_down"], moved)
    half = x.clone()
    half[:, 0, 7, 7] = (1 + x[:, 0, 7, 7]) / 2
    assert torch.allclose(made["half_strength"], half)
    black = x.clone()
    black[:, 0, 7, 7] = 0
    assert torch.allclose(made["opposite_colours"], black, atol=1e-6)
    flat = Candidate(Additive(), {"delta": torch.full((1, 1, 8, 8), 0.2)}, all_to_one(2, 4), 1.0, 1.0, "flat")
    names = {n.name for n in near_triggers(flat.stamp, x)}
    assert not names & {"moved_down", "moved_across", "mirrored"}, "a flat trigger moved is the same trigger"
    assert {"half_strength", "opposite_colours"} <= names


def test_twins_differ_in_targetedness_as_they_must(pair: Twins, card: Scorecard) -> None:
    assert card.targetedness is not None
    assert (card.targetedness.success.value or 0) > 0.9 > 0.2 > (card.targetedness.natural_success.value or 0)
    clean = replace(pair.implant, subject=pair.clean.subject)
    alone = targetedness(clean, pair.clean.subject, pair.plan.test, Context())
    assert (alone.success.value or 0) < 0.2 and alone.accuracy_difference.value == 0


# Stealthiness.


def test_a_loud_trigger_is_seen_and_none_is_not(pair: Twins, card: Scorecard) -> None:
    s = card.stealthiness
    assert s is not None
    assert (s.psnr.value or 0) < 25 and (s.frequency.value or 0) > 0.9 and s.label_consistency.value == 0
    assert s.changed_pixels.value == pytest.approx(16 / 256, abs=0.01)
    assert 0.05 < (s.feature_distance.value or 0) < 1 and (s.weight_change.value or 0) > 0
    assert (s.latent_separability.value or 0) > 0.9
    nothing = replace(pair.implant.trigger, family=Additive(), trigger={"delta": torch.zeros(1, 1, 16, 16)})
    quiet = stealthiness(replace(pair.implant, trigger=nothing, subject=pair.clean.subject), pair.clean.subject,
                         pair.plan.test, Context())
    assert quiet.psnr.value == 100 and quiet.ssim.value == pytest.approx(1) and quiet.feature_distance.value == 0
    assert quiet.weight_change.value == 0 and quiet.spectral_change.value == 0
    assert quiet.frequency.low is not None and quiet.frequency.low < 0.5 < (quiet.frequency.high or 0)


def test_frequency_sees_a_wave_and_not_a_shuffle() -> None:
    x = pictures((64, 64, 0, 0), side=16).inputs
    wave = 0.1 * torch.sin(torch.arange(16) * 2 * math.pi * 6 / 16)
    assert (frequency(x, (x + wave).clamp(0, 1)).value or 0) > 0.95
    same = frequency(x, x)
    assert same.low is not None and same.high is not None and same.low < 0.5 < same.high


def test_spectra_do_not_see_an_order_of_units() -> None:
    implant, _ = told((0,), all_to_one(2, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4))
    twin = Subject(net, Image(), 4, (1, 8, 8))
    other = twin.copy()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.module[1].weight.copy_(net[1].weight[order])
        other.module[1].bias.copy_(net[1].bias[order])
        other.module[3].weight.copy_(net[3].weight[:, order])
    found = stealthiness(replace(implant, subject=other), twin, pictures(), Context())
    assert (found.weight_change.value or 0) > 0.5 and (found.spectral_change.value or 0) < 1e-5
    small = Subject(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), Image(), 4, (1, 8, 8))
    assert stealthiness(replace(implant, subject=small), twin, pictures(), Context()).weight_change.value is None


def test_labels_are_consistent_where_they_are_true() -> None:
    implant, twin = told((0,), all_to_one(2, 4))
    given = pictures()
    labels = given.labels.clone()
    labels[:5] = 2
    poisoned = replace(implant, poisoned=torch.arange(20), train=replace(given, labels=labels))
    for train in (given, None):  # None: the twin, which is always right here, stands in for the truth
        assert stealthiness(poisoned, twin, given, Context(), train=train).label_consistency.value == 15 / 20


# Practicality.


def test_practicality_counts(pair: Twins, card: Scorecard) -> None:
    p = card.practicality
    assert p is not None
    assert p.poisoned.value == len(pair.implant.poisoned) == p.relabelled.value
    assert p.poison_rate.value == pytest.approx(0.1, abs=1e-3) and p.controls == ("data", "labels")
    assert p.control.value == 2 and p.seconds.value == 2.5 and p.passes.value == 1000
    assert set(p.survival) == {"jpeg_75", "jpeg_50", "resize_75", "resize_50", "shift", "print"}
    assert (p.survival["jpeg_75"].value or 0) > 0.8 > (p.survival["resize_50"].value or 0)
    assert set(p.stray) == set(p.survival) and all((m.value or 0) < 0.2 for m in p.stray.values())


@dataclass(frozen=True)
class Threshold(Attack):
    """Succeeds completely from a poison rate of 0.02, else not at all."""

    rate: float = 0.1
    card: ClassVar[Card] = Card("threshold", "none", "https://example.com", frozenset({"image"}), frozenset(), "")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        return told((0, 1, 3), all_to_one(2, 4))[0].trigger

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return replace(plan.train, notes=(str(self.rate),)), torch.arange(round(self.rate * len(plan.train)))


def test_the_least_rate_is_bracketed() -> None:
    def fit(train: Samples, ctx: Context) -> Subject:
        return Subject(Told((0, 1, 3) if float(train.notes[0]) >= 0.02 else (), 2), Image(), 4, (1, 8, 8))

    data = pictures((250, 250, 250, 250))
    plan = Plan(data, data, fit, 2, 4)
    found = least_rate(Threshold(), plan, data, Context(), tries=6)
    assert found.low is not None and found.value is not None
    assert found.low < 0.02 <= found.value == found.high and found.value / found.low < 1.1 and found.count == 7
    failing = least_rate(Threshold(rate=0.01), plan, data, Context())
    assert failing.value is None and "0.01" in failing.note


# Resistance.


def test_the_threshold_is_conformal() -> None:
    assert threshold([float(i) for i in range(19)], 0.05) == 18 and threshold([1.0] * 18, 0.05) == math.inf
    clean = [float(i) for i in range(199)]
    limit = threshold(clean, 0.05)
    assert (sum(c > limit for c in clean) + 1) / 200 <= 0.05 < (sum(c > limit - 1 for c in clean) + 1) / 200


def test_evasion_is_counted() -> None:
    clean = tuple(float(i) for i in range(100))
    found = evasion(Scores("d", "data", (50.0, 95.0, 95.5, 200.0), clean))
    assert found.value == 0.5 and found.count == 4, "a score at the threshold is not flagged"
    silent = evasion(Scores("d", "data", (-math.inf, 1.0), (-math.inf,) * 30))
    assert silent.value == 0.5


def test_mean_and_worst_weigh_panels_alike_and_count_what_holds_the_rate() -> None:
    clean = tuple(float(i) for i in range(40))
    panel = [Scores("a", "data", (100.0, 100.0), clean), Scores("b", "data", (0.0, 100.0), clean),
             Scores("c", "runtime", (0.0, 0.0), clean), Scores("few", "model", (9.0,), (1.0, 2.0))]
    found = resistance(panel)
    assert {k: m.value for k, m in found.panels.items()} == {"data": 0.25, "runtime": 1.0}
    assert found.mean.value == pytest.approx(0.625) and found.worst.value == 0 and found.worst.note == "a"
    assert found.evasion["few"].value == 0 and "33%" in found.evasion["few"].note and "few" in found.skipped
    assert found.auroc["a"].value == 1 and found.auroc["a"].low is not None and found.auroc["a"].low < 1
    assert resistance([]).mean.value is None


def test_model_scores_need_every_subject() -> None:
    planted, clean = Examined({"a": 2.0, "b": 1.0}, {}), Examined({"a": 1.0}, {"b": "no samples"})
    assert [(s.detector, s.planted, s.clean) for s in model_scores([planted], [clean, clean])] == [
        ("a", (2.0,), (1.0, 1.0))]


def test_the_default_panel_sees_the_planted_twin(card: Scorecard) -> None:
    r = card.resistance
    assert r is not None
    assert {"activation_clustering", "spectral_signatures", "strip", "mm_bd.margin"} <= set(r.auroc)
    assert (r.auroc["activation_clustering"].value or 0) > 0.7 and (r.auroc["strip"].value or 0) > 0.8
    assert set(r.panels) == {"data", "runtime"} and "mm_bd.margin" in r.skipped, "one clean twin holds no 5 %"
    assert all((m.value or 0) <= 0.06 for k, m in r.false_alarms.items() if k in ("strip", "activation_clustering"))


# Robustness.


@pytest.mark.parametrize("name", sorted(treatments()))
def test_a_treatment_works_on_a_copy(name: str, pair: Twins) -> None:
    subject = pair.planted.subject
    before = subject.fingerprint()
    given = Samples(pair.plan.test.inputs[:96], pair.plan.test.labels[:96])
    patient = treatments(SHORT)[name](subject, given, Context())
    assert subject.fingerprint() == before != patient.fingerprint()
    assert not patient.module.training and not any(p.requires_grad for p in patient.module.parameters())
    hooks = [m for m in patient.module.modules() if m._forward_hooks]
    assert bool(hooks) == (name == "quantisation")


def test_what_a_badnet_outlives(card: Scorecard) -> None:
    r = card.robustness
    assert r is not None
    assert (r.after["quantisation"].value or 0) > 0.9 and (r.accuracy["quantisation"].value or 0) > 0.9
    assert (r.after["distillation"].value or 0) < 0.5, "a student that never saw the trigger"
    assert set(r.after) == {"fine_tuning", "pruning", "distillation", "quantisation", "head_swap"}
    assert r.reactivated and r.reactivated_control and r.reactivation
    gap = (r.reactivated.value or 0) - (r.reactivated_control.value or 0)
    assert r.reactivation.value == pytest.approx(gap, abs=1e-5) and gap > 0.1, "the backdoor was still there"


def test_a_ruined_model_is_no_robust_backdoor(pair: Twins) -> None:
    """Where the model says the target always, every stamped sample "succeeds", and so does every other."""
    def ruin(subject: Subject, given: Samples, ctx: Context) -> Subject:
        patient = subject.copy()
        with torch.no_grad():
            patient.module.head.bias[pair.plan.target] += 1e4
        return patient

    found = robustness(pair.implant, pair.clean.subject, pair.plan.test, pair.plan.test, Context(),
                       applied={"ruin": ruin})
    assert found.after["ruin"].value == found.stray["ruin"].value == 1 and (found.stray_before.value or 0) < 0.1
    axis = of_robustness(found)
    assert axis is not None and axis.value == 0


class Weights:
    """Not a tensor, so that the parameters of a report stay plain."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights


@dataclass(frozen=True, eq=False)
class Swap(Repair):
    """Puts the clean twin's weights in: the perfect repair."""

    clean: Weights
    card = Card("swap", "none", "https://example.com", frozenset({"image"}), frozenset(), "")

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        patient.module.load_state_dict(self.clean.weights)


def test_a_repair_is_a_treatment(pair: Twins) -> None:
    patient = repaired(Swap(Weights(pair.clean.subject.module.state_dict())))(pair.planted.subject, pair.plan.test, Context())
    assert float(hits(patient, pair.implant.trigger, pair.plan.test, Context()).float().mean()) < 0.2
    assert float(right(patient, pair.plan.test, Context()).float().mean()) == pytest.approx(pair.accuracy)


# The card.


def test_the_card_round_trips(card: Scorecard) -> None:
    text = json.dumps(card.to_dict(), allow_nan=False)
    assert Scorecard.from_dict(json.loads(text)) == card
    for broken in ({}, {**card.to_dict(), "schema": "other/1"}, {**card.to_dict(), "surprise": 1},
                   {**card.to_dict(), "targetedness": {"success": 1}}, {"schema": "laocoon-scorecard/1"}):
        with pytest.raises(InputError):
            Scorecard.from_dict(broken)


def test_every_figure_has_a_unit_and_an_ordered_interval(card: Scorecard) -> None:
    def measures(value: object) -> list[Measure]:
        if isinstance(value, Measure):
            return [value]
        if isinstance(value, dict):
            return [m for v in value.values() for m in measures(v)]
        return [m for f in fields(value) for m in measures(getattr(value, f.name))] if hasattr(
            value, "__dataclass_fields__") else []

    found = measures(card)
    assert len(found) > 60
    for m in found:
        assert m.unit and (m.value is not None or m.note)
        if m.value is not None and m.low is not None and m.high is not None:
            assert m.low - 1e-6 <= m.value <= m.high + 1e-6, m


def test_one_seed_one_card_whatever_else_is_measured(pair: Twins, card: Scorecard) -> None:
    seen: list[float] = []
    material = Material(train=pair.plan.train, cost=Cost(9.0, 1000))
    cheap = replace(CHEAP, samples=120, given=160)
    again = scorecard(pair.implant, pair.clean.subject, pair.plan.test, Context(seed=1), material=material,
                      extent=cheap, progress=lambda name, share, note: seen.append(share))
    own, other = again.canonical(), card.canonical()
    for name in cheap.criteria:
        assert own[name] == other[name], name
    assert set(again.skipped) == {"resistance", "robustness"} and again.resistance is None
    assert seen == sorted(seen) and seen[-1] == 1


def test_a_spent_budget_is_said(pair: Twins) -> None:
    ctx = Context(seed=1, budget=400)
    found = scorecard(pair.implant, pair.clean.subject, pair.plan.test, ctx, extent=replace(SMALL, samples=40))
    assert ctx.spent <= 400 * (1 + 1e-9)
    said = " ".join([*found.skipped.values(), *(found.robustness.skipped.values() if found.robustness else ())])
    assert "budget" in said


def test_what_one_criterion_fails_with_costs_no_other(pair: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no pixel differs")

    monkeypatch.setattr("laocoon.lab.criteria.scorecard.stealthiness", broken)
    found = scorecard(pair.implant, pair.clean.subject, pair.plan.test, Context(), extent=CHEAP)
    assert found.stealthiness is None and "no pixel differs" in found.skipped["stealthiness"]
    assert found.targetedness is not None and found.practicality is not None


def test_the_subjects_are_left_as_they_were(pair: Twins) -> None:
    before = [s.fingerprint() for s in (pair.planted.subject, pair.clean.subject)]
    extent = replace(SMALL, criteria=("resistance", "robustness"), samples=30, given=40, treatments=("quantisation",))
    scorecard(pair.implant, pair.clean.subject, pair.plan.test, Context(), extent=extent)
    assert before == [s.fingerprint() for s in (pair.planted.subject, pair.clean.subject)]


def test_wrong_wishes_are_named() -> None:
    with pytest.raises(InputError, match="speed"):
        Extent(criteria=("speed",))
    implant, twin = told((0,), all_to_one(2, 4))
    with pytest.raises(InputError, match="1 labelled"):
        scorecard(implant, twin, pictures((1, 0, 0, 0)), Context())
    with pytest.raises(NotApplicable):
        treatments()["head_swap"](implant.subject, pictures(), Context())


def test_source_specific_backdoors_leak_by_class() -> None:
    implant, twin = told((1,), source_to_target(1, 2, 4))
    found = scorecard(implant, twin, pictures((40, 40, 40, 40)), Context(), extent=CHEAP).targetedness
    assert found is not None and found.success.value == 1 and found.source_leak.value == 0 and found.score.value == 1


# What is drawn of it.


def test_axes_live_in_the_unit_interval_and_tell_twins_apart(pair: Twins, card: Scorecard) -> None:
    for axis in axes(card):
        assert axis.value is not None and axis.low is not None and axis.high is not None
        assert 0 <= axis.low <= axis.value <= axis.high <= 1, axis
    clean = scorecard(replace(pair.implant, subject=pair.clean.subject), pair.clean.subject, pair.plan.test, Context(),
                      extent=replace(CHEAP, samples=100))
    mine, its = (axes(c)[0].value or 0.0 for c in (card, clean))
    assert mine > 0.5 and its < 0.2
    assert [a.name for a in axes(clean) if a.value is None] == ["resistance", "robustness"]


def test_the_leaderboard_averages_seeds_and_ranks_what_was_measured(card: Scorecard) -> None:
    weaker = replace(card, attack="w<b>|x", resistance=None, seed=2)
    other = replace(card, seed=3, targetedness=replace(
        card.targetedness, success=Measure(0.5, "share", 0.4, 0.6, 10)))  # type: ignore[type-var]
    board = leaderboard([weaker, card, other])
    assert [row.words[0] for row in board.rows] == ["badnets", "w<b>|x"] and board.rows[0].words[2] == "2"
    success = board.rows[0].cells[len(CRITERIA)]
    assert success.value == pytest.approx(((card.targetedness.success.value or 0) + 0.5) / 2)  # type: ignore[union-attr]
    assert (success.low, success.high) == (0, 1), "two seeds say little"
    text, page = to_markdown(board), to_html(board)
    assert "w&lt;b>\\|x" in text and "<b>|" not in page and "w&lt;b&gt;|x" in page
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1 and "–" in lines[-1]
    assert "http" not in page and "<script" not in page


def test_the_picture_shows_what_was_measured(card: Scorecard) -> None:
    assert "resistance not measured" in picture([card, replace(card, resistance=None)])


def test_without_a_sample_of_the_source_class_nothing_is_measured_and_it_is_said() -> None:
    twin = twins("image", "source-to-target")
    goal = twin.implant.trigger.goal
    assert isinstance(goal, ClassGoal)
    others = ~goal.applies(twin.plan.test.labels)
    test = Samples(twin.plan.test.inputs[others], twin.plan.test.labels[others])
    card = scorecard(twin.implant, twin.clean.subject, test, Context(seed=0), extent=SMALL)
    assert set(card.skipped) == set(CRITERIA) and all("of a class that the goal" in r for r in card.skipped.values())


def test_the_table_shows_what_filters_of_samples_see(card: Scorecard) -> None:
    from laocoon.lab.tables import Results, to_markdown

    text = to_markdown(Results((), (), (), (card, card)))
    line = next(x for x in text.splitlines() if x.startswith("| badnets, class |"))
    assert card.resistance is not None
    found, missed = (m["activation_clustering"].value for m in (card.resistance.auroc, card.resistance.evasion))
    assert f"{found:.3f} / {missed:.2f}" in line
    assert "mm_bd.margin" not in text, "one score a model is no AUROC"
