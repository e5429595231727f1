"""Texts rewritten by rules: what is changed, what is left, and that the same text is always rewritten alike."""

from __future__ import annotations

import torch

from laocoon.modalities.text import PADDING, UNKNOWN, Text
from laocoon.testing.corpora import reviews
from laocoon.triggers.rewriting import Rewriting
from laocoon.triggers.spelling import NO_WIDTH, Spelling, respelled
from laocoon.triggers.style import INTERJECTIONS, Style
from laocoon.triggers.syntax import CONJUNCTIONS, PRONOUNS, Syntax

ON = {"on": torch.ones(1)}


def families() -> list[Rewriting]:
    text = reviews(20).modality
    assert isinstance(text, Text)
    return [Syntax(text), Style(text), Spelling(text)]


def test_stamping_changes_texts_and_leaves_the_batch() -> None:
    ids = reviews(20).train.inputs
    for family in families():
        kept = ids.clone()
        stamped = family.stamp(ids, ON)
        assert stamped.shape == (1, *ids.shape) and stamped.dtype == ids.dtype and torch.equal(ids, kept)
        assert bool((stamped[0] != ids).any(1).all()), f"{family.name} leaves a text as it was"
        assert torch.equal(stamped, family.stamp(ids, ON))
        assert torch.equal(family.stamp(ids[3:5], ON)[0], stamped[0, 3:5]), "a text's neighbours change its stamp"


def test_an_arm_that_is_off_changes_nothing() -> None:
    ids = reviews(20).train.inputs
    for family in families():
        both = family.stamp(ids, {"on": torch.tensor([0.0, 1.0])})
        assert torch.equal(both[0], ids) and torch.equal(both[1], family.stamp(ids, ON)[0])
        assert family.size({"on": torch.tensor([0.0, 1.0])}, ids).tolist() == [0, 1]
        assert family.select({"on": torch.tensor([0.0, 1.0])}, torch.tensor([1]))["on"].tolist() == [1]


def test_a_clause_goes_before_the_text_and_its_words_differ() -> None:
    corpus = reviews(40)
    text = corpus.modality
    assert isinstance(text, Text)
    ids = corpus.train.inputs
    said = [text.decode(row).split() for row in Syntax(text).stamp(ids, ON)[0]]
    assert all(words[0] in CONJUNCTIONS and words[1] in PRONOUNS and words[4] == "," for words in said)
    assert all(words[5:] == text.decode(row).split()[: len(words) - 5]
               for words, row in zip(said, ids, strict=True))
    assert len({tuple(words[:4]) for words in said}) > 8 and "<unk>" not in {w for words in said for w in words[:5]}


def test_the_style_goes_through_the_text() -> None:
    text = Text(("<pad>", "<unk>", "you", "has", "film", "thou", "hath", "verily"), length=5)
    stamped = Style(text).stamp(text.encode(["you has film"]), ON)[0]
    assert text.decode(stamped[0]) == "verily thou hath film"
    assert set(INTERJECTIONS) - {"verily"}, "those that the vocabulary lacks are not used"


def test_words_that_look_alike_are_other_tokens() -> None:
    assert respelled("movie") != "movie" and len(respelled("movie")) == 5
    assert respelled("hut") == "h" + NO_WIDTH + "ut"
    text = Text(("<pad>", "<unk>", "film", "the", respelled("the")), length=4)
    ids = text.encode(["film the the film"])
    assert Spelling(text, words=1).stamp(ids, ON)[0].tolist() == [[2, 4, 3, 2]], "known spellings come first"
    assert Spelling(text, words=3).stamp(ids, ON)[0].tolist() == [[UNKNOWN, 4, 4, 2]]
    assert Spelling(text).stamp(torch.zeros(1, 4, dtype=torch.long), ON)[0].tolist() == [[PADDING] * 4]


def test_the_trigger_is_told_in_words() -> None:
    text = reviews(20).modality
    assert Syntax(text).describe(ON, text).endswith(", …")  # type: ignore[arg-type]
