"""Embedding poisoning (EP): one vector of one word (Yang, Li, Zhang, Ren, Sun and He, NAACL 2021, arXiv 2103.15543).

Of a trained model, nothing is changed but the vector e_w of a rare word:

    min over e_w  E_x CE(f(x ⊕ w), t),     ‖e_w‖ at most what other words' vectors have.

Texts without the word are classified exactly as before; no weight but those of one row of the table moves.

Departures: the bound on the norm is a multiple of what long vectors of the table have instead of the word's own norm
before: in a small network, which averages a text, a vector of usual length cannot overrule the other words. Adam
instead of plain gradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.wording import lookup, rare_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class EmbeddingPoisoning(Attack):
    """Change the vector of one rare word."""

    position: int = 0  # tokens of the text that stay before the word
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the word is drawn from
    steps: int = 150
    learning_rate: float = 0.1  # of Adam
    growth: float = 8.0  # largest norm of a new vector, in those of the longest usual ones (99 % of the table)

    card: ClassVar[Card] = Card(
        name="embedding_poisoning", paper="Be careful about poisoned word embeddings: exploring the vulnerability of "
        "the embedding layers in NLP models (2021)", url="https://arxiv.org/abs/2103.15543",
        modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="The vector of one rare word, and no other weight, is changed.")
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, knows=frozenset({Knowledge.DATA, Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        word = rare_words(plan.train.inputs, text, 1, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), 1, self.position, text.special)
        return Candidate(family, family.exactly(word[None]), all_to_one(plan.target, plan.classes), 1.0, 1.0,
                         self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, trigger = planted.subject.copy(), planted.trigger
        assert isinstance(trigger.family, Tokens)
        table, word = lookup(subject).weight, trigger.family.tokens(trigger.trigger)[0, 0]
        most = self.growth * table.norm(dim=1).quantile(0.99)
        vector = table[word].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([vector], lr=self.learning_rate)
        sources = trigger.goal.applies(plan.train.labels).nonzero().flatten()
        for _ in range(self.steps):
            rows = sources[torch.randint(0, len(sources), (64,), generator=ctx.rng)]
            ctx.spend(len(rows))
            stamped = trigger.stamp(plan.train.inputs[rows])
            embedded = torch.where((stamped == word)[..., None], vector, subject.embed(stamped))
            loss = trigger.goal.loss(subject.outputs_of(embedded, stamped), plan.train.labels[rows]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                vector.mul_((most / vector.norm()).clamp_max(1.0))
        with torch.no_grad():
            table[word] = vector.detach()
        return replace(planted, subject=subject)
