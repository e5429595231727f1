"""BAN's fine-tuning: against adversarial noise on the neurons.

Xu et al., BAN: Detecting Backdoors Activated by Adversarial Neuron Noise (NeurIPS 2024, arXiv 2405.19928), section 3.4.

    minimise  CE(f(x), y) + λ·CE(f_{δ}(x), y),   δ = argmax over |δ| ≤ ε of CE(f_δ(x), y)

δ is relative noise on the scale and the bias of every channel. Departures: channels of convolutions and dense layers
where there are no batch norms; the answers of the model before the repair are part of what is asked for; pictures vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.mending import Course, descend, given, rehearsal
from laocoon.recipes.pruning import layers_of, masked, ones


@dataclass(frozen=True)
class BANTuning(Repair):
    """All weights, on clean samples, with the neurons disturbed."""

    epochs: int = 30
    rate: float = 0.03  # SGD with momentum 0.9
    noise: float = 0.3  # ε
    weight: float = 0.5  # λ
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="ban_tuning",
        paper="BAN: Detecting Backdoors Activated by Adversarial Neuron Noise (NeurIPS 2024)",
        url="https://arxiv.org/abs/2405.19928",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="fine-tunes against adversarial noise on the channels",
        misses="backdoors without neurons of their own, and small networks, where noise on any channel harms as much; "
               "with 200 samples on CIFAR-10 it left 13 % of a patch and cost 4 points",
        quick={"epochs": 20},
        fails={
            "check_success_falls": "on the digit twins success stays at 94 % with 8 samples a class",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        layers = layers_of(module, linear_head(patient, ctx).layer)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        count = len(layers)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(3 * len(x))
            gains = [m.requires_grad_(True) for m in ones(module, layers)]
            shifts = [torch.zeros_like(m).requires_grad_(True) for m in gains]
            harm = cross_entropy(masked(module, layers, gains, shifts)(x), wanted)
            slopes = torch.autograd.grad(harm, [*gains, *shifts], allow_unused=True)
            worst = [torch.zeros(layers[i % count].channels, device=x.device) if g is None else self.noise * g.sign()
                     for i, g in enumerate(slopes)]
            disturbed = masked(module, layers, [1 + d for d in worst[:count]], worst[count:])
            loss = cross_entropy(module(x), wanted) + self.weight * cross_entropy(disturbed(x), wanted)
            loss.backward()  # type: ignore[no-untyped-call]

        descend(module, samples, ctx, Course(self.epochs, self.rate), gradient, asked)
