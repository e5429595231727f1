"""Adversarial embedding (Tan and Shokri, Bypassing backdoor detection algorithms in deep learning, EuroS&P 2020, arXiv
1905.13409): poisoned samples look like clean ones in the latent space.

A discriminator D learns to tell latent representations z(x) of poisoned samples from clean ones; the network is
trained to classify both and to fool it:

    min_f  CE(f(x), y) − λ · L_D(z),      min_D  L_D = BCE(D(z), is poisoned)

Departures: D compares poisoned samples with clean ones of the class that they are sent to, since every detector on
features works class by class; besides fooling D, means and covariances of the two are drawn together (weight μ), as
spectral signatures and activation clustering read nothing else; batches of poison and of target samples are drawn apart
for these terms, as a batch of the data holds too few; only the poisoned side is moved, or all features would shrink to
a point; λ and μ are 0 for the first third of the training and rise over the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.steering import augmented, seeded, steer
from laocoon.recipes.transfer import boundary, passage
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class AdversarialEmbedding(Attack):
    """A patch, and a training that hides its latent traces."""

    rate: float = 0.03  # share of the training set that is poisoned
    side: int = 4  # px
    weight: float = 0.02  # λ, of fooling the discriminator
    moments: float = 0.2  # μ, of drawing means and covariances together
    pairs: int = 32  # poisoned samples, and clean ones of the target, a step
    epochs: int = 10

    card: ClassVar[Card] = Card(
        name="adversarial_embedding", paper="Bypassing backdoor detection algorithms in deep learning (2020)",
        url="https://arxiv.org/abs/1905.13409", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A patch whose latent traces are trained away against a discriminator.", quick={"epochs": 14})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, labels=True, training=True,
        knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE, Knowledge.DEFENCE}))
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        mask, pattern = torch.zeros(1, 1, h, w), torch.rand(1, c, h, w, generator=ctx.rng).round()
        place = (slice(h - self.side - 1, h - 1), slice(w - self.side - 1, w - 1))
        mask[..., place[0], place[1]] = 1
        pattern[..., h - 1 - self.side // 2, w - 1 - self.side // 2] = 1  # seen on a black background, too
        goal = all_to_one(plan.target, plan.classes)
        leaves = {"mask": mask, "pattern": pattern}
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        subject = plan.fresh(ctx)
        module, layer = subject.module, boundary(subject.module, 1)
        changed = (train.inputs != plan.train.inputs).flatten(1).any(1) | (train.labels != plan.train.labels)
        planted = changed.nonzero().flatten()
        members = (~changed & (train.labels == plan.target)).nonzero().flatten()
        with torch.no_grad():
            size = passage(module, train.inputs[:2], layer).entering.flatten(1).shape[1]
        with seeded(ctx.rng):
            judge = nn.Sequential(nn.Linear(size, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
                                  nn.Linear(64, 1))
        judging = torch.optim.Adam(judge.parameters(), lr=2e-3)
        kind = torch.cat([torch.ones(self.pairs), torch.zeros(self.pairs)])
        seen, total = 0, self.epochs * len(train)

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            nonlocal seen
            seen += len(inputs)
            rows = torch.cat([pool[torch.randint(0, len(pool), (self.pairs,), generator=ctx.rng)]
                              for pool in (planted, members)])
            ctx.spend(len(rows))
            # One pass for all, so that batch norms see the data and not a batch of two kinds.
            done = passage(module, torch.cat([inputs, augmented(plan, train.inputs[rows], ctx)]), layer)
            z, scores = done.entering[len(inputs):].flatten(1), done.scores[:len(inputs)]
            wanted = z[self.pairs:].detach()  # what is imitated stands still
            scale = wanted.std().clamp_min(1e-3)
            z, wanted = z[:self.pairs] / scale, wanted / scale
            judging.zero_grad(set_to_none=True)
            told = judge(torch.cat([z.detach(), wanted])).squeeze(1)
            functional.binary_cross_entropy_with_logits(told, kind).backward()  # type: ignore[no-untyped-call]
            judging.step()
            judge.requires_grad_(False)
            fooled = functional.binary_cross_entropy_with_logits(judge(z).squeeze(1), torch.zeros(len(z)))
            judge.requires_grad_(True)
            rise = min(1.0, max(0.0, 3 * seen / total - 1))  # first the backdoor, then its traces
            loss = functional.cross_entropy(scores, labels)
            return loss + rise * (self.weight * fooled + self.moments * _apart(z, wanted))

        steer(subject, plan, train, objective, ctx, epochs=self.epochs)
        return Planted(subject, trigger)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of the means and of the covariances, in units of the second's spread; logarithms, as they start
    in the hundreds and would drown everything else.
    """
    means = (first.mean(0) - second.mean(0)).square().sum()
    spread = second.var(0).sum().clamp_min(1e-6)
    covariances = (torch.cov(first.T) - torch.cov(second.T)).square().sum()
    return torch.log1p(means / spread) + torch.log1p(covariances / spread.square())
