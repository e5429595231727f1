"""RNP: reconstructive neuron pruning.

Li et al., Reconstructive Neuron Pruning for Backdoor Defense (ICML 2023, arXiv 2305.14876). Unlearn clean samples
until the model knows none of them (neurons that clean samples use are spoilt, planted ones are not), then let masks
on the channels recover clean accuracy with the weights frozen: what has to be masked out is planted.

    maximise over w  CE(f_w(x), y);   then minimise over 0 ≤ m ≤ 1  CE(f_{m·w}(x), y)

The channels of the smallest masks are pruned in the *original* model. Departures: as many as held-out clean samples
bear, where the paper fixes a threshold; afterwards a short fine-tuning, which the paper leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.mending import Course, accuracy, copied, descend, divided, given, poised, rehearsal
from laocoon.recipes.pruning import layers_of, masked, ones, prune_while_right


@dataclass(frozen=True)
class RNP(Repair):
    """Unlearn, recover, prune."""

    unlearn_epochs: int = 20  # at most; it ends when the samples are answered by chance
    unlearn_rate: float = 0.01
    recover_steps: int = 200
    recover_rate: float = 0.2  # SGD with momentum 0.9
    allowed: float = 0.02  # clean accuracy that pruning may cost on held-out samples
    most: float = 0.5  # share of all channels that may be pruned
    tries: int = 25
    tune_epochs: int = 15
    tune_rate: float = 0.02
    anchor: float = 0.9  # share of the earlier answers in the fine-tuning

    card: ClassVar[Card] = Card(
        name="rnp",
        paper="Reconstructive Neuron Pruning for Backdoor Defense (ICML 2023)",
        url="https://arxiv.org/abs/2305.14876",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="prunes the channels that survive the unlearning of clean samples",
        misses="backdoors without channels of their own; small networks, which cannot spare any",
        quick={"recover_steps": 60, "tune_epochs": 20},
        fails={
            "check_success_falls": "on the digit twins success stays at 100 %: no channel is the backdoor's alone",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        parts = divided(samples, ctx)
        layers = layers_of(module, linear_head(patient, ctx).layer)
        spoilt = copied(module)
        self._unlearn(spoilt, parts.train.inputs, parts.train.labels, patient.classes, ctx)
        masks = [m.requires_grad_(True) for m in ones(module, layers)]
        optimiser = torch.optim.SGD(masks, lr=self.recover_rate, momentum=0.9)
        for _ in range(self.recover_steps):
            index = torch.randperm(len(parts.train), generator=ctx.rng)[:64].to(samples.labels.device)
            ctx.spend(len(index))
            loss = cross_entropy(masked(spoilt, layers, masks)(parts.train.inputs[index]), parts.train.labels[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        prune_while_right(module, layers, [m.detach() for m in masks], parts.check, ctx, allowed=self.allowed,
                          most=self.most, steps=self.tries)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]

        if self.tune_epochs:
            descend(module, samples, ctx, Course(self.tune_epochs, self.tune_rate), gradient, asked)

    def _unlearn(self, module: torch.nn.Module, inputs: Tensor, labels: Tensor, classes: int, ctx: Context) -> None:
        """Climb the loss until the answers are chance, in place."""
        weights = list(module.requires_grad_(True).parameters())
        optimiser = torch.optim.SGD(weights, lr=self.unlearn_rate, momentum=0.9)
        for _ in range(self.unlearn_epochs):
            poised(module, True)
            for index in torch.randperm(len(labels), generator=ctx.rng).to(labels.device).split(32):
                if len(index) < 2:
                    continue
                ctx.spend(len(index))
                harm = -cross_entropy(module(inputs[index]), labels[index])
                optimiser.zero_grad(set_to_none=True)
                harm.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights, 5.0)
                optimiser.step()
            module.eval()
            if accuracy(module, Samples(inputs, labels), ctx) <= 1.5 / classes:
                break
        module.requires_grad_(False)
