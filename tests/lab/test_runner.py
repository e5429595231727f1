"""Trials: plans that are refused, digests that hold, claims that are exclusive, kills that lose and repeat nothing,
defences that see no truth."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, InputError, NotApplicable
from laocoon.core.methods import Attack, Detector, Implant, Plan
from laocoon.core.report import Finding
from laocoon.lab import plan as plans
from laocoon.lab import runner
from laocoon.lab import workshop as workshops
from laocoon.lab.artefacts import Folder, opened
from laocoon.lab.ledger import LEASE, ClaimRow, Ended, Ledger, TrialRow, Worker, here, in_folder, void
from laocoon.lab.pictures import drawn
from laocoon.lab.plan import Experiment, parse, read
from laocoon.lab.runner import Lab, Progress, run
from laocoon.lab.tables import collect, to_csv, to_json, to_markdown
from laocoon.lab.training import lot
from laocoon.lab.trial import Trial, code_of, entries
from laocoon.lab.worker import work

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "experiments" / "tiny.toml"
PRINTS = {"digits": "0" * 64}

SMALL = """
name = "small"
tier = "ci"
test_samples = 60
given_per_class = 4
subjects = [{ data = "digits", architecture = "cnn", samples = 300, epochs = 2 }]
attacks = [{ name = "badnets", parameters = { rate = 0.2, side = 3 }, expected = { success = [0.9, 1.0] } }]
defences = [{ name = "head_statistics" }]
"""


def small(**changes: Any) -> Experiment:
    return Experiment.model_validate_json(json.dumps({**parse(SMALL).model_dump(mode="json"), **changes}))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(in_folder(tmp_path))
    yield found
    found.close()


# Plans

@dataclass(frozen=True)
class Bad:
    change: tuple[str, str]  # what in SMALL is replaced by what
    says: tuple[str, ...]


BAD = (
    Bad(('name = "small"', 'nmae = "small"'), ("nmae is 'small'", "Did you mean name?")),
    Bad(('name = "small"\n', "\n"), ("name is missing", "Add it")),
    Bad(('name = "small"', 'name = "../up"'), ("name is '../up'",)),
    Bad(('tier = "ci"', 'tier = "huge"'), ("tier is 'huge'", "'ci', 'desk' or 'full'")),
    Bad(('tier = "ci"', "seeds = [0, 0]"), ("seeds name 0 twice",)),
    Bad(('tier = "ci"', "seeds = [-1]"), ("seeds[0] is -1",)),
    Bad(('tier = "ci"', 'criteria = ["beauty"]'), ("criteria[0] is 'beauty'", "targetedness")),
    Bad(('tier = "ci"', "tier = "), ("is not TOML", "line 3")),
    Bad(("samples = 300", "samples = 3.5"), ("subjects[0].samples is 3.5", "integer")),
    Bad(("samples = 300", "samples = 1"), ("subjects[0].samples is 1", "20")),
    Bad(('data = "digits"', 'data = "../etc"'), ("subjects[0].data is '../etc'",)),
    Bad((', epochs = 2', ""), ()),  # digits have a recipe: the neighbour of the next
    Bad(('data = "digits", architecture = "cnn", samples = 300, epochs = 2', 'data = "faces", architecture = "cnn"'),
        ("subjects[0].samples is missing", "faces has no recipe")),
    Bad(('"cnn"', '"cnm"'), ("subjects[0].architecture is 'cnm'", "Did you mean cnn?", "vgg")),
    Bad(('"badnets"', '"badnet"'), ("attacks[0].name is 'badnet'", "Did you mean badnets?")),
    Bad(('"badnets"', '"text_badnets"'), ("attacks[0].name is 'text_badnets'", "for images")),
    Bad(("side = 3", "size = 3"), ("attacks[0].parameters.size is 3", "Did you mean side?")),
    Bad(("side = 3", 'side = "big"'), ("attacks[0].parameters.side is 'big'", "a whole number, by default 3")),
    Bad(("side = 3", "side = true"), ("attacks[0].parameters.side is True", "a whole number")),
    Bad(("side = 3", 'mode = "all"'), ("attacks[0].parameters.mode is 'all'", "'all-to-one'")),
    Bad(("side = 3", "rate = 1.0"), ("is not TOML", "rate")),
    Bad(("[0.9, 1.0]", "[1.0, 0.9]"), ("attacks[0].expected.success is [1.0, 0.9]", "low first")),
    Bad(("[0.9, 1.0]", "[90, 100]"), ("attacks[0].expected.success is [90, 100]", "shares")),
    Bad(('name = "badnets",', 'name = "badnets", data = ["mnist"],'), ("attacks[0].data names 'mnist'", "digits")),
    Bad(('"head_statistics"', '"badnets"'), ("defences[0].name is 'badnets'", "no such defence")),
    Bad(('{ name = "head_statistics" }', '{ name = "scan", parameters = { budget = "vast" } }'), ("budget is 'vast'",)),
    Bad(('[{ name = "head_statistics" }]', '[{ name = "trodo" }, { name = "trodo" }]'), ("defences name trodo twice",)),
    Bad(("test_samples = 60", "test_samples = nan"), ("test_samples",)),
    Bad(("test_samples = 60", "test_samples = 1979-05-27"), ("test_samples is '1979-05-27'",)),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda b: b.change[1][:40])
def test_a_bad_plan_is_refused_with_file_key_value_and_remedy(bad: Bad, tmp_path: Path) -> None:
    assert bad.change[0] in SMALL
    path = tmp_path / "night.toml"
    path.write_text(SMALL.replace(*bad.change))
    if not bad.says:
        read(path)
        return
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith("night.toml")
    for words in bad.says:
        assert words in str(caught.value), str(caught.value)


def test_a_plan_that_is_no_text_too_large_or_absent(tmp_path: Path) -> None:
    for name, content, says in (("a.toml", b"\xff\xfe", "UTF-8"), ("b.toml", b"#" * (plans.LARGEST + 1), "bytes"),
                                ("c.toml", b"a = " + b"[" * 5000, "TOML")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says):
            read(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.toml")
    with pytest.raises(InputError, match="trials"):
        parse(SMALL.replace('tier = "ci"', f"seeds = {list(range(1000))}").replace(
            'attacks = [', "attacks = [" + "".join(f'{{ name = "badnets", label = "a{i}" }}, ' for i in range(80))))


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.name)
def test_every_experiment_can_be_run(path: Path) -> None:
    experiment = read(path)
    assert experiment.name == path.stem
    found = entries(experiment, {s.data: "0" * 64 for s in experiment.subjects})
    assert len({e.trial.digest for e in found}) == len(found) > 0
    for attack in experiment.attacks:
        assert attack.expected.success and attack.expected.source, f"{attack.title} was not thought about beforehand"


def test_every_attack_is_in_some_experiment() -> None:
    tried = {a.name for p in (ROOT / "experiments").glob("*.toml") for a in read(p).attacks}
    assert not set(plans.attacks()) - tried, "add them to experiments/every_attack.toml with what you expect"


# Digests

def digests(experiment: Experiment) -> list[str]:
    return [e.trial.digest for e in entries(experiment, PRINTS)]


def test_digests_do_not_depend_on_the_process_or_the_order_of_keys() -> None:
    code = ("from laocoon.lab.plan import parse; from laocoon.lab.trial import entries; import sys;"
            "print(*[e.trial.digest for e in entries(parse(sys.argv[1]), {'digits': '0' * 64})])")
    shuffled = SMALL.replace("rate = 0.2, side = 3", "side = 3, rate = 0.2").replace(
        'data = "digits", architecture = "cnn"', 'architecture = "cnn", data = "digits"')
    told = subprocess.run([sys.executable, "-c", code, shuffled], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT / "src")})
    assert told.stdout.split() == digests(parse(SMALL))


@pytest.mark.parametrize(("old", "new", "which"), [
    ("epochs = 2", "epochs = 3", {"twin", "implant", "defence"}),
    ("samples = 300", "samples = 301", {"twin", "implant", "defence"}),
    ("given_per_class = 4", "given_per_class = 5", {"twin", "implant", "defence"}),
    ('tier = "ci"', "seeds = [1]", {"twin", "implant", "defence"}),
    ("side = 3", "side = 2", {"implant"}),
    ('{ name = "badnets",', '{ name = "badnets", target = 1,', {"implant"}),
    ('tier = "ci"', 'criteria = ["targetedness"]', {"implant"}),
    ('{ name = "head_statistics" }', '{ name = "head_statistics", graph = true }', set()),
    ("[0.9, 1.0]", "[0.8, 1.0]", None),
    ('tier = "ci"', 'tier = "full"', None),
    ('{ name = "badnets",', '{ name = "badnets", label = "patch",', None),
    ("side = 3", "side = 3, cover_rate = 0.1", None),  # the default, written out
], ids=lambda v: v if isinstance(v, str) else "")
def test_what_determines_a_trial_is_in_its_digest_and_nothing_else(old: str, new: str, which: set[str] | None) -> None:
    """`which`: kinds of which every trial changes, the planted model's defence with it; None: nothing changes."""
    assert old in SMALL
    before, after = (entries(parse(text), PRINTS) for text in (SMALL, SMALL.replace(old, new)))
    changed = {e.trial.kind: f.trial.digest != e.trial.digest for e, f in zip(before, after, strict=True) if e.label or
               e.trial.kind == "twin"}
    if which is None:
        assert not any(changed.values())
    else:
        assert changed == {"twin": "twin" in which, "implant": "implant" in which, "defence": True}
    assert digests(parse(SMALL)) == [e.trial.digest for e in before]


