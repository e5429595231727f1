"""The sift on small digit sets: is it poisoned, and which samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from laocoon.core.card import Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import DataDetector
from laocoon.core.report import Verdict
from laocoon.core.sift_report import MISLABELLED, POISON, SiftReport
from laocoon.files.training_set import in_memory
from laocoon.lab.data_reference import build, measure, table
from laocoon.testing.twins import twins
from laocoon.verdict import data_statistics
from laocoon.verdict.data_reference import DataReference, DataRow, calibrate, outside, parse, place
from laocoon.verdict.data_statistics import judge, statistics_of
from laocoon.verdict.sift import sift

METHODS = ("activation_clustering", "spectral_signatures")


@cache
def report(kind: str) -> SiftReport:
    t = twins("image")
    train, model = {"poisoned": (t.implant.train, t.planted), "clean": (t.plan.train, t.clean)}[kind]
    assert train is not None
    return sift(in_memory(train, 10), subject=model.subject, methods=METHODS, reference=made_up())


def row(k: int, source: str, kind: str = "clean", shift: float = 0.0) -> DataRow:
    """A set whose figures scatter about those of the clean twin."""
    rng = np.random.default_rng(k)
    figures = {name: float(v if name.startswith("known.") else v + rng.normal(0, 0.1 * abs(v) + 0.02))
               for name, v in clean_figures().items()}
    figures["lifted.worth"] = float(max(0.0, rng.normal(0, 0.2))) + shift
    return DataRow(f"{kind}-{k}", source, kind, figures)


@cache
def clean_figures() -> dict[str, float]:
    t = twins("image")
    case = DataCase(t.plan.train, 10, t.clean.subject)
    return statistics_of(case, Context(), data_statistics.chosen(METHODS))


@cache
def made_up() -> DataReference:
    rows = [row(k, f"source {k % 4}") for k in range(40)] + [row(100 + k, "source 0", "badnets", 0.9) for k in range(8)]
    return parse(build(rows, ("badnets",)))


# ---------------------------------------------------------------- the verdict
def test_poison_is_noticed_found_and_shown() -> None:
    found, t = report("poisoned"), twins("image")
    assert found.verdict is Verdict.SUSPICIOUS and found.exit_code == 1 and 1 / 41 <= found.p_value <= 0.05
    assert found.table is not None and found.trigger is not None
    truth = np.zeros(len(found.table), bool)
    truth[t.implant.poisoned.numpy()] = True
    flagged = found.table.kinds == POISON
    assert flagged[truth].mean() > 0.95 and flagged[~truth].mean() < 0.01
    assert found.trigger.label == t.plan.target and found.trigger.low > 0.9 > 0.5 > found.trigger.natural_control
    assert {s.row for s in found.suspects} == set(np.flatnonzero(found.table.kinds).tolist())
    assert found.classes[3].poison == flagged.sum() and "class 3" in found.reason


def test_a_clean_set_is_no_evidence_and_names_nobody() -> None:
    found = report("clean")
    assert found.verdict is Verdict.NO_EVIDENCE and found.exit_code == 0 and found.p_value > found.alpha
    assert found.poison == 0 and found.trigger is None and found.kept + found.mislabelled == len(found.table)
    assert found.power and found.power[0].found == found.power[0].tried


def test_without_references_nothing_is_decided_but_what_is_seen_is_told() -> None:
    t = twins("image")
    nothing = parse(build([], ()))
    found = sift(in_memory(t.implant.train, 10), subject=t.planted.subject, methods=METHODS, reference=nothing)
    assert found.verdict is Verdict.INCONCLUSIVE and found.exit_code == 3 and found.p_value is None
    assert found.poison > 100 and "provisionally" in found.reason


def test_same_seed_same_report() -> None:
    t = twins("image")
    again = sift(in_memory(t.implant.train, 10), subject=t.planted.subject, methods=METHODS, reference=made_up())
    assert again.canonical() == report("poisoned").canonical()


def test_the_subject_is_left_as_found() -> None:
    t = twins("image")
    before = t.planted.subject.fingerprint()
    sift(in_memory(t.implant.train, 10), subject=t.planted.subject, methods=METHODS[:1], reference=made_up())
    assert t.planted.subject.fingerprint() == before


def test_alpha_finer_than_the_references() -> None:
    t = twins("image")
    found = sift(in_memory(t.plan.train, 10), subject=t.clean.subject, methods=METHODS, reference=made_up(), alpha=0.001)
    assert found.verdict is Verdict.INCONCLUSIVE and "finer" in found.reason


def test_a_model_of_other_data_is_told() -> None:
    t = twins("image")
    shuffled = Samples(t.plan.train.inputs, (t.plan.train.labels + 3) % 10)
    found = sift(in_memory(shuffled, 10), subject=t.clean.subject, methods=METHODS, reference=made_up())
    assert found.verdict is Verdict.INCONCLUSIVE and "not trained on them" in found.reason


# ---------------------------------------------------------------- samples
def test_wrong_labels_are_no_poison() -> None:
    t, rng = twins("image"), torch.Generator().manual_seed(0)
    labels = t.plan.train.labels.clone()
    wrong = torch.randperm(len(labels), generator=rng)[:60]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (60,), generator=rng)) % 10
    found = sift(in_memory(Samples(t.plan.train.inputs, labels), 10), subject=t.clean.subject, methods=METHODS,
                 reference=made_up())
    kinds = torch.from_numpy(found.table.kinds)
    assert float((kinds[wrong] == MISLABELLED).float().mean()) > 0.9
    assert int((kinds == MISLABELLED).sum()) < 66 and not bool((kinds[wrong] == POISON).any())


def test_samples_that_the_methods_did_not_see_are_judged_by_their_like() -> None:
    t = twins("image")
    found = sift(in_memory(t.implant.train, 10), subject=t.planted.subject, methods=METHODS, reference=made_up(),
                 most=800)
    truth = np.zeros(len(found.table), bool)
    truth[t.implant.poisoned.numpy()] = True
    unseen = ~found.table.scored
    assert found.data["seen"] == 800 and unseen.sum() == len(truth) - 800
    flagged = found.table.kinds == POISON
    assert flagged[unseen & truth].mean() > 0.8 and flagged[unseen & ~truth].mean() < 0.02
    assert any("drawn at random" in n for n in found.data["notes"])


def test_trusted_samples_are_the_null_and_stay_out_of_the_table() -> None:
    t = twins("image")
    trusted = Samples(t.plan.test.inputs, t.plan.test.labels)
    found = sift(in_memory(t.implant.train, 10), subject=t.planted.subject, methods=METHODS, reference=made_up(),
                 trusted=trusted)
    assert "trusted samples" in found.null and len(found.table) == len(t.implant.train)
    truth = np.zeros(len(found.table), bool)
    truth[t.implant.poisoned.numpy()] = True
    assert (found.table.kinds == POISON)[truth].mean() > 0.9
    with pytest.raises(InputError, match="label 11"):
        sift(in_memory(t.implant.train, 10), subject=t.planted.subject,
             trusted=Samples(trusted.inputs, trusted.labels + 2))


def test_a_proxy_is_trained_where_there_is_no_model() -> None:
    t = twins("image")
    found = sift(in_memory(t.implant.train, 10), untrained=t.plan.untrained, architecture="tiny", methods=METHODS,
                 reference=made_up())
    assert found.model["proxy"] and found.model["epochs"] == 45 and "tiny" in found.model["notes"][0]
    assert found.verdict is Verdict.SUSPICIOUS and found.trigger.label == t.plan.target


# ---------------------------------------------------------------- methods
@dataclass(frozen=True)
class Crashing(DataDetector):
    card: ClassVar[Card] = Card("crashing", "", "", frozenset({"image"}), frozenset(), "everything")

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        raise ZeroDivisionError("oh")


@dataclass(frozen=True)
class NotFinite(DataDetector):
    card: ClassVar[Card] = Card("not_finite", "", "", frozenset({"image"}), frozenset(), "everything")

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return torch.full((len(case.suspects),), float("nan"))


def test_a_method_that_crashes_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    t = twins("image")
    known = {m: data_statistics.available()[m] for m in METHODS}
    monkeypatch.setattr(data_statistics, "available",
                        lambda: {**known, "crashing": Crashing, "not_finite": NotFinite})
    found = sift(in_memory(t.plan.train, 10), subject=t.clean.subject, reference=made_up(), methods=["all"])
    assert set(found.examined) == set(METHODS)
    assert "ZeroDivisionError" in found.skipped["crashing"] and "finite" in found.skipped["not_finite"]
    assert found.verdict is Verdict.INCONCLUSIVE and "crashing did not finish" in found.reason


def test_names_of_methods() -> None:
    assert {m.card.name for m in data_statistics.chosen(METHODS)} == set(METHODS)
    assert METHODS[0] not in {m.card.name for m in data_statistics.chosen((f"-{METHODS[0]}",))}
    with pytest.raises(InputError, match="Did you mean spectral_signatures"):
        data_statistics.chosen(("spectral_signature",))


def test_a_small_budget_is_inconclusive() -> None:
    t = twins("image")
    found = sift(in_memory(t.plan.train, 10), subject=t.clean.subject, methods=METHODS, reference=made_up(), budget=5)
    assert found.verdict is Verdict.INCONCLUSIVE and found.spent <= 5


@pytest.mark.parametrize("change", [
    lambda s: {"alpha": 0}, lambda s: {"fdr": 1.5}, lambda s: {"subject": None}, lambda s: {"most": 0},
    lambda s: {"device": "toaster"}], ids=["alpha", "fdr", "no model", "most", "device"])
def test_usage(change: Callable[[object], dict[str, object]]) -> None:
    t = twins("image")
    arguments = {"subject": t.clean.subject, "methods": METHODS, **change(None)}
    with pytest.raises(InputError):
        sift(in_memory(t.plan.train, 10), **arguments)  # type: ignore[arg-type]


def test_too_few_samples() -> None:
    t = twins("image")
    few = Samples(t.plan.train.inputs[:50], t.plan.train.labels[:50])
    with pytest.raises(InputError, match="50 samples"):
        judge(DataCase(few, 10, t.clean.subject), Context())


# ---------------------------------------------------------------- calibration
def test_the_p_value_is_exactly_uniform_over_the_references() -> None:
    """Full conformal prediction treats all sets alike: judged one by one against the rest, they take every rank once."""
    sets = [row(k, f"source {k % 3}") for k in range(30)]
    found = [calibrate(own.statistics, parse(build([r for r in sets if r is not own], ())))[1] for own in sets]
    assert sorted(found) == pytest.approx([(k + 1) / 30 for k in range(30)])


def test_a_rule_that_was_not_computed_counts_for_nobody() -> None:
    reference = made_up()
    figures = {k: v for k, v in clean_figures().items() if not k.startswith("lifted.")}
    placed = place(figures, reference)
    assert not any(r.startswith("lifted.") for r in placed.rules) and len(placed.null) == 40
    assert not place({"known.accuracy": 1.0}, reference).null


def test_outside_of_the_references() -> None:
    figures = clean_figures()
    assert not outside(figures)
    assert "classes" in outside({**figures, "known.classes": float(np.log(1000))})
    assert "samples" in outside({**figures, "known.samples": float(np.log(300))})


def test_the_table_leaves_sources_out() -> None:
    """One source is unlike the others: its clean sets raise alarms only when it is left out."""
    odd = [replace(r, statistics={k: v + (3 if k == "lifted.worth" else 0) for k, v in r.statistics.items()})
           for r in (row(k, "odd") for k in range(200, 212))]
    rows = [row(k, f"source {k % 3}") for k in range(36)] + odd
    text = table(rows, ())
    line = next(part for part in text.splitlines() if part.startswith("| odd"))
    assert "| 12 | 12 |" in line
    assert "clustered by source" in text and "| none " in text
    with pytest.raises(InputError, match="twice"):
        build([rows[0], rows[0]], ())


def test_a_row_is_what_a_sift_computes() -> None:
    t = twins("image")
    made, found = measure(t.implant.train, 10, t.plan.untrained, source="digits", kind="badnets", methods=METHODS[:1])
    again = sift(in_memory(t.implant.train, 10), untrained=t.plan.untrained, methods=METHODS[:1], reference=made_up())
    assert made.statistics == again.statistics and made.kind == "badnets" and again.data["digest"].startswith(made.digest)
    assert found.verdict is Verdict.INCONCLUSIVE and parse(build([made], ("badnets",))).planted[0].source == "digits"
