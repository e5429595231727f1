"""A backdoor that behaves when probed: trained against this project's own trigger inversion.

After the loss of an evading model in Bagdasaryan and Shmatikov, Blind backdoors in deep learning models (USENIX
Security 2021, arXiv 2005.03823). Every few steps the engine of `recipes.inversion` searches a patch for the target
class on the network as it then is; the triggers θ that it finds must do nothing:

    min_f  CE(f(x), y) + α CE(f(A(x)), t) + λ CE(f(T(x; θ)), y) + λ' CE(f(A'(x)), y),   θ = invert(f, t)

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
from laocoon.core.subject import Subject
from laocoon.recipes.inversion import Search, invert
from laocoon.recipes.steering import at_rest, steer
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class ProbeEvading(Attack):
    """A patch that the patch search does not find."""

    share: float = 0.15  # of a batch that is stamped and relabelled
    side: int = 5  # px
    attack: float = 0.5  # weight of the second term
    weight: float = 1.0  # λ
    sharpness: float = 0.5  # λ'
    spoiled: float = 0.5  # share of the patch that is wrong in A'
    start: float = 0.3  # share of the training before the first probe
    every: int = 6  # steps between two probes
    steps: int = 15  # of one probe, that goes on from where the last one stopped
    renewed: float = 0.2  # probability that a probe starts anew
    largest: float = 0.15  # share of the image that a found trigger may cover; past it, it is made fainter
    epochs: int = 10

    card: ClassVar[Card] = Card(
        name="probe_evading", paper="Blind backdoors in deep learning models (2021)",
        url="https://arxiv.org/abs/2005.03823", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A patch, and a training against the project's own patch inversion.",
        quick={"epochs": 14, "weight": 0.5})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True,
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

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        subject, family, goal = plan.fresh(ctx), Patch(), trigger.goal
        assert isinstance(goal, ClassGoal)
        found: dict[str, Tensor] | None = None
        step, seen = 0, 0

        def objective(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            nonlocal found, step, seen
            seen += len(inputs)
            chosen = goal.applies(labels).nonzero().flatten()[:round(self.share * len(inputs))]
            near = torch.randperm(len(inputs), generator=ctx.rng)[:len(inputs) // 4]
            ctx.spend(len(chosen) + len(near))
            parts = [inputs, trigger.stamp(inputs[chosen]), self._spoiled(inputs[near], trigger.trigger, ctx.rng)]
            wanted = [labels, goal.destination(labels[chosen]), labels[near]]
            weights = [1.0, self.attack, self.sharpness]
            if seen > self.start * self.epochs * len(train):
                if found is None or step % self.every == 0:
                    found = self._probed(subject, goal, train, found, ctx)
                step += 1
                probed = torch.randperm(len(inputs), generator=ctx.rng)[:len(inputs) // 4]
                ctx.spend(len(probed))
                parts.append(family.stamp(inputs[probed], self._smaller(found))[0])
                wanted.append(labels[probed])
                weights.append(self.weight)
            # One pass for all: batch norms that saw probes alone would learn another network than the one that is used.
            scores = subject.module(torch.cat(parts)).split([len(p) for p in parts])
            loss = torch.stack([weight * functional.cross_entropy(said, to)
                                for weight, said, to in zip(weights, scores, wanted, strict=True)]).sum()
            return loss

        steer(subject, plan, train, objective, ctx, epochs=self.epochs)
        return Planted(subject, trigger)

    def _probed(self, subject: Subject, goal: ClassGoal, train: Samples, last: dict[str, Tensor] | None,
                ctx: Context) -> dict[str, Tensor]:
        """What the engine finds for the target class, on the network as it is."""
        start = last if float(torch.rand((), generator=ctx.rng)) >= self.renewed else None
        rows = torch.randint(0, len(train), (128,), generator=ctx.rng)
        with at_rest(subject):
            found = invert(subject.module, Patch(), torch.tensor([goal.destinations]),
                           Samples(train.inputs[rows], train.labels[rows]), Search(steps=self.steps), ctx, start=start)
        return {k: v.detach() for k, v in found.trigger.items()}

    def _smaller(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The found trigger, fainter where it would hide what the image shows."""
        mask = found["mask"]
        factor = (self.largest * mask[0].numel() / mask.sum((1, 2, 3)).clamp_min(1e-6)).clamp_max(1)
        return Patch().shrink(found, factor)

    def _spoiled(self, inputs: Tensor, trigger: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """The patch with some of its pixels turned, others in each image."""
        n, _, h, w = inputs.shape
        wrong = (torch.rand(n, 1, h, w, generator=rng) < self.spoiled).float()
        pattern = trigger["pattern"] * (1 - wrong) + (1 - trigger["pattern"]) * wrong
        return inputs * (1 - trigger["mask"]) + trigger["mask"] * pattern
