"""Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy Tradeoff.

Borgnia et al., ICASSP 2021, arXiv 2011.09527. Every training picture is mixed with another one of its batch, with
λ ~ Beta(a, a) for each batch:

    CutMix:  x' = M ⊙ x_i + (1 − M) ⊙ x_j    a rectangle M of area 1 − λ comes from x_j
    MixUp:   x' = λ x_i + (1 − λ) x_j         and in both   ℓ' = λ ℓ(x', y_i) + (1 − λ) ℓ(x', y_j),

λ in the end the share of x_i that is left. A trigger is then often cut away from its label, or seen with another one.

Departures: both may be mixed, batch by batch, beside plain batches (share `clean`), so that small networks still see
whole pictures; the paper's MaxUp is left out (it costs several passes a step).
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
from laocoon.core.errors import InputError
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, finished, material, pupil, teach


@dataclass(frozen=True)
class CutMix(Trainer):
    """Train on mixtures of pictures and of labels."""

    epochs: int = 40  # passes over the data
    batch: int = 64  # samples a step
    rate: float = 3e-3  # peak learning rate
    shift: int = 0  # px of random translation
    flip: bool = False  # random mirroring
    mix: str = "cutmix"  # cutmix, mixup or both (batches take turns by chance)
    concentration: float = 1.0  # a of Beta(a, a), between 0.05 and 1
    clean: float = 0.0  # share of the batches that stay as they are

    card: ClassVar[Card] = Card(
        name="cutmix",
        paper="Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy Tradeoff "
              "(ICASSP 2021)",
        url="https://arxiv.org/abs/2011.09527",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="dirty-label backdoors at usual rates, which it delays: against patches and blends at 5 to 10 % the "
               "attack nearly always succeeds; it helps against few or clean-label poisons.",
        summary="mixes pictures and labels, so that triggers are cut off from their label",
        quick={"epochs": 12},
        fails={"check_weakens_a_backdoor": "at a poison rate of 10 % a patch is still learnt (99.6 % success on the "
                                           "digits): mixing delays it."},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        if self.mix not in ("cutmix", "mixup", "both"):
            raise InputError(f"mix is {self.mix!r}.", "It is cutmix, mixup or both.")
        if not 0.05 <= self.concentration <= 1:
            raise InputError(f"concentration is {self.concentration}.", "It lies between 0.05 and 1.")
        samples, subject = material(case, ctx), pupil(case, ctx)

        def objective(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            mixed = self._mixed(x, ctx)
            if mixed is None:
                return functional.cross_entropy(subject.module(x), y)
            said = subject.module(mixed[0])
            share, other = mixed[1], y[mixed[2]]
            return share * functional.cross_entropy(said, y) + (1 - share) * functional.cross_entropy(said, other)

        lesson = Lesson(self.epochs, self.batch, self.rate, self.shift, self.flip)
        teach(subject.module, samples, lesson, ctx, objective)
        return finished(subject, self.card.name, {"samples": len(samples), "mix": self.mix}), None

    def _mixed(self, x: Tensor, ctx: Context) -> tuple[Tensor, float, Tensor] | None:
        """The batch mixed with itself, the share of it that is left, and the order of the others; None: as it is."""
        chance, kind = torch.rand(2, generator=ctx.rng).tolist()
        if chance < self.clean:
            return None
        share = float(_beta(self.concentration, ctx.rng))
        order = torch.randperm(len(x), generator=ctx.rng).to(x.device)
        if self.mix == "mixup" or (self.mix == "both" and kind < 0.5):
            return share * x + (1 - share) * x[order], share, order
        h, w = x.shape[-2:]
        rows, columns = round(h * (1 - share) ** 0.5), round(w * (1 - share) ** 0.5)
        top = int(torch.randint(0, h - rows + 1, (), generator=ctx.rng))
        left = int(torch.randint(0, w - columns + 1, (), generator=ctx.rng))
        mixed = x.clone()
        mixed[..., top:top + rows, left:left + columns] = x[order][..., top:top + rows, left:left + columns]
        return mixed, 1 - rows * columns / (h * w), order


def _beta(concentration: float, rng: torch.Generator) -> Tensor:
    """Beta(a, a) for 0 < a ≤ 1 by Jöhnk's rejection: u^(1/a) / (u^(1/a) + v^(1/a)) where that sum is at most 1."""
    power = 1 / concentration
    for _ in range(1000):
        u, v = (torch.rand(2, generator=rng).double() ** power).unbind()
        if 0 < u + v <= 1:
            return u / (u + v)
    return torch.tensor(0.5)
