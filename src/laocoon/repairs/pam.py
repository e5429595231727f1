"""PAM: path-aware minimisation.

Min et al., Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense (NeurIPS 2024, arXiv
2410.09838). Repaired models lie close to the planted one: a few poisoned samples, or a straight line, lead back. So
each step takes its gradient not at the weights θ but a way back towards the planted model's θ₀:

    θ ← θ − η·∇CE(f(x; θ + ρ·(θ₀ − θ) / ‖θ₀ − θ‖), y)

on clean samples, and on samples stamped with recovered triggers under their true labels where there are any.
Departures: the model is first fine-tuned (the line needs another end); the paper inverts a trigger of its own, here
those of a scan are used; the answers of the model before the repair are part of what is asked for; pictures are
varied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, descend, given, rehearsal, trainable
from laocoon.recipes.sharpness import displaced, towards


@dataclass(frozen=True)
class PAM(Repair):
    """Fine-tune for being right all along the way back to the planted model."""

    first_epochs: int = 8  # plain fine-tuning, to leave the starting point
    epochs: int = 25
    rate: float = 0.02  # SGD with momentum 0.9
    distance: float = 0.5  # ρ
    candidates: int = 1  # recovered triggers that are unlearnt on the way, the first ones
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)

    card: ClassVar[Card] = Card(
        name="pam",
        paper="Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense (NeurIPS 2024)",
        url="https://arxiv.org/abs/2410.09838",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="fine-tunes so that the way back to the planted model is right as well; resists re-activation",
        misses="backdoors that clean samples do not move, where no recovered trigger is at hand",
        quick={"first_epochs": 8, "epochs": 15, "rate": 0.01},
        fails={
            "check_harmless_on_clean":
                "the clean digit twin loses 4.6 points with 8 samples a class: its natural candidates are large",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples, weights = given(case.fit, module), trainable(module)
        planted = [w.detach().clone() for w in weights]
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)
        triggers = case.candidates[:self.candidates]

        def harm(x: Tensor, wanted: Tensor) -> Tensor:
            """On the samples, and on as many stamped ones."""
            ctx.spend(len(x))
            loss = cross_entropy(module(x), wanted)
            if triggers:
                ctx.spend(len(x))
                one = triggers[int(torch.randint(0, len(triggers), (), generator=ctx.rng))]
                loss = loss + cross_entropy(module(one.stamp(x)), wanted)
            return loss

        def plain(x: Tensor, wanted: Tensor) -> None:
            harm(x, wanted).backward()  # type: ignore[no-untyped-call]

        def back(x: Tensor, wanted: Tensor) -> None:
            with displaced(weights, towards(weights, planted, self.distance)):
                harm(x, wanted).backward()  # type: ignore[no-untyped-call]

        descend(module, samples, ctx, Course(self.first_epochs, self.rate), plain, asked)
        descend(module, samples, ctx, Course(self.epochs, self.rate), back, asked)
