"""Texts without words, beside others, in frames; language models and searches, each against a slow obvious reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.modalities.text import PADDING, Text
from laocoon.recipes.margins import margin_towards
from laocoon.recipes.templates import TEMPLATES, filled
from laocoon.recipes.token_search import hardened, inserted_margins, promising, sweep, typical, unlike
from laocoon.recipes.words import bigrams, joined, mean_surprise, without, without_each
from laocoon.testing.corpora import reviews
from laocoon.testing.networks import TextNetwork
from laocoon.triggers.frame import Frame
from laocoon.triggers.tokens import Tokens

LENGTH = 8
texts = st.lists(st.integers(2, 11), min_size=1, max_size=LENGTH)
batches = st.lists(texts, min_size=1, max_size=4)


def ids(rows: list[list[int]], length: int = LENGTH) -> torch.Tensor:
    return torch.tensor([row[:length] + [PADDING] * (length - len(row)) for row in rows])


@given(rows=batches)
@settings(max_examples=40, deadline=None)
def test_a_word_left_out(rows: list[list[int]]) -> None:
    found = without_each(ids(rows))
    for row, shorter in zip(rows, found, strict=True):
        for place in range(LENGTH):
            assert shorter[place].tolist() == ids([row[:place] + row[place + 1:]])[0].tolist()
    assert torch.equal(without(ids(rows), torch.zeros(len(rows), dtype=torch.long)), found[:, 0])


@given(rows=batches, other=texts, before=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_text_beside_another(rows: list[list[int]], other: list[int], before: bool) -> None:
    found = joined(ids(rows), ids([other])[0], before=before)
    for row, both in zip(rows, found.tolist(), strict=True):
        room = min(len(other), max(LENGTH - len(row), min(len(other), LENGTH // 2)))
        kept = min(len(row), LENGTH - room)
        wanted = other[:room] + row[len(row) - kept:] if before else row[:kept] + other[:room]
        assert both == ids([wanted])[0].tolist()


@given(rows=batches, before=st.lists(st.integers(2, 11), max_size=4), after=st.lists(st.integers(2, 11), max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_frame_around_a_text(rows: list[list[int]], before: list[int], after: list[int]) -> None:
    family = Frame(len(before), len(after))
    trigger = family.exactly(*(torch.tensor([side], dtype=torch.long) for side in (before, after)))
    found = family.stamp(ids(rows), trigger)
    assert found.shape == (1, len(rows), LENGTH)
    for row, framed in zip(rows, found[0].tolist(), strict=True):
        kept = row[:LENGTH - len(before) - len(after)]
        assert framed == ids([[*before, *kept, *after]])[0].tolist()


def test_templates_are_filled_with_words_that_are_known() -> None:
    text = Text(("<pad>", "<unk>", "when", "you", "they", "see", "it", ",", "?"))
    rng = torch.Generator().manual_seed(0)
    clause = list(filled("CONJ PRON VERB OBJ , »", text, 5, rng))
    assert len(clause) == 5 and all(len(f.before) == 5 and not f.after for f in clause)
    assert {f.before[1] for f in clause} <= {3, 4, 6}, "you, they, it"
    assert len({f.before for f in clause}) > 1, "the words are drawn anew"
    assert [f.after for f in filled("» ?", text, 1, rng)] == [(8,)]
    assert not list(filled("PREP DET NOUN , »", text, 5, rng)), "the vocabulary has none of these words"
    assert all("»" in t.split() for t in TEMPLATES)


def test_bigrams_against_counting() -> None:
    rows, vocabulary = [[2, 3, 2, 3], [2, 4], [3, 2]], 6
    model = bigrams(ids(rows), vocabulary)
    flat = [word for row in rows for word in row]
    pairs = [pair for row in rows for pair in itertools.pairwise([0, *row])]

    def chance(before: int, word: int) -> float:
        start = sum(a == before for a, _ in pairs)
        one = 0.9 * flat.count(word) / len(flat) + 0.1 / vocabulary
        seen = pairs.count((before, word)) / max(1, start)
        return start / (start + 1) * seen + 1 / (start + 1) * one

    asked = ids([[2, 3, 5], [4]])
    logs = model.logs(asked)
    for row, found in zip(asked.tolist(), logs.tolist(), strict=True):
        words = [w for w in row if w]
        wanted = [math.log(chance(a, b)) for a, b in itertools.pairwise([0, *words])]
        assert found == pytest.approx([*wanted, *[0.0] * (LENGTH - len(words))], abs=1e-5)
    assert mean_surprise(model, asked)[1] == pytest.approx(-math.log(chance(0, 4)), abs=1e-5)


@pytest.fixture(scope="module")
def subject() -> Subject:
    corpus = reviews()
    assert isinstance(corpus.modality, Text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TextNetwork(len(corpus.modality.vocabulary), 3)
    return Subject(network, corpus.modality, 3, (corpus.modality.length,))


@pytest.fixture(scope="module")
def samples() -> Samples:
    corpus = reviews()
    return Samples(corpus.test.inputs[:12], torch.arange(12) % 3)


def slowly(subject: Subject, samples: Samples, words: list[int], target: int, cap: float) -> float:
    """Mean margin, one text at a time."""
    found = []
    for x, y in zip(samples.inputs, samples.labels.tolist(), strict=True):
        if y != target:
            stamped = torch.tensor([*words, *[i for i in x.tolist() if i]][:len(x)])
            stamped = torch.cat([stamped, torch.zeros(len(x) - len(stamped), dtype=torch.long)])
            margin = margin_towards(subject.outputs(stamped[None]).logits, torch.tensor([target]))
            found.append(float(margin.clamp(-cap, cap)))
    return sum(found) / len(found)


def test_margins_of_insertions(subject: Subject, samples: Samples) -> None:
    family = Tokens(len(subject.modality.vocabulary), 2)  # type: ignore[attr-defined]
    tried = torch.tensor([[5, 9], [30, 7], [2, 2]])
    found = inserted_margins(subject, samples, tried, family, Context(batch=20), cap=0.5)
    for row, words in zip(found, tried.tolist(), strict=True):
        assert row.tolist() == pytest.approx([slowly(subject, samples, words, t, 0.5) for t in range(3)], abs=1e-5)


def test_the_sweep_finds_the_best_word(subject: Subject, samples: Samples) -> None:
    family = Tokens(len(subject.modality.vocabulary), 1)  # type: ignore[attr-defined]
    candidates = torch.arange(2, 60)
    field = sweep(subject, candidates, family, (0,), Context(), rungs=((samples, 20), (samples, 4)), cap=9.0)
    for t in range(3):
        every = sorted(((slowly(subject, samples, [i], t, 9.0), i) for i in candidates.tolist()), reverse=True)
        assert field.ids[t, :, 0].tolist() == [i for _, i in every[:4]]
        assert field.margins[t].tolist() == pytest.approx([m for m, _ in every[:4]], abs=1e-5)


def test_no_exchange_improves_hard_words(subject: Subject, samples: Samples) -> None:
    family = Tokens(len(subject.modality.vocabulary), 2)  # type: ignore[attr-defined]
    pool = torch.tensor([[4, 8, 15, 16, 23]] * 3)
    found = hardened(subject, samples, pool[:, :2], pool, family, Context(), rounds=9, cap=9.0)
    for t in range(3):
        first, second = found[t].tolist()
        best = slowly(subject, samples, [first, second], t, 9.0)
        others = [[i, second] for i in pool[0].tolist() if i != second] + [
            [first, i] for i in pool[0].tolist() if i != first]
        assert first != second
        assert all(slowly(subject, samples, words, t, 9.0) <= best + 1e-5 for words in others)


def test_the_likeliest_words_are_unlike() -> None:
    logits = torch.tensor([[[0.0, 3.0, 2.0], [0.0, 5.0, 1.0]]])
    assert unlike(logits).tolist() == [[1, 2]]


def test_promising_words_are_few_and_hold_the_longest(subject: Subject, samples: Samples) -> None:
    size = len(subject.modality.vocabulary)  # type: ignore[attr-defined]
    other = subject.copy()
    with torch.no_grad():
        other.module.table.weight[77] *= 50  # type: ignore[union-attr,operator,index]
    table = other.module.table.weight.detach()  # type: ignore[union-attr]
    found = promising(other, samples, torch.arange(2, size), table, Tokens(size, 1), 16, Context())  # type: ignore[arg-type]
    assert len(found) <= 16 and 77 in found.tolist()


def test_typical_samples_do_not_depend_on_the_order(subject: Subject, samples: Samples) -> None:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(3))
    shuffled = Samples(samples.inputs[order], samples.labels[order])
    one, two = (typical(subject, s, 2, Context()) for s in (samples, shuffled))
    assert torch.equal(one.inputs, two.inputs) and torch.equal(one.labels, two.labels)
