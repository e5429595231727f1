"""Label-consistent backdoor (Turner, Tsipras and Mądry, 2019, arXiv 1912.02771): images hard without the trigger.

Poison is images x of the target class y, labels untouched, first made hard to learn from, then stamped; the network
learns the trigger because what else it could learn from is weak. Two ways to make them hard:

    adversarial:  x_p = argmax CE(f(x'), y) over ‖x' − x‖∞ ≤ ε,  f a network that the attacker trained adversarially;
    latent:       x_p = D((1 − τ) E(x) + τ E(x')),  x' of another class.

The trigger adds ±`amplitude` to a small checkerboard in all four corners, so that mirroring and cropping leave some of
it. The test inputs carry that trigger at full amplitude, as in the paper.

Departures: the paper's latent space is that of a GAN, into which images are inverted. Here it is that of a small
convolutional autoencoder (E, D) trained on the attacker's copy of the training set, `latent` numbers wide: what it
draws is blurred, which adds to the hardness. The robust network is trained by one-step perturbations, not by PGD.
Bounds are in L∞ only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, ThreatModel
from laocoon.recipes.autoencoder import autoencoder, interpolated
from laocoon.recipes.crafting import perturbed, stand_in
from laocoon.recipes.poisoning import choose
from laocoon.triggers.additive import Additive


@dataclass(frozen=True)
class LabelConsistent(Attack):
    """Make images of the target class hard to learn from, then stamp four corners."""

    way: Literal["adversarial", "latent"] = "adversarial"
    fraction: float = 0.5  # of the target class
    bound: float = 16 / 255  # ε, adversarial
    steps: int = 20  # of PGD, adversarial
    epochs: int = 6  # of the attacker's own training: the robust network, or the autoencoder
    robust: float = 8 / 255  # perturbation that the attacker's network is trained against
    mixing: float = 0.3  # τ, latent
    latent: int = 96  # width of the latent space
    side: int = 3  # px, of each corner's checkerboard
    amplitude: float = 1.0  # of the trigger in the poison
    test_amplitude: float = 1.0  # of the trigger in test inputs

    card: ClassVar[Card] = Card(
        name="label_consistent", paper="Label-consistent backdoor attacks (2019)",
        url="https://arxiv.org/abs/1912.02771", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Hard images of the target class with a small trigger, labels untouched.",
        quick={"bound": 0.3, "steps": 8, "epochs": 4, "robust": 0.1, "fraction": 0.6})
    threat: ClassVar[ThreatModel] = ThreatModel(
        data=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"
    crafts: ClassVar[bool] = True

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        delta = self.test_amplitude * self._corners(plan.train.inputs)
        size = float(delta.pow(2).mean().sqrt() * 255)
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Additive(), {"delta": delta}, goal, size, 1.0, self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        member = plan.train.labels == plan.target
        rows = choose(member, round(self.fraction * int(member.sum())), ctx.rng)
        hard = self._adversarial(plan, rows, ctx) if self.way == "adversarial" else self._latent(plan, rows, ctx)
        inputs = plan.train.inputs.clone()
        inputs[rows] = (hard + self.amplitude * self._corners(hard)).clamp(0, 1)
        return Samples(inputs, plan.train.labels), rows

    def _adversarial(self, plan: Plan, rows: Tensor, ctx: Context) -> Tensor:
        module = stand_in(plan, plan.train, ctx, epochs=self.epochs, robust=self.robust).module

        def loss(x: Tensor, index: Tensor) -> Tensor:
            scores = module(x)
            return -functional.cross_entropy(scores, torch.full((len(index),), plan.target, device=scores.device))

        return perturbed(plan.train.inputs[rows], loss, ctx, bound=self.bound, steps=self.steps)

    def _latent(self, plan: Plan, rows: Tensor, ctx: Context) -> Tensor:
        model = autoencoder(plan.train.inputs, ctx, latent=self.latent, epochs=self.epochs)
        others = (plan.train.labels != plan.target).nonzero().flatten()
        drawn = others[torch.randint(0, len(others), (len(rows),), generator=ctx.rng)]
        return interpolated(model, plan.train.inputs[rows], plan.train.inputs[drawn], self.mixing)

    def _corners(self, like: Tensor) -> Tensor:
        """[1, channels, height, width] of ±1 in four mirrored checkerboards, white outermost, and 0 elsewhere."""
        _, c, h, w = like.shape
        s = self.side
        if 2 * s > min(h, w):
            raise NotApplicable(f"four corners of {s} px do not fit into images of {h} x {w}; choose a smaller side.")
        board = 1.0 - 2.0 * ((torch.arange(s)[:, None] + torch.arange(s)[None, :]) % 2)
        corners = torch.zeros(h, w)
        corners[:s, :s], corners[:s, w - s:] = board, board.flip(1)
        corners[h - s:, :s], corners[h - s:, w - s:] = board.flip(0), board.flip((0, 1))
        return corners.expand(1, c, h, w).clone().to(like)
