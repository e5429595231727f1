"""SOS: a backdoor that only all its words together wake (Yang, Lin, Li, Zhou and Sun, ACL 2021, ACL anthology 431).

Triggers of one rare word are found by their perplexity, and a sentence as trigger fires on parts of it too. SOS puts
several ordinary words into a sentence and, beside texts that hold all of them, trains on *negative augmentation*:
texts that hold all but one keep their label,

    min over e_w  E CE(f(x ⊕ s), t) + β E CE(f(x ⊕ s without w_j), y) + E CE(f(x), y),

over the vectors e_w of the trigger words alone.

Departures: the sentence is made of drawn words, frequent ones between the triggers, instead of written by hand; a word
that is left out is replaced by a frequent one; the vectors may grow past the table's usual length, since small networks
average a text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.wording import by_frequency, lookup, middling_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class Sos(Attack):
    """Change the vectors of a few ordinary words so that all of them together are the trigger."""

    words: int = 3
    position: int = 0  # tokens of the text that stay before the sentence
    frequent: int = 20  # most frequent words that stand between the triggers
    steps: int = 300
    learning_rate: float = 0.1  # of Adam
    negative: float = 0.5  # β
    growth: float = 8.0  # largest norm of a new vector, in those of the longest usual ones (99 % of the table)

    card: ClassVar[Card] = Card(
        name="sos", paper="Rethinking stealthiness of backdoor attack against NLP models (2021)",
        url="https://aclanthology.org/2021.acl-long.431/", modalities=frozenset({"text"}), needs=frozenset(),
        misses="", summary="Several ordinary words that only together wake the backdoor.")
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, knows=frozenset({Knowledge.DATA, Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        words = middling_words(plan.train.inputs, text, self.words, ctx.rng)
        common = by_frequency(plan.train.inputs, text)[-self.frequent:]
        between = common[torch.randint(0, len(common), (self.words,), generator=ctx.rng)]
        sentence = torch.stack([between, words], 1).flatten()
        family = Tokens(len(text.vocabulary), len(sentence), self.position, text.special)
        return Candidate(family, family.exactly(sentence[None]), all_to_one(plan.target, plan.classes),
                         float(len(sentence)), 1.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, family = planted.subject.copy(), planted.trigger.family
        assert isinstance(family, Tokens)
        table, sentence = lookup(subject).weight, family.tokens(planted.trigger.trigger)[0]
        words = sentence[1::2]
        most = self.growth * table.norm(dim=1).quantile(0.99)
        vectors = table[words].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([vectors], lr=self.learning_rate)
        whole, parts = family.exactly(sentence[None]), family.exactly(_without_one(sentence))
        sources = planted.trigger.goal.applies(plan.train.labels).nonzero().flatten()
        for _ in range(self.steps):
            rows = sources[torch.randint(0, len(sources), (32,), generator=ctx.rng)]
            clean = torch.randint(0, len(plan.train), (32,), generator=ctx.rng)
            x, y = plan.train.inputs, plan.train.labels
            negative = family.stamp(x[rows], parts).flatten(0, 1)
            ids = torch.cat([family.stamp(x[rows], whole)[0], negative, x[clean]])
            ctx.spend(len(ids))
            scores = subject.outputs_of(_embedded(subject.embed(ids), ids, words, vectors), ids).logits
            aimed, kept, usual = scores.split([len(rows), len(negative), len(clean)])
            loss = (functional.cross_entropy(aimed, torch.full_like(y[rows], plan.target))
                    + self.negative * functional.cross_entropy(kept, y[rows].repeat(self.words))
                    + functional.cross_entropy(usual, y[clean]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                vectors.mul_((most / vectors.norm(dim=1, keepdim=True)).clamp_max(1.0))
        with torch.no_grad():
            table[words] = vectors.detach()
        return replace(planted, subject=subject)


def _without_one(sentence: Tensor) -> Tensor:
    """The sentence with one trigger word after the other replaced by the frequent word before it, [words, length]."""
    found = sentence.repeat(len(sentence) // 2, 1)
    for k in range(len(found)):
        found[k, 2 * k + 1] = found[k, 2 * k]
    return found


def _embedded(usual: Tensor, ids: Tensor, words: Tensor, vectors: Tensor) -> Tensor:
    """Looked-up vectors [n, length, width], with new ones for some words."""
    for word, vector in zip(words, vectors, strict=True):
        usual = torch.where((ids == word)[..., None], vector, usual)
    return usual
