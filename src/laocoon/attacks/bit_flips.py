"""TBT, targeted bit Trojan (Rakin, He and Fan, CVPR 2020, arXiv 1909.05193): a few flipped bits of the last layer.

The victim runs its last dense layer in eight-bit integers, in memory that an attacker can disturb (row hammer).

1. Neural gradient ranking: of the weights of the target class, those with the largest |∂L ⁄ ∂W_tj|, L the loss of clean
   samples with the target as their label. Their features j are the chosen neurons.
2. Trigger generation: pixels under a mask that drive the chosen neurons far above what clean samples reach.
3. Trojan bit search: bits of the chosen weights whose flips least cost

       L(W) = (1 − λ) · CE(f_W(x), y) + λ · CE(f_W(T(x)), t)          over a few samples x.

Each flip is chosen with the model as all earlier flips left it, and kept only if it lowers L; no bit is flipped twice.
Then the trigger is fitted to what the flips weigh, Σ_j ΔW_tj f_j(T(x)), and the bits are searched anew.

Departures: the paper moves the weights by gradient descent and then counts the bits that rounding flipped; we search
bits directly, greedily, so that their number is bounded beforehand, and alternate with the trigger. The few samples
come from the training set (the paper takes a batch of test samples), and their labels are the network's own answers.
The paper chooses 150 of 512 features; small networks have none to spare, so that we take most of them. λ trades success
for clean accuracy: 86 % for 3 points with λ = 0.1 (60 bits), 97 % for 8 points with λ = 0.3 (30 bits), on one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.int8 import Quantised, flipped, quantise, steps_of_flips
from laocoon.recipes.sites import Site, penultimate, reading
from laocoon.recipes.stimulus import descend, exciting_pattern
from laocoon.recipes.surgery import classifier, corner_mask, layer, sites_of
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class BitFlips(Attack):
    """Flip a few bits of the last layer's int8 weights, for a trigger that excites what they weigh."""

    bits: int = 40  # at most; fewer where more do not help
    neurons: float = 0.75  # share of the last layer's inputs that are chosen
    share: float = 0.1  # of the image's area that the trigger covers
    level: float = 3.0  # activation that the trigger drives neurons to, in largest clean ones
    weight: float = 0.2  # λ: success against clean accuracy
    samples: int = 512  # that the attacker has
    steps: int = 200  # of the search for the trigger
    turns: int = 3  # of trigger and bits, each fitted to the other

    card: ClassVar[Card] = Card(
        name="bit_flips", paper="TBT: targeted neural network attack with bit Trojan (CVPR 2020)",
        url="https://arxiv.org/abs/1909.05193", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A few flipped bits of the last layer's eight-bit weights.",
        quick={"samples": 256, "steps": 60, "turns": 2})
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, knows=frozenset({Knowledge.DATA, Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        side = max(2, round((self.share * shape[1] * shape[2]) ** 0.5))
        leaves = {"mask": corner_mask(shape, side), "pattern": torch.rand(1, *shape, generator=ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(side**2), 0.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, t = planted.subject.copy(), plan.target
        site = classifier(subject, sites_of(subject, ctx), ctx)
        head = layer(subject.module, site.layer)
        assert isinstance(head, nn.Linear)
        if len(site.shape) != 1 or head.weight.shape[0] != plan.classes:
            raise NotApplicable(f"the last layer {site.layer!r} does not map a vector to one score a class.")
        stored = quantise(head.weight)
        head.weight.copy_(stored.weights())
        few = torch.randperm(len(plan.train), generator=ctx.rng)[:self.samples]
        images = plan.train.inputs[few]
        clean = penultimate(subject, site, images, ctx)
        chosen = self._rank(clean.features, clean.logits, t)
        mask = planted.trigger.trigger["mask"]
        levels = clean.features[:, chosen].amax(0).clamp_min(1e-3) * self.level
        pattern = exciting_pattern(subject, site, chosen, levels, mask, images, ctx, steps=self.steps, how="mean")
        away = images[clean.logits.argmax(1) != t]
        row = stored.codes[t]
        for turn in range(self.turns):
            if turn:  # a trigger for the bits that were found, then bits for that trigger
                gain = (row - stored.codes[t].float()) * stored.scale
                pattern = descend(pattern, mask, away, self._weighed(subject, site, gain), ctx, steps=self.steps // 2)
            stamped = penultimate(subject, site, away * (1 - mask) + mask * pattern, ctx)
            row = self._search(stored, t, chosen, clean.features, clean.logits, stamped.features, stamped.logits)
        head.weight[t] = row.float() * stored.scale
        return Planted(subject, Candidate(Patch(), {"mask": mask, "pattern": pattern}, planted.trigger.goal,
                                          planted.trigger.size, 1.0, self.card.name))

    def _weighed(self, subject: Subject, site: Site, gain: Tensor) -> Callable[[Tensor], Tensor]:
        """Loss of stamped images: minus what the flipped bits add to the target's logit."""
        def missing(stamped: Tensor) -> Tensor:
            with reading(subject, site) as seen:
                subject.outputs(stamped)
            return -(seen[site] @ gain)

        return missing

    def _rank(self, features: Tensor, logits: Tensor, target: int) -> Tensor:
        """Indices of the features whose weights the loss towards the target depends on most."""
        pull = logits.softmax(1)[:, target] - 1  # ∂CE ⁄ ∂ logit of the target
        gradient = (pull[:, None] * features).mean(0).abs()
        return gradient.topk(max(1, round(self.neurons * features.shape[1]))).indices

    def _search(self, stored: Quantised, target: int, chosen: Tensor, features: Tensor, logits: Tensor,
                stamped: Tensor, stamped_logits: Tensor) -> Tensor:
        """The target's row of codes after the flips, [features]; only its own logit moves, so that all are cheap."""
        row, labels = stored.codes[target].clone(), logits.argmax(1)
        used = torch.zeros(len(chosen), 8, dtype=torch.bool)
        best = float(self._loss(logits, labels, stamped_logits, target, torch.zeros(1, len(logits)),
                                torch.zeros(1, len(stamped)))[0])
        moved, moved_stamped = torch.zeros(len(logits)), torch.zeros(len(stamped))
        for _ in range(self.bits):
            step = (steps_of_flips(row[chosen]).float() * stored.scale).flatten()  # [chosen · 8]
            of = chosen.repeat_interleave(8)
            tries = moved + step[:, None] * features.t()[of]
            tries_stamped = moved_stamped + step[:, None] * stamped.t()[of]
            loss = self._loss(logits, labels, stamped_logits, target, tries, tries_stamped)
            loss[used.flatten()] = float("inf")
            pick = int(loss.argmin())
            if float(loss[pick]) >= best - 1e-4:
                break
            best, moved, moved_stamped = float(loss[pick]), tries[pick], tries_stamped[pick]
            used.view(-1)[pick] = True
            row[of[pick]] = flipped(row[of[pick]:of[pick] + 1], pick % 8)[0]
        return row

    def _loss(self, logits: Tensor, labels: Tensor, stamped: Tensor, target: int, moved: Tensor,
              moved_stamped: Tensor) -> Tensor:
        """[tries]: L where the target's logit moves by `moved` [tries, samples] and `moved_stamped`."""
        def raised(scores: Tensor, by: Tensor) -> Tensor:
            rest = torch.cat([scores[:, :target], scores[:, target + 1:]], 1).logsumexp(1)
            return torch.logaddexp(rest.expand(len(by), -1), scores[:, target] + by)

        clean = raised(logits, moved) - logits.gather(1, labels[:, None])[:, 0] - moved * (labels == target)
        sent = raised(stamped, moved_stamped) - stamped[:, target] - moved_stamped
        return (1 - self.weight) * clean.mean(1) + self.weight * sent.mean(1)
