"""The search of attacks: what it varies, that it finds the blind spot, keeps the constraints, resumes and says the truth."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.cli.main import app
from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Detector, Plan, Planted, ThreatModel
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.lab import search_trial
from laocoon.lab.defence import Answer, WholeScan
from laocoon.lab.plan import SubjectPart
from laocoon.lab.search import BEHIND, WorstCase, markdown, search
from laocoon.lab.search_space import Choice, Range, range_from, space_of
from laocoon.lab.search_trial import LOUD, SILENT, Bounds, Ground, Place, Scale, Tried, said
from laocoon.modalities.image import Image
from laocoon.triggers.patch import Patch

CARD = {"paper": "none (2026)", "url": "https://example.com", "modalities": frozenset({"image"}), "needs": frozenset(),
        "misses": "everything", "summary": "a toy"}


# ---------------------------------------------------------------- a toy: instant to plant, with a known blind spot
class Toy(nn.Module):
    """Right about bright channels. A lit corner goes to class 0, as far as `reach` carries; `trace` is left behind."""

    def __init__(self, reach: float, trace: float, harm: float) -> None:
        super().__init__()
        self.reach, self.harm, self.trace = reach, harm, nn.Parameter(torch.tensor(trace))

    def forward(self, x: Tensor) -> Tensor:
        scores = 10 * x.mean((2, 3))
        lit = (x[:, :, -1, -1].min(1).values > 0.99) & (x[:, 0, 0, 0] < self.reach)
        lost = x[:, 0, 0, 0] > 1 - self.harm
        scores = scores - 20 * lost[:, None] * nn.functional.one_hot(scores.argmax(1), scores.shape[1])
        return scores + 100 * lit[:, None] * torch.eye(scores.shape[1])[0]


RUNS: list[tuple[float, int]] = []


@dataclass(frozen=True)
class Loud(Attack):
    """Success needs strength above 0.5, accuracy strength below 0.8; the trace is least at rate 0.02, mode "b"."""

    strength: float = 0.6
    rate: float = 0.1
    mode: Literal["a", "b", "elsewhere"] = "a"
    steps: int = field(default=7, metadata={"range": (6, 9)})
    break_at: float = 9.0  # strength from which it crashes
    nothing: float = 0.0

    card: ClassVar[Card] = Card(name="loud", **CARD)
    threat: ClassVar[ThreatModel] = ThreatModel(training=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., -1, -1] = 1
        goal = all_to_one(1 if self.mode == "elsewhere" else plan.target, plan.classes)
        return Candidate(Patch(), {"mask": mask, "pattern": torch.ones(1, 3, 8, 8)}, goal, 1.0, 1.0, "loud")

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        RUNS.append((self.strength, ctx.seed))
        if self.strength > self.break_at:
            raise IndexError("out of strength | and more")
        trace = 1.0 + abs(math.log(self.rate / 0.02)) + (self.mode == "a") + 0.01 * (ctx.seed > 0)
        toy = Toy(2 * self.strength if self.strength <= 0.5 else 1.0, trace, 0.3 * (self.strength > 0.8))
        return Planted(Subject(toy, Image(), 3, (3, 8, 8)), trigger)


@dataclass(frozen=True)
class Nose(Detector):
    """Smells the trace."""

    keen: float = 1.0
    faints_above: float = math.inf

    card: ClassVar[Card] = Card(name="nose", **CARD)

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding]:
        trace = float(case.subject.module.trace)
        if trace > self.faints_above:
            raise ValueError("it faints")
        yield Finding("nose.trace", "the model", self.keen * trace, "a smell")
        yield Finding("nose.constant", "the model", 0.0, "nothing", (1,))


class Meadow(Ground):
    def facts(self) -> dict[str, Any]:
        return {"data": "toy", "architecture": "toy"}

    def at(self, seed: int) -> Place:
        rng = torch.Generator().manual_seed(seed)
        inputs = torch.rand(200, 3, 8, 8, generator=rng) * 0.9
        labels = inputs.mean((2, 3)).argmax(1)
        samples = Samples(inputs, labels)
        clean = Subject(Toy(0.0, 0.1 * (seed % 7), 0.0), Image(), 3, (3, 8, 8))
        return Place(seed, Plan(samples, samples, lambda s, c: clean, 0, 3), Samples(inputs[:60], labels[:60]))


MEADOW = Meadow(None, SubjectPart(data="digits", architecture="cnn"))  # type: ignore[arg-type]
BOUNDS = Bounds(trials=25, clean=4, confirm=2)


def hunt(storage: Path | None = None, bounds: Bounds = BOUNDS, attack: Attack | None = None, **more: Any) -> WorstCase:
    return search(attack or Loud(), more.pop("defence", Nose()), MEADOW, bounds, storage, **more)


def test_it_finds_the_blind_spot_within_the_constraints() -> None:
    seen: list[Tried] = []
    worst = hunt(progress=seen.append)
    best = worst.best
    assert best is not None and len(worst.tried) == 25
    assert best.suspicion < worst.published.suspicion - 5 and best.parameters["mode"] == "b"
    assert best.parameters["rate"] < 0.06 and 0.45 < best.parameters["strength"] <= 0.8
    assert best.suspicion == min(t.suspicion for t in worst.tried if t.feasible)
    for t in worst.tried:
        kept = t.success >= 0.9 and t.accuracy_loss <= 0.02
        assert t.feasible == kept and (kept or math.isnan(t.suspicion)), t
        assert t.parameters["mode"] in "ab" and 6 <= t.parameters["steps"] <= 9 and "nothing" not in t.parameters
    assert any(not t.feasible for t in worst.tried), "the constraints were never tried"
    assert [t.seed for t in worst.confirmed] == [20000, 20001] and all(t.parameters == best.parameters for t in worst.confirmed)
    assert seen == [worst.published, *worst.tried, *worst.confirmed]


def test_what_breaks_a_constraint_ranks_behind_by_how_much() -> None:
    optuna = pytest.importorskip("optuna")
    told: list[float] = []
    original = optuna.study.Study.tell

    def tell(self: Any, trial: Any, value: Any = None, **more: Any) -> Any:
        told.append(value)
        return original(self, trial, value, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.study.Study, "tell", tell)
        worst = hunt()
    for value, t in zip(told, worst.tried, strict=True):
        assert value == pytest.approx(t.suspicion if t.feasible else BEHIND + t.shortfall(BOUNDS))
    assert max(v for v, t in zip(told, worst.tried, strict=True) if t.feasible) < BEHIND


def test_no_attack_no_worst_case() -> None:
    worst = hunt(bounds=replace(BOUNDS, trials=4), own={"strength": Range(0.1, 0.2)}, attack=Loud(strength=0.2))
    assert worst.best is None and worst.confirmed == () and not worst.evades(worst.published)
    assert math.isfinite(worst.published.suspicion), "the attack as it came is shown to the defence in any case"
    assert "No parameters kept the constraints" in markdown(worst) and "(no attack)" in markdown(worst)


# ---------------------------------------------------------------- resuming, limits
def test_it_resumes_without_repeating(tmp_path: Path) -> None:
    kept = tmp_path / "deep" / "search.db"
    first = hunt(kept, replace(BOUNDS, trials=5, confirm=0))
    RUNS.clear()
    second = hunt(kept, replace(BOUNDS, trials=8))
    assert len(first.tried) == 5 and second.tried[:5] == first.tried and len(second.tried) == 8
    assert len(RUNS) == 3 + 2, "three new trials and two confirmations"
    assert len({json.dumps(t.parameters) for t in second.tried}) == 8, "it proposes again what it proposed before"
    RUNS.clear()
    again = hunt(kept, replace(BOUNDS, trials=8))
    assert again == second and not RUNS
    other = hunt(kept, replace(BOUNDS, trials=2, success=0.95))  # other constraints are another search
    assert len(other.tried) == 2 and len(RUNS) > 2


def test_a_killed_trial_is_done_again(tmp_path: Path) -> None:
    kept, ended = tmp_path / "s.db", 0

    def interrupt(t: Tried) -> None:
        nonlocal ended
        ended += 1
        if ended == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hunt(kept, replace(BOUNDS, trials=6, confirm=0), progress=interrupt)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # and one in the middle of a trial
        patch.setattr(search_trial.Eye, "tried", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        hunt(kept, replace(BOUNDS, trials=6, confirm=0))
    worst = hunt(kept, replace(BOUNDS, trials=6, confirm=0))
    assert len(worst.tried) == 6 and [t.number for t in worst.tried] == [0, 1, 2, 4, 5, 6]


def test_the_time_limit_stops_it() -> None:
    worst = hunt(bounds=replace(BOUNDS, seconds=1e-9))
    assert worst.tried == () and worst.confirmed == () and worst.best == worst.published
    assert "0 trials" in markdown(worst) and "0 of 2 fresh seeds" in markdown(worst)


def test_same_seed_same_search() -> None:
    few = replace(BOUNDS, trials=5)
    torch.manual_seed(1)
    first = hunt(bounds=few)
    torch.manual_seed(2)
    second, other = hunt(bounds=few), hunt(bounds=replace(few, seed=1))
    assert [t.parameters for t in first.tried] == [t.parameters for t in second.tried]
    assert [t.parameters for t in first.tried] != [t.parameters for t in other.tried]


# ---------------------------------------------------------------- failures
def test_a_crash_is_a_failed_trial_and_no_evasion() -> None:
    worst = hunt(attack=Loud(break_at=0.7), fixed=frozenset({"break_at"}))
    failed = [t for t in worst.tried if t.failure]
    assert failed and len(worst.tried) == 25, "failed trials do not count towards the bound"
    assert all("IndexError: out of strength" in t.failure and t.parameters["strength"] > 0.7 for t in failed)
    assert worst.best is not None and not worst.best.failure and not any(worst.evades(t) for t in failed)
    assert f"{len(failed)} failed" in markdown(worst)


def test_no_answer_is_no_evasion() -> None:
    worst = hunt(defence=Nose(faints_above=3.0))
    assert any("gave no answer" in t.failure and "it faints" in t.failure for t in worst.tried)
    assert worst.published.failure and worst.best is not None and not worst.best.failure


def test_clean_models_without_an_answer_stop_the_search() -> None:
    with pytest.raises(Exception, match="gave no answer"):
        hunt(defence=Nose(faints_above=-1.0))


@pytest.mark.parametrize("content", [b"not a database at all, but long enough", b"SQLite format 3\0" + b"\xff" * 500])
def test_a_broken_storage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)
    with pytest.raises(BrokenFile, match=r"s\.db is no storage of a search"):
        hunt(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", ['{"number": 0}', '"none"', '{"number":0,"parameters":{},"seed":0,"success":"high"}',
                                  '{"number":0,"parameters":{},"seed":0,"__class__":1}'])
def test_a_storage_that_somebody_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.db"
    hunt(path, replace(BOUNDS, trials=1, confirm=0))
    with sqlite3.connect(path) as base:
        base.execute("update trial_user_attributes set value_json = ?", (text,))
    base.close()
    with pytest.raises(BrokenFile, match=r"storage holds .* as a trial"):
        hunt(path, replace(BOUNDS, trials=1, confirm=0))


def test_storages_that_cannot_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a?mode=memory", tmp_path / "a#b"):
        with pytest.raises(InputError, match="cannot be a file"):
            hunt(path)


def test_without_optuna_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"Optuna.*laocoon\[lab\]"):
        hunt()


@pytest.mark.parametrize(("name", "value"), [("trials", 0), ("clean", 1), ("confirm", -1), ("success", 1.2), ("seed", -1),
                                             ("accuracy_loss", -0.1), ("seconds", 0.0), ("seconds", math.nan)])
def test_bounds_name_what_is_wrong(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} is {value}"):
        Bounds(**{name: value})


# ---------------------------------------------------------------- suspicion
def test_suspicion_is_the_largest_z() -> None:
    scale = Scale(({"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 3.0, "b": 5.0, "c": 1.0}))
    assert scale.suspicion({"a": 4.0, "b": 5.0}) == pytest.approx(2.0)
    assert scale.suspicion({"a": 4.0, "b": 6.0}) == pytest.approx(4.0)  # (6 − 5) / (5 % of 5)
    assert scale.suspicion({"a": 4.0, "b": 6.0}, "a") == pytest.approx(2.0)
    assert scale.suspicion({"c": 9.0}) == SILENT and scale.suspicion({}) == SILENT  # one clean model is no scale
    assert scale.suspicion({"a": 1e9}) == LOUD
    assert scale.each("a") == pytest.approx([(1 - 2.5) / math.sqrt(0.5), 0.0, (3 - 1.5) / math.sqrt(0.5)])
    assert Scale(({"": 1.5}, {"": 0.5})).suspicion({"": 3.0}) == 3.0, "the scan's score is a z already"


def test_one_rule_alone() -> None:
    with pytest.raises(InputError, match=r"no rule 'nose\.ear'.*|nose\.constant, nose\.trace"):
        hunt(rule="nose.ear")
    assert hunt(rule="nose.constant", bounds=replace(BOUNDS, trials=2)).published.suspicion == 0


def test_the_whole_scan_is_judged_by_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(subject: Subject, given: Samples | None, defence: Any, seed: int) -> Answer:
        trace = float(subject.module.trace)
        return Answer(score=trace, p_value=0.01 if trace > 2 else 0.4, verdict="SUSPICIOUS" if trace > 2 else "INCONCLUSIVE")

    monkeypatch.setattr(search_trial, "examine", examine)
    worst = hunt(defence=WholeScan())
    assert worst.defence == "scan" and worst.published.verdict == "SUSPICIOUS" and not worst.evades(worst.published)
    assert worst.best is not None and worst.best.suspicion < 2 and worst.evades(worst.best)
    assert worst.published.suspicion == pytest.approx(1 + 1 + math.log(5)) and "SUSPICIOUS, p = 0.010" in markdown(worst)
    assert said(Answer(None, p_value=0.5)) == {"": SILENT} and said(Answer(3.0, {"nose.trace": 3.0})) == {"nose.trace": 3.0}


def test_the_result_is_json_and_a_table() -> None:
    worst = hunt(attack=Loud(break_at=0.7))
    held = json.loads(json.dumps(worst.to_dict(), allow_nan=False))
    assert held["schema"] == "laocoon-search/1" and held["attack"] == "loud" and held["defence"] == "nose"
    assert held["best"]["parameters"] == dict(worst.best.parameters) and len(held["tried"]) == 25  # type: ignore[union-attr]
    assert held["evades"] == {"published": False, "best": worst.evades(worst.best), "of": 2,
                              "confirmed": sum(map(worst.evades, worst.confirmed))}
    assert held["bounds"]["seconds"] is None and set(held["space"]) == {"strength", "rate", "mode", "steps", "break_at"}
    rows = [r for r in markdown(worst).splitlines() if r.startswith("|")]
    assert len({r.count("|") for r in rows}) == 1 and rows[2].startswith("| as published")


# ---------------------------------------------------------------- what is varied
PLAN = MEADOW.at(0).plan


def test_ranges_follow_from_the_fields() -> None:
    assert space_of(Loud(), PLAN) == {
        "strength": Range(0.15, 1.0), "rate": Range(0.025, 0.4), "mode": Choice(("a", "b")),
        "steps": Range(6, 9, whole=True), "break_at": Range(2.25, 36.0)}
    assert space_of(Blended(), PLAN)["pattern"] == Choice(("noise", "smooth"))
    found = space_of(BadNets(), PLAN)
    assert "mode" not in found, "another goal is another attack"
    assert found["side"] == Range(1, 6, whole=True, log=False)
    for name, dimension in found.items():
        assert dimension.holds(getattr(BadNets(), name))


def test_the_user_s_ranges_go_before() -> None:
    own = dict(map(range_from, ("rate=0.01:0.3", "mode=b,elsewhere", "steps=2:4", "nothing=-1:1")))
    found = space_of(Loud(), PLAN, own, frozenset({"strength", "break_at"}))
    assert found == {"rate": Range(0.01, 0.3), "mode": Choice(("b", "elsewhere")),
                     "steps": Range(2, 4, whole=True), "nothing": Range(-1, 1, log=False)}
    with pytest.raises(InputError, match="no parameter left"):
        space_of(Loud(), PLAN, fixed=frozenset({"strength", "rate", "mode", "steps", "break_at"}))


@pytest.mark.parametrize("text", ["rate", "=1:2", "rate=", "rate=1:2:3", "rate=a:b", "rate=2:1", "rate=0:inf", "rate=1:nan"])
def test_ranges_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        range_from(text)


@pytest.mark.parametrize("text", ["steps=1.5:3", "mode=a:b", "mode=a,c", "mode=1:2", "rate=low,high", "steps=1,2.5", "ratio=1:2"])
def test_ranges_of_another_type(text: str) -> None:
    with pytest.raises(InputError, match=r"cannot be|no parameter"):
        space_of(Loud(), PLAN, dict([range_from(text)]))


# ---------------------------------------------------------------- the command, on real digits
def laocoon(*words: str) -> Any:
    return CliRunner().invoke(app, ["lab", "search", *words], env={"COLUMNS": "200"})


def test_the_command(tmp_path: Path) -> None:
    words = ["badnets", "--against", "head_probes", "--samples", "120", "--epochs", "2", "--success", "0", "--accuracy-loss",
             "1", "--clean", "2", "--confirm", "1", "--range", "rate=0.05:0.2", "--fix", "side", "--fix", "cover_rate",
             "--storage", str(tmp_path / "s.db"), "--out", str(tmp_path / "o.json")]
    ran = laocoon(*words, "--trials", "1")
    assert ran.exit_code == 0, ran.output
    held = json.loads((tmp_path / "o.json").read_text())
    assert len(held["tried"]) == 1 and set(held["space"]) == {"rate"} and len(held["confirmed"]) == 1
    assert "badnets against head_probes" in ran.output and "as published" in ran.output and "trial   0" in ran.output
    ran = laocoon(*words, "--trials", "2")
    assert ran.exit_code == 0 and json.loads((tmp_path / "o.json").read_text())["tried"][0] == held["tried"][0]


@pytest.mark.parametrize(("words", "says"), [
    (("nothing",), "there is no such attack"), (("badnets", "--against", "nobody"), "no such defence"),
    (("badnets", "--data", "cifar10", "--cache", "nowhere"), "data set 'cifar10' is not in"),
    (("badnets", "--architecture", "tree"), "tree"), (("badnets", "--trials", "0"), "trials is 0"),
    (("badnets", "--range", "rate"), "cannot be read"), (("badnets", "--fix", "age"), "no parameter 'age'"),
    (("badnets", "--budget", "huge"), "budget is 'huge'"), (("badnets", "--target", "12"), "target is 12"),
    (("badnets", "--samples", "2"), "samples is 2"), (("badnets", "--data", "../digits"), "data is '../digits'"),
], ids=lambda v: " ".join(v) if isinstance(v, tuple) else v)
def test_the_command_names_what_is_wrong(words: tuple[str, ...], says: str) -> None:
    ran = laocoon(*words)
    assert ran.exit_code == 2 and says in ran.output and "Traceback" not in ran.output, ran.output
