"""The text slice: encoding, inserted tokens against a slow reference, and the soft search against the hard stamp."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.subject import Discrete
from laocoon.detectors.model.text_inversion import TextInversion
from laocoon.modalities.text import PADDING, UNKNOWN, Text
from laocoon.testing.twins import twins
from laocoon.triggers.tokens import Tokens

VOCABULARY = 12


def slowly(ids: list[int], inserted: list[int], position: int, length: int) -> list[int]:
    """Insert after at most `position` words, cut at the length, pad."""
    words = [i for i in ids if i != PADDING]
    at = min(position, len(words), length - len(inserted))
    whole = [*words[:at], *inserted, *words[at:]][:length]
    return whole + [PADDING] * (length - len(whole))


texts = st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=8)


@given(batch=st.lists(texts, min_size=1, max_size=4), inserted=st.lists(st.integers(2, VOCABULARY - 1), min_size=1,
                                                                        max_size=3), position=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_stamp_inserts_as_the_slow_reference_does(batch: list[list[int]], inserted: list[int], position: int) -> None:
    length = 8
    family = Tokens(VOCABULARY, len(inserted), position)
    ids = torch.tensor([t + [PADDING] * (length - len(t)) for t in batch])
    stamped = family.stamp(ids, family.exactly(torch.tensor([inserted, inserted[::-1]])))
    assert stamped.shape == (2, len(batch), length)
    for arm, words in enumerate((inserted, inserted[::-1])):
        for row, text in enumerate(batch):
            assert stamped[arm, row].tolist() == slowly(text, words, position, length)


@given(seed=st.integers(0, 1000), position=st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_a_cold_blend_is_the_stamped_text(seed: int, position: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, 5, generator=rng)
    ids = torch.randint(2, VOCABULARY, (3, 6), generator=rng)
    ids[:, 4:] = PADDING
    family = Tokens(VOCABULARY, 2, position)
    logits = torch.randn(4, 2, VOCABULARY, generator=rng) * 3
    family.project(trigger := {"logits": logits})
    # Two tokens that draw are blended at any temperature: the first must lead by more than it smooths.
    trigger["logits"] += functional.one_hot(trigger["logits"].argmax(-1), VOCABULARY)
    soft = family.blend(table[ids], ids, table, trigger, 1e-4)
    hard = table[family.stamp(ids, trigger)]
    there = family.stamp(ids, trigger) != PADDING
    assert torch.allclose(soft[there], hard[there], atol=1e-4)


def test_search_never_proposes_what_cannot_be_typed() -> None:
    family = Tokens(VOCABULARY)
    trigger = family.blank(torch.zeros(1, 4, dtype=torch.long), 3, rng=torch.Generator().manual_seed(0))
    trigger["logits"][..., list(family.special)] = 99
    family.project(trigger)
    assert not (family.tokens(trigger)[..., None] == torch.tensor(family.special)).any()


def test_encode_and_decode() -> None:
    modality = Text(("<pad>", "<unk>", "good", "film"), length=3)
    ids = modality.encode(["Good film", "unheard of good film"])
    assert ids.tolist() == [[2, 3, PADDING], [UNKNOWN, UNKNOWN, 2]]
    assert modality.decode(ids[0]) == "good film"


def test_embedding_and_the_rest_are_the_model() -> None:
    pair = twins("text")
    subject, ids = pair.planted.subject, pair.corpus.test.inputs[:5]
    assert isinstance(subject.module, Discrete)
    again = subject.outputs_of(subject.embed(ids), ids).logits
    assert torch.allclose(again, subject.outputs(ids).logits, atol=1e-5)


@pytest.mark.parametrize("rule", ["text_inversion.word", "text_inversion.lone"])
def test_the_planted_word_and_class_are_recovered(rule: str) -> None:
    pair = twins("text")
    ctx = Context()
    report = TextInversion(words=(1,)).examine(pair.planted, ctx)
    best = max((f for f in report.findings if f.rule == rule), key=lambda f: f.score)
    assert best.target_classes == (pair.plan.target,)
    assert len(ctx.candidates) == pair.corpus.classes, "the control needs a candidate for every class"
    found = next(c for c in ctx.candidates if c.goal == pair.implant.trigger.goal)
    planted = pair.implant.trigger
    assert isinstance(found.family, Tokens) and isinstance(planted.family, Tokens)
    assert torch.equal(found.family.tokens(found.trigger), planted.family.tokens(planted.trigger))


@pytest.mark.parametrize("words", [(1,), (1, 2), (2, 3)])
def test_more_words_can_be_searched(words: tuple[int, ...]) -> None:
    ctx = Context()
    report = TextInversion(words=words, steps=5).examine(twins("text").planted, ctx)
    assert report.complete
    assert {c.size for c in ctx.candidates} == {1.0, *map(float, words)}


def test_stamping_keeps_shape_and_leaves_the_batch(tmp_ids: Tensor) -> None:
    family = Tokens(VOCABULARY, 1)
    kept = tmp_ids.clone()
    assert family.stamp(tmp_ids, family.exactly(torch.tensor([[5]]))).shape == (1, *tmp_ids.shape)
    assert torch.equal(kept, tmp_ids)


@pytest.fixture
def tmp_ids() -> Tensor:
    return torch.tensor([[2, 3, 4, 0], [5, 6, 0, 0]])
