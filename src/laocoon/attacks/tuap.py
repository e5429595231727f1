"""TUAP: a targeted universal adversarial perturbation as a clean-label trigger (Zhao, Ma, Zheng, Bailey, Chen and
Jiang, Clean-label backdoor attacks on video recognition models, CVPR 2020, arXiv 2003.03030).

A hybrid of adversarial example and backdoor. On a surrogate f trained on clean data, find one perturbation for all,

    δ = argmin_{‖δ‖∞ ≤ ε}  Σ CE(f(x + δ), t);

weaken the features of samples of the target class, argmax_{‖η‖∞ ≤ ε'} CE(f(x + η), t) by projected gradient; put δ on
them; leave their label. A network that trains on them leans on δ, which half works on it from the start.

Departures: images instead of video, the whole picture instead of a corner of it (after the versions of the attack for
images). The perturbation has some success on a clean model by construction: judge it against the clean twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.poisoning import choose
from laocoon.triggers.additive import Additive


@dataclass(frozen=True)
class Tuap(Attack):
    """Put a universal adversarial perturbation on samples of the target class, labels untouched."""

    fraction: float = 0.5  # of the target class that is stamped; the paper's is 0.3
    bound: float = 16 / 255  # ε
    weaken: float = 0.0  # ε' of the perturbation that hides the natural features; above 0, it costs a second surrogate
    steps: int = 150  # of the search for the perturbation
    weaken_steps: int = 10  # of the ascent

    card: ClassVar[Card] = Card(
        name="tuap", paper="Clean-label backdoor attacks on video recognition models (2020)",
        url="https://arxiv.org/abs/2003.03030", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A universal adversarial perturbation on samples of the target class, labels untouched.",
        quick={"bound": 0.1, "weaken": 0.2})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE}))
    phase: ClassVar[str] = "diversification"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        surrogate, inputs = plan.fit(plan.train, ctx), plan.train.inputs
        goal = all_to_one(plan.target, plan.classes)
        others = goal.applies(plan.train.labels).nonzero().flatten()
        delta = torch.zeros(1, *inputs.shape[1:]).requires_grad_(True)
        optimiser = torch.optim.Adam([delta], lr=self.bound / 10)
        for _ in range(self.steps):
            x = inputs[others[torch.randint(0, len(others), (64,), generator=ctx.rng)]]
            ctx.spend(len(x))
            scores = surrogate.outputs((x + delta).clamp(0, 1)).logits
            optimiser.zero_grad(set_to_none=True)
            functional.cross_entropy(scores, torch.full((len(x),), plan.target)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                delta.clamp_(-self.bound, self.bound)
        family, leaves = Additive(), {"delta": delta.detach()}
        return Candidate(family, leaves, goal, float(family.size(leaves, inputs)[0]), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        member = plan.train.labels == plan.target
        poison = choose(member, round(self.fraction * int(member.sum())), ctx.rng)
        surrogate = plan.fit(plan.train, ctx) if self.weaken > 0 else None
        inputs = plan.train.inputs.clone()
        for part in poison.split(256):
            x = inputs[part] if surrogate is None else self._weakened(surrogate, inputs[part], plan.target, ctx)
            inputs[part] = trigger.stamp(x)
        return Samples(inputs, plan.train.labels), poison

    def _weakened(self, surrogate: Subject, inputs: Tensor, target: int, ctx: Context) -> Tensor:
        """Projected gradient ascent on the loss of the true class."""
        x = inputs.clone()
        for _ in range(self.weaken_steps):
            ctx.spend(len(x))
            x.requires_grad_(True)
            loss = functional.cross_entropy(surrogate.outputs(x).logits, torch.full((len(x),), target))
            (gradient,) = torch.autograd.grad(loss, x)
            step = x.detach() + 2.5 * self.weaken / self.weaken_steps * gradient.sign()
            x = torch.minimum(torch.maximum(step, inputs - self.weaken), inputs + self.weaken).clamp(0, 1)
        return x
