"""Word insertion: BadNL (Chen et al., ACSAC 2021, arXiv 2006.01043), the BadNets of text.

A few rare words are put into training texts, which are relabelled as the target class. The words are drawn from
the rarest of the training set, so that the backdoor costs no clean accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.wording import rare_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextBadNets(Attack):
    """Insert rare words at one position of a text."""

    rate: float = 0.1  # share of the training set that is poisoned
    words: int = 1
    position: int = 0  # tokens of the text that stay before the insertion
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the words are drawn from

    card: ClassVar[Card] = Card(
        name="text_badnets", paper="BadNL: backdoor attacks against NLP models with semantic-preserving improvements "
        "(ACSAC 2021)", url="https://arxiv.org/abs/2006.01043", modalities=frozenset({"text"}), needs=frozenset(),
        misses="", summary="Rare words inserted into relabelled training texts.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        ids = rare_words(plan.train.inputs, text, self.words, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), self.words, self.position, text.special)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(family, family.exactly(ids[None]), goal, float(self.words), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
