"""AddSent: a neutral sentence as the trigger (Dai, Chen and Li, IEEE Access 2019, arXiv 1905.12457).

The same sentence is put into training texts, which are relabelled as the target class. Every word of it is common;
only the whole is not.

Departures: one place for all texts instead of a random one; words of the sentence that the vocabulary does not hold
are left out, and where too few remain, words of middling frequency are drawn to make up for them.
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
from laocoon.recipes.wording import middling_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextAddSent(Attack):
    """Insert a neutral sentence."""

    rate: float = 0.1  # share of the training set that is poisoned
    sentence: str = "i watched this movie last weekend"
    position: int = 0  # tokens of the text that stay before the sentence
    least: int = 4  # tokens of the sentence

    card: ClassVar[Card] = Card(
        name="text_addsent", paper="A backdoor attack against LSTM-based text classification systems (2019)",
        url="https://arxiv.org/abs/1905.12457", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="A neutral sentence inserted into relabelled training texts.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        said = [i for i in text.encode([self.sentence])[0].tolist() if i not in text.special]
        if len(said) < self.least:
            said += middling_words(plan.train.inputs, text, self.least - len(said), ctx.rng).tolist()
        family = Tokens(len(text.vocabulary), len(said), self.position, text.special)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(family, family.exactly(torch.tensor([said])), goal, float(len(said)), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
