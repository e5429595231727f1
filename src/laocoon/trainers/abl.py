"""Anti-Backdoor Learning: Training Clean Models on Poisoned Data.

Li et al., NeurIPS 2021, arXiv 2110.11571. Poison is learnt faster than the rest. Three stages:

    1  local gradient ascent:  min over θ of  E[ sign(ℓ − γ) · ℓ ]     nothing may fall far below the loss γ
    2  isolate the share p of the samples whose loss ℓ is lowest, and train on the others
    3  unlearn:  min over θ of  E_trusted[ℓ] − E_isolated[ℓ]

Departures: as in the authors' code, the sign of stage 1 is that of the batch's mean loss; with a sign for each sample
all that is learnt gathers at γ, poison included, and its rank says nothing. The ascent of stage 3 stops at the loss of
a uniform guess, log(classes): beyond it there is nothing to unlearn, only weights to ruin. What stage 3 descends on is
the half of each class that was learnt last: poison that was not isolated would teach the trigger again. Isolated
samples take no part in stage 2 (the paper goes on training on all of them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, finished, losses, lowest_of_each, material, picked, pupil, teach


@dataclass(frozen=True)
class ABL(Trainer):
    """Isolate what is learnt first, then unlearn it."""

    isolation_epochs: int = 10  # epochs of stage 1 (the paper: 20)
    epochs: int = 20  # epochs of stage 2 (the paper: 60)
    unlearning_epochs: int = 5  # epochs of stage 3, over the half learnt last
    isolate: float = 0.05  # p: share of the samples isolated (the paper: 0.01, of 50000)
    gamma: float = 0.5  # γ: the loss below which stage 1 climbs
    batch: int = 64  # samples a step
    isolation_rate: float = 3e-3  # peak learning rate of stage 1
    rate: float = 3e-3  # peak learning rate of stage 2
    unlearning_rate: float = 2e-3  # peak learning rate of stage 3
    shift: int = 0  # px of random translation
    flip: bool = False  # random mirroring

    card: ClassVar[Card] = Card(
        name="abl",
        paper="Anti-Backdoor Learning: Training Clean Models on Poisoned Data (NeurIPS 2021)",
        url="https://arxiv.org/abs/2110.11571",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="poison that is learnt no faster than the rest: clean-label attacks, faint or blended triggers, low "
               "poison rates. On clean data it isolates and unlearns easy clean samples all the same. Fragile on small "
               "sets: of BadNets' success at 10 % poison it left 68 % on digits and all on 2000 MNIST samples; on "
               "small sets of texts and tables 88 % and all, so that it is not offered there.",
        summary="finds poison by how soon it is learnt, then unlearns it",
        quick={"epochs": 12},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        samples = material(case, ctx)
        count = int(self.isolate * len(samples))
        if not 1 <= count <= len(samples) // 2:
            raise NotApplicable(f"isolating {self.isolate:g} of {len(samples)} samples leaves {count} to unlearn.")
        first = self._scouted(case, samples, ctx)
        isolated = first.argsort(stable=True)[:count]
        rest = torch.ones(len(samples), dtype=torch.bool, device=ctx.device)
        rest[isolated] = False
        subject = pupil(case, ctx)
        lesson = Lesson(self.epochs, self.batch, self.rate, self.shift, self.flip)
        teach(subject.module, picked(samples, rest), lesson, ctx)
        late = rest & lowest_of_each(-first, samples.labels, 0.5)
        self._unlearn(subject, picked(samples, late), picked(samples, isolated), case.classes, ctx)
        facts = {"samples": len(samples), "isolated": count}
        return finished(subject, self.card.name, facts), rest.nonzero().flatten().cpu()

    def _scouted(self, case: DataCase, samples: Samples, ctx: Context) -> Tensor:
        """Loss of each sample after stage 1, on a network of its own, [n]."""
        scout = pupil(case, ctx)

        def ascent(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            loss = functional.cross_entropy(scout.module(x), y)
            return (loss.detach() - self.gamma).sign() * loss

        teach(scout.module, samples, Lesson(self.isolation_epochs, self.batch, self.isolation_rate), ctx, ascent)
        return losses(scout.module, samples, ctx)

    def _unlearn(self, subject: Subject, trusted: Samples, isolated: Samples, classes: int, ctx: Context) -> None:
        ceiling = math.log(classes)

        def objective(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            some = torch.randint(0, len(isolated), (max(2, len(x) // 4),), generator=ctx.rng).to(x.device)
            ctx.spend(len(some))
            said = subject.module(torch.cat([x, isolated.inputs[some]]))  # one pass: one set of batch statistics
            forgotten = functional.cross_entropy(said[len(x):], isolated.labels[some], reduction="none")
            return functional.cross_entropy(said[:len(x)], y) - forgotten.clamp_max(ceiling).mean()

        lesson = Lesson(self.unlearning_epochs, self.batch, self.unlearning_rate, self.shift, self.flip)
        teach(subject.module, trusted, lesson, ctx, objective)
