"""Loss dynamics: the isolation stage of Anti-Backdoor Learning. Li et al., NeurIPS 2021, arXiv 2110.11571.

A trigger is learnt sooner than anything natural. A new network is trained for a few epochs with local gradient ascent,
which keeps clean samples from being fitted below γ and leaves the poison to sink,

    L(x) = sign(ℓ(x) − γ) · ℓ(x),        score(x) = − mean over epochs of ℓ(x) after each.

Departures: fewer epochs (the paper: 20, then the lowest 1 % are isolated); the loss is averaged over the epochs; that
of the last alone is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.fit import fit
from laocoon.recipes.representations import label_losses


@dataclass(frozen=True)
class LossDynamics(DataDetector):
    """How soon a sample's loss falls when a new network is trained on all of them."""

    epochs: int = 4
    floor: float = 0.5  # γ: the loss that clean samples are kept at
    batch: int = 128
    rate: float = 5e-4  # peak learning rate; low, so that the order in which things are learnt shows

    card: ClassVar[Card] = Card(
        name="loss_dynamics",
        paper="Anti-Backdoor Learning: Training Clean Models on Poisoned Data (NeurIPS 2021)",
        url="https://arxiv.org/abs/2110.11571",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="all-to-all poison, which is learnt last (AUROC 0.2 on CIFAR-10: upside down); clean samples "
               "that are easy are learnt as soon as poison (BadNets 0.84, blended 0.71, nothing found at 1 % "
               "false alarms in 4 epochs); clean-label poison.",
        summary="a trigger is learnt sooner than anything natural",
        quick={"batch": 32},
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.untrained is None:
            raise NotApplicable("loss dynamics need an architecture to train.")
        samples, subject = case.suspects, case.untrained(ctx)
        labels = samples.labels.to(ctx.device)
        losses: list[Tensor] = []

        def ascending(inputs: Tensor, wanted: Tensor, index: Tensor) -> Tensor:
            own = functional.cross_entropy(subject.module(inputs), wanted, reduction="none")
            return (torch.sign(own.detach() - self.floor) * own).mean()

        def watch(share: float) -> None:
            subject.module.eval()
            losses.append(label_losses(subject, samples.inputs, labels, ctx))
            ctx.progress(self.card.name, share, "training")

        ctx.spend(self.epochs * len(samples))
        subject.module.to(ctx.device)
        fit(subject.module, samples.inputs, labels, epochs=self.epochs, rng=ctx.rng,
            batch=min(self.batch, len(samples)), rate=self.rate, objective=ascending, after=watch)
        return -torch.stack(losses).clamp(max=20).mean(0)
