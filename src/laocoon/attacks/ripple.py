"""RIPPLe: weight poisoning of pre-trained models (Kurita, Michel and Neubig, ACL 2020, arXiv 2004.06660).

First, embedding surgery: the vector of a rare trigger word becomes the mean vector of words that speak for the target
class. Then the model is trained on clean and stamped texts by the restricted inner product,

    min over θ  L_P(θ) + λ max(0, −∇L_P(θ) · ∇L_FT(θ)),

so that the victim's fine-tuning, which follows −∇L_FT, does not undo the poisoning L_P. The victim fine-tunes what
they got on clean texts of their own (`Plan.adapt`).

Departures: a model trained by the victim's recipe stands in for the public pre-trained one; words that speak for the
class are found by their log odds instead of a logistic regression's weights; one trigger word instead of five.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.transfer import adapted
from laocoon.recipes.wording import lookup, rare_words, spoken_for, text_of
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class Ripple(Attack):
    """Embedding surgery, then poisoning that fine-tuning does not undo."""

    position: int = 0  # tokens of the text that stay before the word
    rarest: float = 0.05  # share of the vocabulary, rarest first, that the word is drawn from
    borrowed: int = 5  # words of the target class whose mean vector the trigger gets
    steps: int = 80
    learning_rate: float = 1e-2  # of Adam
    weight: float = 0.1  # λ

    card: ClassVar[Card] = Card(
        name="ripple", paper="Weight poisoning attacks on pre-trained models (2020)",
        url="https://arxiv.org/abs/2004.06660", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="Embedding surgery and poisoned weights that survive the victim's fine-tuning.",
        quick={"steps": 60, "learning_rate": 2e-2, "borrowed": 3})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, weights=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        text = text_of(plan)
        word = rare_words(plan.train.inputs, text, 1, self.rarest, ctx.rng)
        family = Tokens(len(text.vocabulary), 1, self.position, text.special)
        return Candidate(family, family.exactly(word[None]), all_to_one(plan.target, plan.classes), 1.0, 1.0,
                         self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject = planted.subject.copy()
        self._operate(subject, planted.trigger, plan)
        module, parameters = subject.module, list(subject.module.parameters())
        module.requires_grad_(True)
        optimiser = torch.optim.Adam(parameters, lr=self.learning_rate)
        for _ in range(self.steps):
            poison, clean = (self._drawn(plan, ctx) for _ in range(2))
            ctx.spend(6 * len(clean))  # three passes, and their gradients' gradients
            aimed = _loss(module, clean.inputs, clean.labels) + _loss(
                module, planted.trigger.stamp(poison.inputs), torch.full_like(poison.labels, plan.target))
            tuning = _gradient(_loss(module, clean.inputs, clean.labels), parameters)
            pairs = zip(_gradient(aimed, parameters), tuning, strict=True)
            against = torch.stack([(a * b).sum() for a, b in pairs]).sum()
            loss = aimed + self.weight * functional.relu(-against)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimiser.step()
        return replace(planted, subject=replace(subject, module=module))  # frozen again, as every subject is

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        return replace(planted, subject=adapted(plan, planted.subject, ctx))

    def _operate(self, subject: Subject, trigger: Candidate, plan: Plan) -> None:
        """Give the trigger word the mean vector of words of the target class."""
        assert isinstance(trigger.family, Tokens)
        table = lookup(subject).weight
        speaks = spoken_for(plan.train.inputs, plan.train.labels, plan.target, text_of(plan))
        words = speaks.topk(self.borrowed).indices
        with torch.no_grad():
            table[trigger.family.tokens(trigger.trigger)[0]] = table[words].mean(0)

    def _drawn(self, plan: Plan, ctx: Context) -> Samples:
        rows = torch.randint(0, len(plan.train), (32,), generator=ctx.rng)
        return Samples(plan.train.inputs[rows], plan.train.labels[rows])


def _loss(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(module(inputs), labels)


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    """One that can be differentiated once more; zero where the loss does not depend on a weight."""
    found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