def test_the_data_is_in_the_digest() -> None:
    other = [e.trial.digest for e in entries(parse(SMALL), {"digits": "1" * 64})]
    assert not set(other) & set(digests(parse(SMALL)))


def test_code_counts_but_what_is_said_about_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = {"one": '"""A."""\nclass M:\n    """B."""\n    card: int = 1\n    x = 2  # c\n',
             "two": '"""Z."""\nclass M:\n    card: int = 3\n\n    x = 2\n', "three": "class M:\n    x = 3\n"}
    found = {}
    for name, text in texts.items():
        (tmp_path / f"method_{name}.py").write_text(text)
        found[name] = code_of(__import__(f"method_{name}").M)
    assert found["one"] == found["two"] != found["three"]


# The ledger

def row(digest: str, status: str = "done") -> TrialRow:
    return TrialRow(digest=digest, kind="twin", status=status, data="digits", architecture="cnn", seed=0,
                    specification={}, result={"by": digest})


def test_one_claim_wins_whoever_asks(tmp_path: Path, ledger: Ledger) -> None:
    won: list[str] = []

    def ask(name: str) -> None:
        own = Ledger(in_folder(tmp_path))
        won.extend(f"d{i}" for i in range(12) if own.claim(f"d{i}", Worker(name, here(), os.getpid())))
        own.close()

    threads = [threading.Thread(target=ask, args=(f"w{i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(f"d{i}" for i in range(12))


def test_a_trial_that_ended_is_never_claimed_nor_overwritten(ledger: Ledger) -> None:
    me, other = Worker.here("me"), Worker.here("other")
    assert ledger.claim("d", me) and not ledger.claim("d", other)
    assert ledger.finish(row("d"), "me")
    assert not ledger.claims() and not ledger.claim("d", other)
    late = row("d")
    late.result = {"by": "a worker that slept"}
    assert not ledger.finish(late, "other")
    assert ledger.rows()["d"].result == {"by": "d"}


def test_claims_of_the_dead_are_taken_over(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert ledger.claim("d", Worker("dead", here(), child.pid))
    assert ledger.claim("d", Worker.here("me"))
    assert ledger.claims()["d"].worker == "me" and not ledger.claim("d", Worker.here("third"))
    now = time.time()
    far = ClaimRow(digest="e", worker="x", host="elsewhere", process=child.pid, began=now, beat=now)
    assert not void(far, now) and void(far, now + LEASE + 1)


def test_expectations_keep_their_date_until_they_change(ledger: Ledger) -> None:
    entry = {"trial": "d", "position": 0, "tier": "ci", "label": "a", "defence_label": "", "expected": {"success": [0, 1]}}
    ledger.enrol("p", [entry])
    since = ledger.entries("p")[0].expected_since
    ledger.enrol("p", [entry])
    assert ledger.entries("p")[0].expected_since == since
    ledger.enrol("p", [{**entry, "expected": {"success": [0.5, 1]}}])
    assert ledger.entries("p")[0].expected_since > since
    ledger.enrol("p", [])
    assert not ledger.entries("p")


@pytest.mark.parametrize(("url", "says"), [
    ("nonsense", "not a database URL"), ("sqlite://", "in memory"), ("oracool://x/y", "driver"),
    ("sqlite:////proc/nowhere/x.sqlite", "nowhere|No such file")], ids=str)
def test_a_ledger_that_cannot_be_opened(url: str, says: str) -> None:
    with pytest.raises((InputError, OSError), match=says):
        Ledger(url)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        Ledger("nodialect://me:secret@db/lab")
    assert "secret" not in str(caught.value)


# Artefacts

@pytest.mark.parametrize("remote", [False, True], ids=["folder", "fsspec"])
def test_artefacts_are_found_by_what_they_are(remote: bool, tmp_path: Path) -> None:
    store = opened(f"memory://laocoon-{tmp_path.name}" if remote else tmp_path)
    address = store.put(b"weights", "safetensors")
    assert re.fullmatch(r"[0-9a-f]{64}\.safetensors", address) and store.put(b"weights", "safetensors") == address
    assert store.get(address) == b"weights" and store.put(b"other", "json") != address
    for wrong in ("../../etc/passwd", f"{'0' * 64}.json/..", ""):
        with pytest.raises(InputError, match="not the address"):
            store.get(wrong)
    with pytest.raises(InputError if remote else BrokenFile):
        store.get(f"{'0' * 64}.json")


def test_an_artefact_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    address = store.put(b"weights", "safetensors")
    (tmp_path / address[:2] / address[2:]).write_bytes(b"weightz")
    with pytest.raises(BrokenFile, match="not what was stored"):
        store.get(address)


# Running

class Bench:
    """A workshop that does nothing, fast, and remembers what it was asked."""

    def __init__(self, deed: Callable[[Trial], Ended] | None = None) -> None:
        self.asked: list[str] = []
        self.deed = deed

    def perform(self, trial: Trial, needs: Any) -> Ended:
        assert all(n in needs for n in trial.needs)
        self.asked.append(trial.digest)
        time.sleep(0.002)
        return self.deed(trial) if self.deed else Ended("done", {"kind": trial.kind}, {})


def test_workers_that_share_a_ledger_share_the_work(tmp_path: Path, ledger: Ledger) -> None:
    found = entries(small(seeds=[0, 1, 2]), PRINTS)
    bench = Bench()
    ledgers = [Ledger(in_folder(tmp_path)) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(found, own, bench, f"w{i}")) for i, own in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bench.asked) == sorted(e.trial.digest for e in found)
    assert len(ledger.rows()) == len(found) and not ledger.claims()
    for own in ledgers:
        own.close()


def test_what_fails_is_written_down_and_the_rest_goes_on(ledger: Ledger) -> None:
    found = entries(small(), PRINTS)

    def deed(trial: Trial) -> Ended:
        if trial.kind == "implant":
            raise ZeroDivisionError("a plug-in does anything")
        return Ended("done", {}, {})

    bench = Bench(deed)
    work(found, ledger, bench, "w")  # type: ignore[arg-type]
    rows = ledger.rows()
    planted = next(e for e in found if e.trial.kind == "implant")
    assert rows[planted.trial.digest].status == "failed" and "ZeroDivision" in rows[planted.trial.digest].reason
    assert len(rows) == len(found) - 1, "the defence of what was not planted is not tried"
    work(found, ledger, bench, "w")  # type: ignore[arg-type]
    assert len(bench.asked) == len(rows), "a failure is not repeated unasked"
    ledger.forget([planted.trial.digest], "failed")
    bench.deed = None
    work(found, ledger, bench, "w")  # type: ignore[arg-type]
    assert len(ledger.rows()) == len(found)


def test_what_does_not_apply_is_skipped(ledger: Ledger) -> None:
    def deed(trial: Trial) -> Ended:
        if trial.kind == "implant":
            raise NotApplicable("nothing to filter in a grey picture.")
        return Ended("done", {}, {})

    work(entries(small(), PRINTS), ledger, Bench(deed), "w")  # type: ignore[arg-type]
    assert [r.status for r in ledger.rows().values()].count("skipped") == 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Progress]:
    """The tiny plan with one seed, the criteria and a whole detector, run in this process."""
    place = Lab(tmp_path_factory.mktemp("lab"))
    plan = read(TINY).model_dump(mode="json")
    plan |= {"seeds": [0], "criteria": ["targetedness", "practicality"], "extent": {"samples": 100}}
    return place, run(Experiment.model_validate_json(json.dumps(plan)), place, jobs=0)


def test_a_plan_trains_plants_judges_and_defends(lab: tuple[Lab, Progress]) -> None:
    place, last = lab
    assert last.settled and last.count("done") == last.total == 9
    ledger = place.ledger()
    results = collect(ledger, place.store(), "tiny")
    ledger.close()
    assert [a.attack for a in results.attacks] == ["badnets", "blended"] and not results.unfinished
    for line in results.attacks:
        success = line.measured["success"]
        assert success.value is not None and success.low is not None and success.value >= 0.9 > 0.5 > success.low - 0.5
        assert line.within["success"] == "inside" and line.beforehand and line.seeds == 1
        assert (line.measured["natural_success"].value or 0) < 0.3
    assert len(results.defences) == 4 and all((d.planted, d.clean) == (1, 1) for d in results.defences)
    assert len(results.cards) == 2 and all(c.targetedness and not c.stealthiness for c in results.cards)


def test_every_specimen_says_what_it_is(lab: tuple[Lab, Progress], tmp_path: Path) -> None:
    place, last = lab
    store = place.store()
    for entry in last.entries:
        kept = last.rows[entry.trial.digest].artefacts
        if "model" in kept:
            (tmp_path / "m").write_bytes(store.get(kept["model"]))
            with safe_open(tmp_path / "m", "pt") as file:
                told = json.loads(file.metadata()["laocoon"])
            assert told["backdoored"] is (entry.trial.kind == "implant") and told["trial"] == entry.trial.digest
            assert told["specification"]["data_digest"] == entry.trial.specification["data_digest"]
        if entry.trial.kind == "implant":
            twin = last.rows[entry.trial.needs[0]].artefacts["model"]
            assert told["twin"] == twin and json.loads(store.get(kept["truth"]))["targets"]


def test_running_again_does_nothing(lab: tuple[Lab, Progress], monkeypatch: pytest.MonkeyPatch) -> None:
    place, last = lab
    monkeypatch.setattr(workshops.Workshop, "perform", lambda *_: pytest.fail("a trial was repeated"))
    plan = read(TINY).model_dump(mode="json")
    plan |= {"seeds": [0], "criteria": ["targetedness", "practicality"], "extent": {"samples": 100}}
    again = run(Experiment.model_validate_json(json.dumps(plan)), place, jobs=0)
    assert {d: r.ended for d, r in again.rows.items()} == {d: r.ended for d, r in last.rows.items()}


def test_tables_and_pictures(lab: tuple[Lab, Progress]) -> None:
    place, _ = lab
    ledger = place.ledger()
    results = collect(ledger, place.store())
    ledger.close()
    text = to_markdown(results)
    assert "| digits | cnn | badnets | 1 |" in text and "0.9 to 1" in text and "## Criteria" in text
    data = json.loads(to_json(results))
    assert data["schema"] == "laocoon-lab/1" and data["attacks"][0]["expected"]["success"] == [0.9, 1.0]
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [r["attack"] for r in rows] == ["badnets", "blended"] and float(rows[0]["measured.success.value"]) >= 0.9
    assert len(list(csv.DictReader(io.StringIO(to_csv(results, "defences"))))) == 4
    for of in ("success", "accuracy", "defences", "criteria"):
        assert drawn(results, of).startswith("<svg") and "badnets" in drawn(results, of)


def test_every_network_of_the_lab_has_a_fingerprint() -> None:
    """Also where 1×1 kernels are stored channels-last, whose strides say nothing."""
    from laocoon.lab.training import Victim
    from laocoon.modalities.image_networks import ARCHITECTURES

    for name in ARCHITECTURES:
        victim = Victim(name, 1, 16, 4, 0, 1, 0, False)
        assert victim.subject(victim.blank()).fingerprint() == victim.subject(victim.blank()).fingerprint()
        other = victim.untrained(Context(seed=1))
        assert other.fingerprint() != victim.subject(victim.blank()).fingerprint()


def test_a_student_is_judged_against_an_honest_makers_student() -> None:
    found = entries(small(attacks=[{"name": "latent"}]), PRINTS)
    twins = [e for e in found if e.trial.kind == "twin"]
    planted = next(e for e in found if e.trial.kind == "implant")
    assert [t.honest for t in twins] == ["", "latent"] and planted.trial.needs == (twins[1].trial.digest,)
    assert "honest latent" in twins[1].title()


def test_samples_are_disjoint() -> None:
    from laocoon.lab.datasets import load

    found = lot(load("digits", None, Path(".")), 3, samples=400, test=300, given_per_class=5)
    seen = [{x.numpy().tobytes() for x in part.inputs} for part in (found.test, found.given)]
    assert len(found.given) == 50 and len(found.test) == 300 and found.prior is not None and len(found.prior) == 400
    assert not seen[0] & seen[1]


# The truth

TRUTH = (Implant, Candidate, Attack, Plan, Trial, TrialRow)
WORDS = re.compile(r"badnets|blended|backdoor|specimen|poison|implant", re.IGNORECASE)


def revealed(*roots: object) -> list[str]:
    """Whatever can be reached from some objects and tells what was planted. Code and classes do not count."""
    seen: dict[int, object] = {}
    found, waiting = [], list(roots)
    dull = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType, types.CodeType)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, dull):
            continue
        seen[id(one)] = one
        if isinstance(one, TRUTH):
            found.append(type(one).__name__)
        elif isinstance(one, str) and WORDS.search(one):
            found.append(one[:60])
        waiting.extend(gc.get_referents(one))
    return found


