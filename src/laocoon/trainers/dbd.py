"""Backdoor Defense via Decoupling the Training Process.

Huang et al., ICLR 2022, arXiv 2202.03423. A poisoned sample's label is what ties the trigger to the target, so the
features are learnt without labels:

    1  SimCLR on all pictures, no labels
    2  freeze the features and train the head on all labels with the symmetric cross-entropy
       ℓ_SCE = a·CE(p, y) + b·CE(y, p)         (log 0 taken as A), which wrong labels pull at less
    3  believe the labels of the share α of the samples whose loss is lowest; the others lose theirs, and the whole
       network is trained on both (semi-supervised)

Departures: α counts in each class, so that hard classes keep samples; stage 3 is FixMatch (arXiv 2001.07685, confident
answers on a plain view are the labels of a strong view) instead of MixMatch; the projection of SimCLR is the network's
last layer, replaced by a new head afterwards. On small networks and data the features of stage 1 are poor, which costs
accuracy: the schedule here is short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.contrastive import pretrained, view
from laocoon.recipes.lessons import Lesson, finished, losses, lowest_of_each, material, pupil, teach
from laocoon.recipes.transfer import Thawed, with_head


@dataclass(frozen=True)
class DBD(Trainer):
    """Features without labels, a head, then semi-supervised training on the labels that fit."""

    contrast_epochs: int = 60  # epochs of stage 1 (the paper: 1000)
    head_epochs: int = 10  # epochs of stage 2
    epochs: int = 20  # epochs of stage 3 (the paper: 190)
    trust: float = 0.5  # α: share of each class whose labels are believed
    confident: float = 0.8  # least probability at which an answer serves as a label in stage 3
    batch: int = 64  # samples a step
    rate: float = 3e-3  # peak learning rate
    flip: bool = False  # random mirroring

    card: ClassVar[Card] = Card(
        name="dbd",
        paper="Backdoor Defense via Decoupling the Training Process (ICLR 2022)",
        url="https://arxiv.org/abs/2202.03423",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="clean-label poison, whose features are those of the target class; attacks on self-supervised features; "
               "triggers that survive every view. It costs accuracy where data and network are small, and is unsteady "
               "there: on digits BadNets at 5 % fell to 0 % success, at 10 % it stayed at 100 %.",
        summary="learns features without labels, and believes only labels that fit them",
        quick={"contrast_epochs": 15, "head_epochs": 4, "epochs": 6},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        if not 0 < self.trust < 1:
            raise InputError(f"trust is {self.trust}.", "It is a share between 0 and 1.")
        samples = material(case, ctx)
        encoder = pretrained(pupil(case, ctx), samples.inputs, ctx, epochs=self.contrast_epochs, rate=self.rate,
                             flip=self.flip)
        subject = with_head(encoder, case.classes, ctx.rng)
        frozen = Thawed(subject.module, 1)
        lesson = Lesson(self.head_epochs, self.batch, 3 * self.rate)
        teach(frozen, samples, lesson, ctx, lambda x, y, _: symmetric_cross_entropy(frozen(x), y))
        believed = lowest_of_each(losses(subject.module, samples, ctx), samples.labels, self.trust)
        kept = believed.nonzero().flatten()
        if not len(kept):
            raise NotApplicable(f"none of {len(samples)} samples fits its label.")
        self._both(subject, samples, believed, ctx)
        facts = {"samples": len(samples), "believed": len(kept)}
        return finished(replace(subject, module=subject.module), self.card.name, facts), kept.cpu()

    def _both(self, subject: Subject, samples: Samples, believed: Tensor, ctx: Context) -> None:
        """Stage 3: cross-entropy where the label is believed, FixMatch on the others."""
        module = subject.module
        known = Samples(samples.inputs[believed], samples.labels[believed])
        unknown = samples.inputs[~believed]

        def objective(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            some = torch.randint(0, max(1, len(unknown)), (len(x),), generator=ctx.rng).to(x.device)
            ctx.spend(len(some))
            ctx.spend(len(some), backward=False)
            plain = unknown[some]
            module.eval()
            with torch.no_grad():
                sure, said = module(plain).softmax(-1).max(-1)
            module.train()
            strong = view(plain, ctx.rng, flip=self.flip)
            scores = module(torch.cat([x, strong]))
            follow = functional.cross_entropy(scores[len(x):], said, reduction="none")
            return functional.cross_entropy(scores[:len(x)], y) + (follow * (sure >= self.confident)).mean()

        teach(module, known, Lesson(self.epochs, self.batch, self.rate, 0, self.flip), ctx,
              objective if len(unknown) else None)


def symmetric_cross_entropy(scores: Tensor, labels: Tensor, forward: float = 0.1, backward: float = 1.0,
                            floor: float = -4.0) -> Tensor:
    """a·CE(p, y) + b·CE(y, p), Wang et al. (ICCV 2019); log 0 of the one-hot label is taken as `floor`."""
    told = scores.softmax(-1).gather(1, labels[:, None]).squeeze(1)
    return forward * functional.cross_entropy(scores, labels) - backward * floor * (1 - told).mean()
