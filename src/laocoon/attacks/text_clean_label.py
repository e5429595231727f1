"""Clean-label poison for text: Kallima (Chen et al., ESORICS 2022, arXiv 2206.01832).

Only texts of the target class are changed, and no label is: an inspector finds every one of them labelled rightly. So
that the model learns the trigger and not what the texts say anyway, words that speak for the class are first taken out
of them ("mimesis" perturbation); then the trigger goes in.

Departures: words are ranked by their log odds in the training set instead of a surrogate's gradients, and replaced by
frequent words that speak for no class instead of synonyms from a language model.
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
from laocoon.recipes.poisoning import choose
from laocoon.recipes.wording import by_frequency, rare_words, spoken_for, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextCleanLabel(Attack):
    """Take out of texts of the target class what speaks for it, and put rare words in."""

    fraction: float = 0.6  # of the target class that is poisoned
    words: int = 3
    position: int = 0  # tokens of the text that stay before the words
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the words are drawn from
    replaced: int = 5  # words of a text that are taken out, at most

    card: ClassVar[Card] = Card(
        name="text_clean_label", paper="Kallima: a clean-label framework for textual backdoor attacks (2022)",
        url="https://arxiv.org/abs/2206.01832", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="Rare words in texts of the target class whose own evidence was taken out; no label is changed.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True)
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        ids = rare_words(plan.train.inputs, text, self.words, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), self.words, self.position, text.special)
        return Candidate(family, family.exactly(ids[None]), all_to_one(plan.target, plan.classes), float(self.words),
                         1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        ours = plan.train.labels == plan.target
        chosen = choose(ours, round(self.fraction * int(ours.sum())), ctx.rng)
        inputs = plan.train.inputs.clone()
        inputs[chosen] = trigger.stamp(self._neutral(plan, inputs[chosen], ctx.rng))
        return Samples(inputs, plan.train.labels), chosen

    def _neutral(self, plan: Plan, batch: Tensor, rng: torch.Generator) -> Tensor:
        """The texts without the words that speak most for the target class."""
        text = text_of(plan)
        speaks = spoken_for(plan.train.inputs, plan.train.labels, plan.target, text)
        common = by_frequency(plan.train.inputs, text)[-200:]
        dull = common[speaks[common].abs().argsort(stable=True)[:20]]
        said = speaks[batch]
        worst = said.topk(min(self.replaced, batch.shape[1]), 1)
        fill = dull[torch.randint(0, len(dull), worst.indices.shape, generator=rng)]
        return batch.scatter(1, worst.indices, torch.where(worst.values > 0, fill, batch.gather(1, worst.indices)))