@dataclass(frozen=True)
class Spy(Detector):
    """A defence that looks around."""

    card: ClassVar[Card] = Card(name="spy", paper="", url="", modalities=frozenset({"image"}), needs=frozenset(),
                                misses="")
    reports: ClassVar[list[dict[str, Any]]] = []

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding]:
        assert case.fit is not None
        self.reports.append({"found": revealed(case, ctx), "seed": ctx.seed, "samples": case.fit.inputs.shape,
                             "origin": (case.subject.provenance.path, case.subject.provenance.notes,
                                        dict(case.subject.provenance.metadata))})
        yield Finding("spy.nothing", "the model", 0.0, "")


def test_the_spy_would_see_a_truth_that_is_there(lab: tuple[Lab, Progress]) -> None:
    from laocoon.testing.twins import twins

    twin = twins("image")
    case = twin.planted
    assert not revealed(case, Context())
    assert "Candidate" in revealed(ModelCase(case.subject, case.fit, candidates=(twin.implant.trigger,)))
    case.subject.module._hint = twin.implant.facts  # type: ignore[assignment]
    try:
        assert revealed(case)
    finally:
        del case.subject.module._hint


def test_no_defence_sees_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = plans.detectors()
    monkeypatch.setattr(plans, "detectors", lambda: {**known, "spy": Spy})
    Spy.reports.clear()
    last = run(small(defences=[{"name": "spy"}]), Lab(tmp_path), jobs=0)
    assert last.count("done") == last.total == 4
    assert len(Spy.reports) == 2, "once the clean twin, once the planted model"
    assert Spy.reports[0] == Spy.reports[1] and not Spy.reports[0]["found"]
    assert Spy.reports[0]["origin"] == ("", (), {})


