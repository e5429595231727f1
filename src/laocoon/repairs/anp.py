"""ANP: adversarial neuron pruning.

Wu and Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models (NeurIPS 2021, arXiv 2110.14430). Planted
neurons are those that a small disturbance of weights turns into errors. Masks m on the channels are learnt under it:

    minimise over 0 ≤ m ≤ 1   α·CE(f_m(x), y) + (1 − α)·max over |δ|, |ξ| ≤ ε of CE(f_{(m+δ)·w, (1+ξ)·b}(x), y)

and the channels of the smallest masks are pruned. Departures: as many are pruned as held-out clean samples bear,
where the paper fixes a threshold; without (enough) batch norms the masks are on the rows of convolutions and dense
layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.mending import divided, given
from laocoon.recipes.pruning import layers_of, masked, ones, prune_while_right


@dataclass(frozen=True)
class ANP(Repair):
    """Prune what adversarial noise on the neurons needs."""

    steps: int = 300  # the paper: 2,000
    batch: int = 64
    rate: float = 0.2  # of the masks, SGD with momentum 0.9
    noise: float = 0.4  # ε
    trade: float = 0.2  # α
    allowed: float = 0.02  # clean accuracy that pruning may cost on held-out samples
    most: float = 0.5  # share of all channels that may be pruned
    tries: int = 25  # thresholds tried

    card: ClassVar[Card] = Card(
        name="anp",
        paper="Adversarial Neuron Pruning Purifies Backdoored Deep Models (NeurIPS 2021)",
        url="https://arxiv.org/abs/2110.14430",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="prunes the channels that are most sensitive to adversarial noise on weights",
        misses="backdoors without neurons of their own: input-aware, warped and all-to-all ones; in small networks "
               "channels serve many purposes, and few can go before clean samples notice",
        quick={"steps": 80},
        fails={
            "check_success_falls":
                "on the digit twins success stays at 98 %: with 36 channels, few can go before 20 held-out "
                "samples notice",
            "check_harmless_on_clean":
                "the clean digit twin loses 2.6 points: 20 held-out samples are too few to stop pruning in "
                "time",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        parts = divided(given(case.fit, module), ctx)
        layers = layers_of(module, linear_head(patient, ctx).layer)
        masks = [m.requires_grad_(True) for m in ones(module, layers)]
        optimiser = torch.optim.SGD(masks, lr=self.rate, momentum=0.9)
        n = len(parts.train)
        for _ in range(self.steps):
            index = torch.randperm(n, generator=ctx.rng)[:self.batch].to(parts.train.labels.device)
            x, y = parts.train.inputs[index], parts.train.labels[index]
            ctx.spend(3 * len(x))
            gains, shifts = ([torch.empty_like(m).uniform_(-self.noise, self.noise, generator=ctx.rng)
                              if m.device.type == "cpu" else torch.zeros_like(m) for m in masks] for _ in range(2))
            noise = [d.requires_grad_(True) for d in (*gains, *shifts)]
            half = len(masks)
            harm = cross_entropy(masked(module, layers, [m.detach() + d for m, d in zip(masks, gains, strict=True)],
                                        shifts)(x), y)
            slopes = torch.autograd.grad(harm, noise, allow_unused=True)
            worst = [torch.zeros_like(d) if g is None else self.noise * g.sign()
                     for d, g in zip(noise, slopes, strict=True)]
            disturbed = masked(module, layers, [m + d for m, d in zip(masks, worst[:half], strict=True)], worst[half:])
            loss = self.trade * cross_entropy(masked(module, layers, masks)(x), y)
            loss = loss + (1 - self.trade) * cross_entropy(disturbed(x), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        prune_while_right(module, layers, [m.detach() for m in masks], parts.check, ctx, allowed=self.allowed,
                          most=self.most, steps=self.tries)
