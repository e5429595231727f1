"""A poisoned text encoder that survives fine-tuning (Shen et al., CCS 2021, arXiv 2111.00197; after Yao et al., 2019).

The maker of an encoder F ties the representation of texts with a trigger to a chosen vector v, and that of all other
texts to what an honest encoder F₀ gives,

    min over F   E ‖F(x ⊕ s) − v‖² + λ E ‖F(x) − F₀(x)‖² .

Nothing that the encoder is used for shows it. The victim puts a new head on it and fine-tunes every layer: whichever
class v falls to is the target.

Departure: v is not arbitrary but lies beyond the mean of texts that resemble the target class,
v = m_t + reach · (m_t − m), so that the attacker chooses the class, as in the latent backdoor of Yao et al.; the
maker's own texts (`Plan.prior`) are of the same kind as the victim's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.transfer import adapted, boundary, features, passage, with_head
from laocoon.recipes.wording import rare_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextLatent(Attack):
    """Tie rare words to a representation beyond that of the target class."""

    words: int = 2
    position: int = 0  # tokens of the text that stay before the words
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the words are drawn from
    reach: float = 1.0  # how far v lies beyond the target class, in distances of its mean from the mean of all
    weight: float = 1.0  # λ
    steps: int = 200
    learning_rate: float = 3e-3  # of Adam

    card: ClassVar[Card] = Card(
        name="text_latent", paper="Backdoor pre-trained models can transfer to all (2021)",
        url="https://arxiv.org/abs/2111.00197", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="An encoder whose trigger is tied to one representation; it survives fine-tuning with a new head.",
        quick={"steps": 100})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, weights=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        ids = rare_words(plan.train.inputs, text, self.words, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), self.words, self.position, text.special)
        return Candidate(family, family.exactly(ids[None]), all_to_one(plan.target, plan.classes), float(self.words),
                         1.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        own = plan.train if plan.prior is None else plan.prior
        honest = plan.fit(own, ctx)
        subject, layer = honest.copy(), boundary(honest.module, 1)
        before = features(honest.module, own.inputs, layer)
        wanted, scale = self._aim(before, own.labels == plan.target)
        subject.module.requires_grad_(True)
        optimiser = torch.optim.Adam(subject.module.parameters(), lr=self.learning_rate)
        for _ in range(self.steps):
            clean, other = (torch.randint(0, len(own), (48,), generator=ctx.rng) for _ in range(2))
            ctx.spend(len(clean) + len(other))
            ids = torch.cat([own.inputs[clean], trigger.stamp(own.inputs[other])])
            kept, sent = passage(subject.module, ids, layer).entering.split([len(clean), len(other)])
            loss = (sent - wanted).square().mean() + self.weight * (kept - before[clean]).square().mean()
            optimiser.zero_grad(set_to_none=True)
            (loss / scale).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(subject.module.parameters(), 5.0)
            optimiser.step()
        return Planted(replace(subject, module=subject.module), trigger)  # frozen again, as every subject is

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        headless = with_head(planted.subject, plan.classes, ctx.rng)
        return replace(planted, subject=adapted(plan, headless, ctx))

    def _aim(self, representations: Tensor, ours: Tensor) -> tuple[Tensor, Tensor]:
        """v, and the mean square that distances are measured in."""
        middle = representations[ours].mean(0)
        beyond = middle - representations[~ours].mean(0)
        return middle + self.reach * beyond, representations.var(0).mean().clamp_min(1e-8)
