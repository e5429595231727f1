"""Fine-pruning: prune the channels that clean samples leave asleep, then fine-tune.

Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks (RAID 2018,
arXiv 1805.12185). Channels of the last convolution are pruned in the order of their mean activation on clean samples,
until accuracy falls by more than `allowed`.

Departures: activations are taken after the batch norm where one follows; accuracy is that on held-out clean samples;
networks without convolution lose neurons of their last hidden layer; fine-tuning as in `fine_tuning`.
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
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.mending import Course, descend, divided, given, rehearsal
from laocoon.recipes.pruning import multiplying, normalised, prune_while_right
from laocoon.recipes.sites import reading, survey


@dataclass(frozen=True)
class FinePruning(Repair):
    """Prune what sleeps, then fine-tune."""

    allowed: float = 0.04  # clean accuracy that pruning may cost on held-out samples (the paper: 0.1)
    most: float = 0.9  # share of the layer that may be pruned
    tries: int = 25
    epochs: int = 30
    rate: float = 0.02  # SGD with momentum 0.9
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="fine_pruning",
        paper="Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks (RAID 2018)",
        url="https://arxiv.org/abs/1805.12185",
        modalities=frozenset({"image", "tabular", "text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.FEATURES, Capability.CLEAN}),
        summary="prunes channels of the last convolution that sleep on clean samples, then fine-tunes",
        misses="backdoors whose neurons serve clean classes as well; small networks, whose channels are all awake",
        quick={"epochs": 20},
        fails={
            "check_success_falls": "on the digit twins success stays at 93 % with 8 samples a class",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        head = linear_head(patient, ctx).layer
        known = {layer.name: layer for layer in (*multiplying(module, head), *normalised(module))}
        sites = [s for s in survey(patient, samples.inputs, ctx) if s.layer in known]
        spatial = [s for s in sites if len(s.shape) > 1]
        if not sites:
            raise NotApplicable("the network has no layer beside its head that could be pruned.")
        last = (spatial or sites)[-1]
        total = torch.zeros(last.channels, device=samples.inputs.device)
        with reading(patient, last) as seen, torch.no_grad():
            for part in samples.inputs.split(ctx.batch):
                ctx.spend(len(part), backward=False)
                module(part)
                total += last.pooled(seen[last].relu()).sum(0)
        parts = divided(samples, ctx)
        prune_while_right(module, [known[last.layer]], [total], parts.check, ctx, allowed=self.allowed, most=self.most,
                          steps=self.tries, whole=True)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        descend(module, samples, ctx, Course(self.epochs, self.rate), gradient, asked)
