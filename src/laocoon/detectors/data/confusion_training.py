"""Confusion Training: Towards a Proactive ML Approach for Detecting Backdoor Poison Samples.

Qi et al., USENIX Security 2023, arXiv 2205.13616. A model is trained on the suspects and, much more heavily, on a few
trusted samples with random wrong labels. What links pictures to their labels naturally is destroyed; what links a
trigger to its label is not, since no trusted sample carries it. With ℓ the loss on the given label afterwards,

    L = (ℓ(suspects) + (λ − 1) ℓ(trusted, wrong labels)) / λ,        score(x) = − ℓ(x).

Departures: one round in place of six, which narrow the suspects down; it starts from the given model, or from a short
training of the architecture; fresh wrong labels are drawn at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context, governed
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit
from laocoon.recipes.representations import label_losses


@dataclass(frozen=True)
class ConfusionTraining(DataDetector):
    """How well a sample's label survives training on wrongly labelled clean samples."""

    steps: int = 200
    weight: float = 5.0  # λ: of the confusion (the paper: 10 to 20, in larger steps)
    batch: int = 64  # suspects in a step, and as many trusted samples
    rate: float = 1e-3
    epochs: int = 3  # of training beforehand, where no model is given

    card: ClassVar[Card] = Card(
        name="confusion_training",
        paper="Towards a Proactive ML Approach for Detecting Backdoor Poison Samples (USENIX Security 2023)",
        url="https://arxiv.org/abs/2205.13616",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.CLEAN}),
        misses="all-to-all backdoors, which the confusion destroys as well (AUROC 0.75 on CIFAR-10, 3 % "
               "found at 1 % false alarms); few trusted samples; in a clean set it flags what was learnt by "
               "heart.",
        summary="the label of poison survives training on wrongly labelled clean samples",
        quick={"steps": 60, "batch": 32},
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        assert case.trusted is not None
        subject = self._start(case, ctx)
        suspects, trusted = case.suspects, case.trusted.to(ctx.device)
        self._confuse(subject.module, suspects, trusted, case.classes, ctx)
        return -label_losses(subject, suspects.inputs, suspects.labels.to(ctx.device), ctx)

    def _start(self, case: DataCase, ctx: Context) -> Subject:
        if case.subject is not None and Capability.WEIGHTS in case.subject.capabilities:
            return case.subject.copy()
        if case.untrained is None:
            raise NotApplicable("confusion training needs a model with weights, or an architecture.")
        subject, samples = case.untrained(ctx), case.suspects
        ctx.spend(self.epochs * len(samples))
        fit(subject.module.to(ctx.device), samples.inputs, samples.labels, epochs=self.epochs, rng=ctx.rng,
            batch=min(self.batch, len(samples)))
        return subject

    def _confuse(self, module: nn.Module, suspects: Samples, trusted: Samples, classes: int, ctx: Context) -> None:
        module.requires_grad_(True)
        module.train()
        optimiser = torch.optim.AdamW([p for p in module.parameters() if p.is_floating_point()], lr=self.rate)
        with governed(ctx.rng):
            for _ in range(self.steps):
                rows = torch.randint(0, len(suspects), (self.batch,), generator=ctx.rng)
                clean = torch.randint(0, len(trusted), (self.batch,), generator=ctx.rng)
                shift = torch.randint(1, classes, (self.batch,), generator=ctx.rng).to(ctx.device)
                inputs = torch.cat([suspects.inputs[rows].to(ctx.device), trusted.inputs[clean.to(ctx.device)]])
                wrong = (trusted.labels[clean.to(ctx.device)] + shift) % classes
                ctx.spend(len(inputs))
                logits = module(inputs)  # together, so that batch statistics are those of both
                own = functional.cross_entropy(logits[: self.batch], suspects.labels[rows].to(ctx.device))
                confusion = functional.cross_entropy(logits[self.batch:], wrong)
                loss = (own + (self.weight - 1) * confusion) / self.weight
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(module.parameters(), 5.0)
                optimiser.step()
        module.eval()
        module.requires_grad_(False)
