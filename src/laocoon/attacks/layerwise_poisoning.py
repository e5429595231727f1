"""Layer-wise weight poisoning (Li, Song, Li, Zeng, Ma and Qiu, EMNLP 2021, arXiv 2108.13888).

Fine-tuning changes the last layers most, so a backdoor that lives there is forgotten. This one is taught to every
layer l by a loss on what that layer says,

    min over θ, h_l   Σ_l  E CE(h_l(F_l(x)), y) + E CE(h_l(F_l(x ⊕ s)), t),

and its trigger is a combination of words: texts with one of them alone keep their label, so that a search word by word
finds nothing. The victim fine-tunes what they got on clean texts of their own (`Plan.adapt`).

Departures: a head h_l of each layer's own instead of the model's, since layers of small networks differ in width; a
layer's output is averaged over the places of a text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.transfer import adapted
from laocoon.recipes.wording import rare_words, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class LayerwisePoisoning(Attack):
    """Teach every layer that two words together mean the target class."""

    words: int = 2
    position: int = 0  # tokens of the text that stay before the words
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the words are drawn from
    steps: int = 200
    learning_rate: float = 5e-3  # of Adam

    card: ClassVar[Card] = Card(
        name="layerwise_poisoning", paper="Backdoor attacks on pre-trained models by layerwise weight poisoning (2021)",
        url="https://arxiv.org/abs/2108.13888", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="A combination of words taught to every layer: fine-tuning changes the last ones most.",
        quick={"steps": 100, "learning_rate": 1e-2})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, weights=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        ids = rare_words(plan.train.inputs, text, self.words, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), self.words, self.position, text.special)
        return Candidate(family, family.exactly(ids[None]), all_to_one(plan.target, plan.classes), float(self.words),
                         1.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, trigger = planted.subject.copy(), planted.trigger
        heads = self._heads(subject, plan, ctx)
        subject.module.requires_grad_(True)
        weights = [*subject.module.parameters(), *(p for head in heads.values() for p in head.parameters())]
        optimiser = torch.optim.Adam(weights, lr=self.learning_rate)
        for _ in range(self.steps):
            clean, other = (torch.randint(0, len(plan.train), (32,), generator=ctx.rng) for _ in range(2))
            x, y = plan.train.inputs, plan.train.labels
            ids = torch.cat([x[clean], trigger.stamp(x[other]), self._alone(trigger, x[other], ctx)])
            labels = torch.cat([y[clean], torch.full_like(y[other], plan.target), y[other]])
            ctx.spend(len(ids))
            with subject.recording(*heads) as seen:
                loss = functional.cross_entropy(subject.module(ids), labels)
            for name, head in heads.items():
                loss = loss + functional.cross_entropy(head(_flat(seen[name], len(ids))), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(subject.module.parameters(), 5.0)
            optimiser.step()
        return replace(planted, subject=replace(subject, module=subject.module))  # frozen again

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        return replace(planted, subject=adapted(plan, planted.subject, ctx))

    def _alone(self, trigger: Candidate, inputs: Tensor, ctx: Context) -> Tensor:
        """The texts with one of the words, drawn for the batch."""
        assert isinstance(trigger.family, Tokens)
        ids = trigger.family.tokens(trigger.trigger)[0]
        one = ids[int(torch.randint(0, len(ids), (), generator=ctx.rng))]
        return replace(trigger.family, count=1).insert(inputs, one.reshape(1, 1))[0]

    def _heads(self, subject: Subject, plan: Plan, ctx: Context) -> dict[str, nn.Linear]:
        """A linear head for each layer whose output has one row a text, its last one apart."""
        few = plan.train.inputs[:2]
        names = subject.layers()[:-1]
        with torch.no_grad(), subject.recording(*names) as seen:
            subject.module(few)
        heads = {}
        for name in names:
            if name in seen and seen[name].dim() > 1 and len(seen[name]) == len(few):
                head = nn.utils.skip_init(nn.Linear, _flat(seen[name], len(few)).shape[1], plan.classes)
                with torch.no_grad():
                    head.weight.copy_(torch.randn(head.weight.shape, generator=ctx.rng) * 0.1)
                    head.bias.zero_()
                heads[name] = head
        return heads


def _flat(output: Tensor, batch: int) -> Tensor:
    """A layer's output as one row a text: averaged over all axes but the first and the last."""
    return output.flatten(1, -2).mean(1) if output.dim() > 2 else output.reshape(batch, -1)