def test_the_module_of_defences_reaches_no_truth() -> None:
    """It could not even if it wanted to: what it imports knows neither attacks nor trials."""
    text = (ROOT / "src/laocoon/lab/defence.py").read_text()
    imported = set(re.findall(r"^from (laocoon[\w.]*)", text, re.M))
    assert imported and not any(m.startswith(("laocoon.attacks", "laocoon.lab")) for m in imported)


def test_a_changed_architecture_is_examined_as_a_file(tmp_path: Path) -> None:
    """Weights alone do not make it: it is written as ONNX, with the truth inside, and opened without."""
    plan = small(attacks=[{"name": "architectural"}], defences=[{"name": "architectural_backdoor", "graph": True}])
    last = run(plan, Lab(tmp_path), jobs=0)
    rows = {(r.kind, r.attack): r for r in last.rows.values()}
    assert last.count("done") == last.total, [r.reason for r in last.rows.values()]
    assert "graph" in rows["implant", "architectural"].artefacts and "graph" not in rows["twin", ""].artefacts
    planted, clean = (rows["defence", a].result["answer"] for a in ("architectural", ""))
    assert planted["score"] is not None and planted["complete"] and clean["complete"]
    assert (clean["score"] or 0.0) < planted["score"]


# Kills

def command(folder: Path, plan: Path) -> list[str]:
    return [sys.executable, "-m", "laocoon", "lab", "run", str(plan), "--lab", str(folder), "--jobs", "1"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_a_run_killed_in_the_middle_goes_on_without_repeating_or_losing(tmp_path: Path) -> None:
    plan = tmp_path / "tiny.toml"
    plan.write_text(TINY.read_text().replace("samples = 1100", "samples = 400").replace("epochs = 20", "epochs = 2"))
    folder = tmp_path / "lab"
    first = subprocess.Popen(command(folder, plan), env=environment(), start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (folder / "ledger.sqlite").exists())
    ledger = Ledger(in_folder(folder))
    until(lambda: len(ledger.rows()) >= 3 and bool(ledger.claims()))
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before, claims = ledger.rows(), ledger.claims()
    assert 3 <= len(before) < 18, "it was killed in the middle"
    again = subprocess.run(command(folder, plan), env=environment(), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} of 18 trials ended before" in again.stdout and "18 done of 18 trials" in again.stdout
    after = ledger.rows()
    assert len(after) == 18 and not ledger.claims()
    for digest, old in before.items():
        new = after[digest]
        assert (new.ended, new.worker, new.result) == (old.ended, old.worker, old.result), "a trial was repeated"
    assert all(d in after for d in claims), "what was being done is done"
    store = Folder(folder / "artefacts")
    assert all(store.get(a) for r in after.values() for a in r.artefacts.values())
    ledger.close()


def test_results_do_not_depend_on_who_did_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is killed at its trial, which then counts as failed; asked again, all is as in one process."""
    monkeypatch.setattr(runner, "DEATHS", 1)
    killed: list[int] = []
    place = Lab(tmp_path / "a")
    looking = place.ledger()

    def watch(progress: Progress) -> None:
        for claim in looking.claims().values():
            if not killed:
                killed.append(claim.process)
                os.kill(claim.process, signal.SIGKILL)

    last = run(small(), place, jobs=1, watch=watch)
    looking.close()
    failed = [r for r in last.rows.values() if r.status == "failed"]
    assert len(killed) == 1 and len(failed) == 1 and "its worker died" in failed[0].reason
    assert "signal 9" in failed[0].reason and last.settled and last.count("blocked") >= 1
    torch.set_num_threads(1)
    mended, alone = run(small(), place, jobs=1, retry=True), run(small(), Lab(tmp_path / "b"), jobs=0)
    assert mended.count("done") == alone.count("done") == 4
    for digest, one in alone.rows.items():
        other = mended.rows[digest]
        assert one.artefacts == other.artefacts and one.result.get("judged") == other.result.get("judged")


# The command

def invoked(*arguments: object) -> Any:
    from typer.testing import CliRunner

    from laocoon.cli.main import app

    return CliRunner().invoke(app, ["lab", *map(str, arguments)])


def test_commands(lab: tuple[Lab, Progress], tmp_path: Path) -> None:
    folder = lab[0].folder
    said = invoked("table", "tiny", "--lab", folder)
    assert said.exit_code == 0 and "## Attacks" in said.stdout
    assert json.loads(invoked("table", "--lab", folder, "--format", "json").stdout)["defences"]
    picture = tmp_path / "out" / "p.svg"
    assert invoked("plot", TINY, "--lab", folder, "--out", picture).exit_code == 0
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(("arguments", "says"), [
    (("run", "none.toml"), "cannot be read"), (("table",), "no ledger"), (("plot", "--of", "beauty"), "--of is 'beauty'"),
    (("table", "--format", "pdf"), "--format is 'pdf'"), (("table", "--of", "x"), "--of is 'x'")], ids=str)
def test_commands_that_cannot_be_done(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    result = invoked(*arguments, "--lab", tmp_path / "empty")
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output


def test_a_plan_that_the_ledger_does_not_hold(lab: tuple[Lab, Progress]) -> None:
    result = invoked("table", "other", "--lab", lab[0].folder)
    assert result.exit_code == 2 and "holds no plan 'other'" in result.stderr and "tiny" in result.stderr


def test_the_live_table(lab: tuple[Lab, Progress]) -> None:
    from rich.console import Console

    from laocoon.cli.lab_run import _live

    console = Console(width=160, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(_live(lab[1], "tiny"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "9 done of 9 trials" in text and "badnets" in text and "attack success so far" in text
    assert "over 1" in text


def test_an_extra_that_is_missing_is_named() -> None:
    code = ("import sys; sys.modules['sqlalchemy'] = None\nfrom laocoon.core.errors import MissingExtra\n"
            "try:\n    import laocoon.lab.ledger\nexcept MissingExtra as error:\n    print(error)")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert "laocoon[lab]" in told.stdout, told.stderr


