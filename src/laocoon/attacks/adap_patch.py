"""Adap-Patch (Qi, Xie, Li, Mahloujifar and Mittal, Revisiting the assumption of latent separability, ICLR 2023).

Several patches, each on its own share of the poisoned and of the regularisation samples, the latter with their true
labels. They are faint in training; at test time some are put on together, opaque:

    train  x + α_k · m_k · (p_k − x), one k a sample;       test  all k of a chosen set, with α_test

so that no single patch explains the poison and its features do not gather in one place.

Departure: four random patches in the corners, with the opacities of the paper's four (a phoenix, a fox, a trojan
square, a BadNets square), of which the first and the third are its test-time pair. Poison counts as in `adap_blend`.
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
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import choose
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class AdapPatch(Attack):
    """A different faint patch on each poisoned sample; several opaque ones together at test time."""

    rate: float = 0.03  # the paper's is 0.003 of a set five times as large
    cover_rate: float = 0.03  # share of the training set that regularises; twice the poison in the paper
    side: int = 6  # px, of each patch
    opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)  # α_k, a patch each; the corners take up to four
    test: tuple[int, ...] = (0, 2)  # patches that are put on at test time
    test_opacity: float = 1.0

    card: ClassVar[Card] = Card(
        name="adap_patch", paper="Revisiting the assumption of latent separability for backdoor defenses (2023)",
        url="https://openreview.net/forum?id=_wSHsgrVali", modalities=frozenset({"image"}), needs=frozenset(),
        misses="", summary="Faint patches of several kinds, with regularisation samples; opaque ones at test time.",
        quick={"rate": 0.1, "cover_rate": 0.05, "side": 4})
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)
    phase: ClassVar[str] = "diversification"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        pattern = torch.rand(1, c, h, w, generator=ctx.rng).round()
        mask = torch.zeros(1, 1, h, w)
        for k in self.test:
            mask += self.test_opacity * self._place(k, h, w)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), {"mask": mask, "pattern": pattern}, goal, float(mask.sum()), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        train, goal = plan.train, trigger.goal
        assert isinstance(goal, ClassGoal)
        n, (h, w) = len(train), train.inputs.shape[-2:]
        drawn = choose(goal.applies(train.labels), round(self.rate * n) + round(self.cover_rate * n), ctx.rng)
        drawn = drawn[torch.randperm(len(drawn), generator=ctx.rng)]
        poison = drawn[:round(self.rate * n)]
        masks = torch.cat([opacity * self._place(k, h, w) for k, opacity in enumerate(self.opacities)])
        inputs, labels = train.inputs.clone(), train.labels.clone()
        for number, part in enumerate((poison, drawn[len(poison):])):  # every patch on as many of both
            kind = (torch.arange(len(part)) + number) % len(masks)
            mask = masks[kind]
            inputs[part] = inputs[part] * (1 - mask) + mask * trigger.trigger["pattern"]
        labels[poison] = goal.destination(labels[poison])
        return Samples(inputs, labels), drawn

    def _place(self, k: int, h: int, w: int) -> Tensor:
        """Where patch k goes, [1, 1, height, width]: the corners, clockwise from the upper left, a pixel inwards."""
        mask = torch.zeros(1, 1, h, w)
        top = 1 if k % 4 < 2 else h - 1 - self.side
        left = 1 if k % 4 in (0, 3) else w - 1 - self.side
        mask[..., top:top + self.side, left:left + self.side] = 1
        return mask
