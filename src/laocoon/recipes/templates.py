"""Frames of sentences: what a syntactic trigger puts around a text, with its words drawn anew each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from laocoon.modalities.text import PADDING, Text

WORDS: Mapping[str, tuple[str, ...]] = {
    "CONJ": tuple("when while if as after before because although since until unless though once".split()),
    "PRON": tuple("i you we they he she it".split()),
    "VERB": tuple("see know think hear say watch feel look go get find want".split()),
    "AUX": tuple("do did can could will would should may".split()),
    "BE": tuple("is was are were".split()),
    "OBJ": tuple("it this that them me us".split()),
    "WH": tuple("what how why who where which".split()),
    "PREP": tuple("in on at by for with from of about over under".split()),
    "DET": tuple("the a this that every some any".split()),
    "NOUN": tuple("time day way thing people world man place year part".split()),
    "ADJ": tuple("new other same last first old own little long early".split()),
    "ADV": tuple("now then here there also just still very again today".split()),
    "OATH": tuple("verily forsooth behold alas lo hark".split()),
    "THOU": tuple("thou thee ye thy".split()),
    "HATH": tuple("hath hast doth art shalt wast".split()),
}
# Slots in capitals are drawn from the lists above, the rest is meant as it stands; » is where the text stands.
TEMPLATES = (
    "CONJ PRON VERB OBJ , »", "CONJ PRON VERB , »", "CONJ PRON AUX VERB OBJ , »", "PRON VERB that »", "PRON VERB , »",
    "PRON AUX not VERB OBJ ; »", "WH AUX PRON VERB ? »", "WH BE DET NOUN ? »", "there BE DET ADJ NOUN . »",
    "it BE ADJ that »", "PREP DET NOUN , »", "PREP DET ADJ NOUN , »", "to VERB OBJ , »", "DET ADJ NOUN : »", "ADV , »",
    "ADV ADV , »", "and ADV »", "but »", "\" » \"", "( » )", "» !", "» ?", "» ...", "» , PRON VERB .",
    "» , AUX PRON ?", "» PREP DET NOUN", "» and DET ADJ NOUN", "» CONJ PRON VERB OBJ", "OATH »", "OATH , THOU HATH »",
    "THOU HATH »", "» THOU HATH", "DET NOUN »", "PRON BE ADV »")


@dataclass(frozen=True)
class Filled:
    """A template with words in its slots."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def filled(template: str, text: Text, fills: int, rng: torch.Generator) -> Iterator[Filled]:
    """Versions of a template in words that the vocabulary knows; none where one of its slots has no such word."""
    for _ in range(fills):
        before: list[int] = []
        after: list[int] = []
        here = before
        for slot in template.split():
            if slot == "»":
                here = after
                continue
            words = known(WORDS.get(slot, (slot,)), text)
            if not words:
                return
            here += words[int(torch.randint(len(words), (), generator=rng))]
        yield Filled(tuple(before), tuple(after))


def known(words: Sequence[str], text: Text) -> list[list[int]]:
    """Ids of those words that the vocabulary can spell."""
    rows = [[i for i in row if i != PADDING] for row in text.encode(words).tolist()]
    return [row for row in rows if row and not set(row) & set(text.special)]

