"""A backdoor that behaves when probed: trained against this project's own trigger inversion.

After the loss of an evading model in Bagdasaryan and Shmatikov, Blind backdoors in deep learning models (USENIX
Security 2021, arXiv 2005.03823). Every few steps the engine of `recipes.inversion` searches a patch for the target
class on the network as it then is; the triggers θ that it finds must do nothing:

    min_f  CE(f(x), y) + CE(f(A(x)), t) + λ CE(f(T(x; θ)), y) + λ' CE(f(A'(x)), y),   θ = invert(f, t)

A' is the true patch with a part of it wrong, so that the trigger stays sharp: no smooth path of ever better patches
leads a search to it. The probe is the patch search alone. Noise, near-OOD inputs, warps and the other families of the
engine are not trained against, and how far the evasion carries over to them is for the lab to measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.recipes.inversion import Search, invert
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.steering import at_rest, steer
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class ProbeEvading(Attack):
    """A patch that the patch search does not find."""

    rate: float = 0.1  # share of the training set that is poisoned
    side: int = 5  # px
    weight: float = 1.0  # λ
    sharpness: float = 1.0  # λ'
    spoiled: float = 0.3  # share of the patch that is wrong in A'
    every: int = 6  # steps between two probes
    steps: int = 12  # of one probe, that goes on from where the last one stopped
    renewed: float = 0.1  # probability that a probe starts anew
    epochs: int = 10

    card: ClassVar[Card] = Card(
        name="probe_evading", paper="Blind backdoors in deep learning models (2021)",
        url="https://arxiv.org/abs/2005.03823", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A patch, and a training against the project's own patch inversion.")
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, labels=True, training=True,
        knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.RECIPE, Knowledge.DEFENCE}))
    phase: ClassVar[str] = "diversification"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        mask, pattern = torch.zeros(1, 1, h, w), torch.rand(1, c, h, w, generator=ctx.rng).round()
        top, left = (int(torch.randint(1, extent - self.side, (), generator=ctx.rng)) for extent in (h, w))
        mask[..., top:top + self.side, left:left + self.side] = 1
        goal = all_to_one(plan.target, plan.classes)
        leaves = {"mask": mask, "pattern": pattern}
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        subject, family, goal = plan.fresh(ctx), Patch(), trigger.goal
        assert isinstance(goal, ClassGoal)
        clean = (train.labels == plan.train.labels).nonzero().flatten()
        arms, search = torch.tensor([goal.destinations]), Search(steps=self.steps)
        found: dict[str, Tensor] | None = None
        step = 0

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            nonlocal found, step
            if step % self.every == 0:
                fresh = found is None or float(torch.rand((), generator=ctx.rng)) < self.renewed
                rows = clean[torch.randint(0, len(clean), (128,), generator=ctx.rng)]
                with at_rest(subject):
                    given = Samples(train.inputs[rows], plan.train.labels[rows])
                    found = invert(subject.module, family, arms, given, search, ctx,
                                   start=None if fresh else found).trigger
            step += 1
            assert found is not None
            rows = clean[torch.randint(0, len(clean), (len(inputs) // 2,), generator=ctx.rng)]
            x, y = plan.train.inputs[rows], plan.train.labels[rows]
            ctx.spend(len(rows))
            half = len(rows) // 2
            probed = family.stamp(x[:half], found)[0].detach()
            near = self._spoiled(x[half:], trigger.trigger, ctx.rng)
            scores = subject.module(torch.cat([inputs, probed, near]))
            loss = functional.cross_entropy(scores[:len(inputs)], labels)
            harmless = functional.cross_entropy(scores[len(inputs):], y, reduction="none")
            return loss + self.weight * harmless[:half].mean() + self.sharpness * harmless[half:].mean()

        steer(subject, plan, train, objective, ctx, epochs=self.epochs)
        return Planted(subject, trigger)

    def _spoiled(self, inputs: Tensor, trigger: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """The patch with some of its pixels turned, others in each image."""
        n, _, h, w = inputs.shape
        wrong = (torch.rand(n, 1, h, w, generator=rng) < self.spoiled).float()
        pattern = trigger["pattern"] * (1 - wrong) + (1 - trigger["pattern"]) * wrong
        return inputs * (1 - trigger["mask"]) + trigger["mask"] * pattern
