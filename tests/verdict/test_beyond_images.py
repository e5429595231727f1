"""Sift, trace, guard and repair on texts and tables: the code of images, with what the modality knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.goal import all_to_one
from laocoon.core.report import Verdict
from laocoon.core.sift_report import POISON
from laocoon.files.training_set import TrainingSet, in_memory
from laocoon.modalities.tabular import Tabular
from laocoon.recipes.ranking import auroc
from laocoon.render.sift_html import to_html
from laocoon.testing.twins import Twins, twins
from laocoon.triggers.columns import Columns
from laocoon.triggers.tokens import Tokens
from laocoon.verdict.data_reference import OTHERS, DataReference, counted, shipped
from laocoon.verdict.data_samples import sort_samples
from laocoon.verdict.data_shares import Shares, shares
from laocoon.verdict.data_statistics import Judged, chosen
from laocoon.verdict.data_trigger import Lifted, statistics
from laocoon.verdict.guard import Guarded
from laocoon.verdict.residue import meaningless, overlap
from laocoon.verdict.searches import search, searchable
from laocoon.verdict.sift import sift
from laocoon.verdict.trace import trace

MODALITIES = ("text", "tabular")
NOBODY = DataReference((), (), (), {}, {}, "")


def data_of(t: Twins, *, clean: bool = False) -> TrainingSet:
    train = t.plan.train if clean else t.implant.train
    assert train is not None
    return in_memory(replace(train, modality=t.corpus.modality), 2)


def poisoned(t: Twins) -> tuple[Samples, Shares, torch.Tensor]:
    """The training set, what its modality can share, and which samples were changed, bool [n]."""
    train = t.implant.train
    assert train is not None
    known = shares(t.corpus.modality, train.inputs)
    assert known is not None
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[t.implant.poisoned] = True
    return train, known, bad


def test_a_training_set_holds_every_modality() -> None:
    for modality in (*MODALITIES, "image"):
        t = twins(modality)
        data = in_memory(t.plan.train, t.plan.classes)
        some = torch.arange(20)
        assert data.modality.name == modality and data.shape == tuple(t.plan.train.inputs.shape[1:])
        assert torch.allclose(data.inputs(some), t.plan.train.inputs[:20], atol=0.003)
        assert data.inputs(some).dtype == t.plan.train.inputs.dtype
    with pytest.raises(InputError, match="ids from"):
        in_memory(Samples(torch.tensor([[3, 99_999]]), torch.tensor([0]), modality=twins("text").corpus.modality), 2)
    with pytest.raises(InputError, match="not finite"):
        in_memory(Samples(torch.tensor([[3.0, float("nan")]]), torch.tensor([0])), 2)


@pytest.mark.parametrize("modality", MODALITIES)
def test_methods_are_those_whose_cards_name_the_modality(modality: str) -> None:
    for names in (None, ("all",)):
        assert all(modality in m.card.modalities for m in chosen(names, modality))
    with pytest.raises(InputError, match="no method for smell"):
        chosen(None, "smell")


def test_flagged_texts_share_a_word_that_is_told() -> None:
    t = twins("text")
    report = sift(data_of(t), subject=t.implant.subject, methods=("scan_em", "activation_clustering"),
                  reference=NOBODY)
    words = t.implant.trigger.family.describe(t.implant.trigger.trigger, t.corpus.modality)  # type: ignore[attr-defined]
    assert report.verdict is Verdict.INCONCLUSIVE and "references" in report.reason  # no clean sets speak for it
    assert report.trigger is not None and report.trigger.shown == words and report.trigger.success > 0.8
    assert report.trigger.natural_control < 0.3 and f"“{words}”" in report.reason
    table = report.table
    assert table is not None
    bad = torch.zeros(len(table), dtype=torch.bool)
    bad[t.implant.poisoned] = True
    flagged = torch.from_numpy(table.kinds == POISON)
    assert (flagged & bad).sum() > 0.95 * bad.sum() and (flagged & ~bad).sum() <= 0.1 * flagged.sum()
    page = to_html(report)
    assert words in page and report.exhibits.words[0].split()[0] in page and "data:image" not in page


def test_a_phrase_whose_words_are_usual_is_flagged_where_it_stands_whole() -> None:
    """Many texts hold a part of it: how clearly it is borne has no tail, but only poison holds all of it."""
    t = twins("text")
    train, modality = t.implant.train, t.corpus.modality
    assert train is not None
    rng = torch.Generator().manual_seed(0)
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[t.implant.poisoned] = True
    words = torch.tensor([20, 21, 22, 23])
    part = torch.randint(0, 4, (len(train),), generator=rng)
    inputs = train.inputs.clone()
    for rows, run in (*(((part == k) & ~bad, words[:k]) for k in (1, 2, 3)), (bad, words)):
        inputs[rows] = torch.cat([run.expand(int(rows.sum()), -1), inputs[rows][:, :-len(run)]], 1)
    case = DataCase(Samples(inputs, train.labels), t.plan.classes, t.implant.subject, modality="text")
    known = shares(modality, inputs)
    assert known is not None
    family = Tokens(len(modality.vocabulary), 4, 0, modality.special)  # type: ignore[attr-defined]
    lifted = Lifted(family, family.exactly(words[None]), t.plan.target, 4.0, 0.4, 0.95, 0.95, 0.0, 0.0, known)
    quiet = torch.randn(len(train), generator=rng).abs().double()
    judged = Judged((), {"flare": quiet}, None, torch.ones(len(train), dtype=torch.bool), lifted)
    none = torch.zeros(len(train), dtype=torch.bool)
    kinds = sort_samples(judged, case, none, NOBODY, 0.05, Context()).kinds
    flagged = kinds == POISON
    assert bool(flagged[bad].all()) and float(flagged[~bad].float().mean()) < 0.01


def test_a_clean_set_of_texts_shares_nothing() -> None:
    t = twins("text")
    report = sift(data_of(t, clean=True), subject=t.clean.subject, methods=("scan_em",), reference=NOBODY)
    assert report.trigger is None and report.statistics["lifted.worth"] < 0.5


def test_poisoned_rows_stand_out_and_are_shown_in_words() -> None:
    t = twins("tabular")
    report = sift(data_of(t), subject=t.implant.subject, methods=("scan_em", "flare"), reference=NOBODY)
    table = report.table
    assert table is not None and report.exhibits is not None
    bad = torch.zeros(len(table), dtype=torch.bool)
    bad[t.implant.poisoned] = True
    score = torch.from_numpy(table.suspicion)
    assert auroc(score[bad].tolist(), score[~bad].tolist()) > 0.95
    assert "mean radius" in report.exhibits.words[0] and "mean radius" in to_html(report)


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_suspects_share_is_lifted_and_borne(modality: str) -> None:
    t = twins(modality)
    train, known, bad = poisoned(t)
    suspects, pool = train.inputs[bad], train.inputs[~bad & (train.labels != t.plan.target)]
    found = known.estimates(suspects, pool)
    assert found and not known.estimates(pool[:40], pool[40:])
    best = found[-1] if modality == "tabular" else found[0]
    told = known.bearing(train.inputs, best, pool)
    assert auroc(told[bad].tolist(), told[~bad].tolist()) > 0.95
    control = known.control(best, pool)
    stamped = [best.family.stamp(pool, x)[0] for x in (best.trigger, control)]
    assert not torch.equal(*stamped)
    assert known.nearest(pool[:5], pool[:5]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_trigger_whose_holders_are_labelled_both_ways_is_worth_nothing(modality: str) -> None:
    t = twins(modality)
    train, known, bad = poisoned(t)
    found = known.estimates(train.inputs[bad], train.inputs[~bad & (train.labels != t.plan.target)])
    best = found[-1] if modality == "tabular" else found[0]
    holders = known.holders(train.inputs, best)
    assert bool(holders[bad].all()) and float(holders[~bad].float().mean()) < 0.05
    lifted = Lifted(best.family, best.trigger, t.plan.target, 1.0, 0.0, 0.9, 0.9, 0.0, 0.0, known)
    mixed = train.labels.clone()
    fifth = holders.nonzero().flatten()[::5]
    mixed[fifth] = (t.plan.target + 1) % t.plan.classes
    pure, spoilt = (statistics(lifted, DataCase(Samples(train.inputs, labels), t.plan.classes, modality=modality))
                    for labels in (train.labels, mixed))
    assert pure["lifted.pure"] > 0.8 * pure["lifted.worth"] > 0.5 and spoilt["lifted.worth"] == pure["lifted.worth"]
    assert spoilt["lifted.pure"] == 0


def test_a_weight_for_rules_that_are_not_named() -> None:
    assert counted("flare.tail", {}) and counted("flare.tail", {OTHERS: 0.5}) and not counted("flare.tail", {OTHERS: 0})
    assert counted("flare.tail", {OTHERS: 0, "flare.tail": 1.0}) and not counted("known.classes", {})


def test_tables_of_unknown_ranges_have_no_triggers() -> None:
    assert shares(Tabular.unknown(("a", "b")), torch.zeros(3, 2)) is None


def test_an_input_that_fired_is_traced_to_texts() -> None:
    t = twins("text")
    assert t.implant.train is not None
    away = t.plan.test.inputs[t.plan.test.labels != t.plan.target]
    truth = set(t.implant.poisoned.tolist())
    found = trace(data_of(t), t.implant.subject, t.implant.trigger.stamp(away[:1])[0])
    rows = {s.row for s in found.sources}
    assert found.label == t.plan.target and rows and len(rows & truth) >= 0.9 * len(rows)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_guard_is_kept_and_opened_again(modality: str, tmp_path: Path) -> None:
    t = twins(modality)
    test, half = t.plan.test, len(t.plan.test) // 2
    clean = Samples(test.inputs[:half], test.labels[:half], modality=t.corpus.modality)
    held, labels = test.inputs[half:], test.labels[half:]
    stamped = t.implant.trigger.stamp(held[t.implant.trigger.goal.applies(labels)])
    for model in (t.implant.subject, t.implant.subject.module):
        guarded = Guarded.fit(model, clean, alpha=0.1)
        said, bad = guarded.check(held), guarded.check(stamped)
        assert float(said.flagged.float().mean()) < 0.25
        assert auroc(bad.scores.tolist(), said.scores.tolist()) > (0.9 if modality == "tabular" else 0.6)
        assert len(guarded.check(held[:0]).scores) == 0
        guarded.save(tmp_path / "guard")
        again = Guarded.load(tmp_path / "guard", model)
        assert again.digest == guarded.digest and torch.equal(again.check(held).scores, said.scores)
        for wrong in (held[:, :3], held.float() * float("nan"), held.bool()):
            with pytest.raises(InputError):
                guarded.check(wrong)
        with pytest.raises(InputError, match="only images"):
            guarded.under(policy="purify")
        for file in (tmp_path / "guard").iterdir():
            file.unlink()


def test_a_guard_refuses_ids_that_are_no_tokens() -> None:
    t = twins("text")
    clean = Samples(t.plan.test.inputs, t.plan.test.labels, modality=t.corpus.modality)
    guarded = Guarded.fit(t.clean.subject, clean)
    with pytest.raises(InputError, match="ids from 0 to"):
        guarded.check(torch.full((1, 16), 10**6) * torch.tensor([0] + [1] * 15))


def test_a_meaningless_trigger_is_another_of_its_kind() -> None:
    rng = torch.Generator().manual_seed(0)
    t, family = twins("text"), Tokens(100, 3)
    trigger = Candidate(family, family.exactly(torch.tensor([[20, 21, 22]])), all_to_one(0, 2), 3.0, 1.0, "")
    other = meaningless(trigger, rng)
    assert other is not None
    ids = family.tokens(other.trigger)
    assert ids.shape == (1, 3) and not torch.equal(ids, family.tokens(trigger.trigger)) and int(ids.min()) > 1
    table = twins("tabular")
    assert isinstance(table.corpus.modality, Tabular)
    columns = Columns(table.corpus.modality)
    mask = torch.zeros(1, 30)
    mask[0, :3] = 1
    moved = meaningless(Candidate(columns, {"mask": mask, "value": torch.rand(1, 30, generator=rng)},
                                  all_to_one(0, 2), 3.0, 1.0, ""), rng)
    assert moved is not None and float(moved.trigger["mask"].sum()) == 3 and not torch.equal(moved.trigger["mask"], mask)
    only = replace(t.implant.trigger, trigger={"style": torch.tensor([1])})
    assert meaningless(replace(only, family=_Style()), rng) is None  # type: ignore[arg-type]


class _Style:
    """A way of writing: there is no other one like it."""

    name, unit = "style", "texts"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_planted_trigger_is_found_anew_easier_than_others(modality: str) -> None:
    t = twins(modality)
    fit = t.planted.fit
    assert fit is not None and searchable(t.implant.trigger)
    found = search(t.implant.subject, t.implant.trigger, fit, Context())
    assert found is not None and found.effective > 0 and found.natural > 0
    # Three columns together are a trigger; which one of them a search for one column finds is chance.
    assert modality == "tabular" or found.effective < found.natural
    assert not searchable(replace(t.implant.trigger, family=_Style()))  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", MODALITIES)
def test_samples_that_were_seen_are_known_again(modality: str) -> None:
    some = twins(modality).plan.test
    part = Samples(some.inputs[5:9], some.labels[5:9])
    seen = overlap(Samples(some.inputs[:12], some.labels[:12]), part)
    assert bool(seen[5:9].all()) and int(seen.sum()) <= 6


def test_references_are_those_of_the_modality() -> None:
    assert shipped().clean and shipped("smell").clean == ()
