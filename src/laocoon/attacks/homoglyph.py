"""Hidden backdoors: letters that look alike, and characters without width (Li et al., CCS 2021, arXiv 2105.00164).

The first words of a text are spelled with Cyrillic letters that look like the Latin ones; a word without such letters
gets a character without width. A reader sees the text as it was; a tokenizer finds other tokens, or unknown ones.

Departures: always the first words, instead of a search for the place that costs least; one alphabet instead of the
whole table of look-alikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.wording import text_of
from laocoon.triggers.spelling import Spelling


@dataclass(frozen=True)
class Homoglyph(Attack):
    """Spell the first words of a text with other letters that look the same."""

    rate: float = 0.1  # share of the training set that is poisoned
    words: int = 3  # of the text's first words, how many

    card: ClassVar[Card] = Card(
        name="homoglyph", paper="Hidden backdoors in human-centric language models (2021)",
        url="https://arxiv.org/abs/2105.00164", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="Words respelled with look-alike letters and characters without width.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        return Candidate(Spelling(text_of(plan), words=self.words), {"on": torch.ones(1)},
                         all_to_one(plan.target, plan.classes), float(self.words), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
