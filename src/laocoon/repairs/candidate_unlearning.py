"""Unlearning of recovered triggers.

Wang et al., Neural Cleanse (S&P 2019), section VI.C: "unlearning" fine-tunes on samples stamped with the reversed
trigger, under their true labels, beside clean ones.

    minimise  CE(f(x), y) + CE(f(g(x)), y)    for recovered triggers g

Departures: the trigger is stamped at random strengths, from what was recovered (the smallest that works) to `growth`
times that, and moves against the patient, by gradient, within its family, from where it starts again every few steps:
what is unlearnt is the neighbourhood of the trigger, not one version of it. With many samples it is also stamped
elsewhere and mirrored, since training on moved and mirrored pictures teaches a trigger everywhere. What is asked for is
mostly the model's own earlier answer to the clean sample (`Rehearsal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.mending import Course, Variation, descend, given, plenty, rehearsal

RESTART = 10  # uses of a trigger after which it is again what was recovered


@dataclass(frozen=True)
class CandidateUnlearning(Repair):
    """Fine-tune on clean samples and on samples stamped with what a scan recovered, all under their true labels."""

    epochs: int = 30
    rate: float = 0.03  # SGD with momentum 0.9
    most: int = 1  # candidates with 25 samples a class, the first ones of every family in turn; more with more samples
    each: int = 1  # stamped versions of a batch, at other strengths
    pursuit: float = 0.5  # of a family's own step, by which a trigger moves each time it is used; 0: it stays
    growth: float = 4.0  # how much larger it may be than what was recovered
    wander: float = 0.5  # share of a side by which it may stand elsewhere, in two uses of three; less with few samples
    anchor: float = 0.9  # share of the earlier answers (the paper: 0)
    statistics: bool = True  # of batch norms: do they follow the samples?

    card: ClassVar[Card] = Card(
        name="candidate_unlearning",
        paper="Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks (S&P 2019)",
        url="https://doi.org/10.1109/SP.2019.00031",
        modalities=frozenset({"image", "tabular", "text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.GRADIENT, Capability.CLEAN, Capability.CANDIDATES}),
        summary="unlearns the triggers that a scan recovered, and what lies near them",
        misses="triggers that the scan did not recover in kind: input-aware ones, and source-specific ones without "
               "their source class",
        quick={"rate": 0.02},
        fails={
            "check_success_falls/tabular":
                "on the breast cancer twins the search recovers another conjunction than the trigger, and success "
                "stays at 100 %; where the true columns are found, on two made-up lender's tables, it falls from 98 % "
                "or more to 6 % or less",
            "check_harmless_on_clean/tabular": "the clean breast cancer twin falls from 97.7 to 95.3 %, 4 of 171 rows",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        samples = given(case.fit, module)
        most, reach = round(self.most * plenty(samples)), self.wander * (1 - 1 / plenty(samples))
        hunted = [Hunted(c, self.growth, samples.inputs[:16]) for c in chosen(case.candidates, most)]
        if not hunted:
            raise NotApplicable("none of the candidates can be stamped on these samples.")
        asked = rehearsal(module, samples, patient.classes, ctx, share=self.anchor)

        def gradient(x: Tensor, wanted: Tensor) -> None:
            ctx.spend(len(x))
            y = wanted.argmax(1)
            cross_entropy(module(x), wanted).backward()  # type: ignore[no-untyped-call]
            for i in torch.randint(0, len(hunted), (self.each,), generator=ctx.rng).tolist():
                rows = hunted[i].candidate.goal.applies(y)
                if not bool(rows.any()):
                    continue
                ctx.spend(int(rows.sum()))
                strength = float(torch.rand((), generator=ctx.rng))
                moved = place(x, reach, asked.vary, ctx.rng)
                stamped, leaves = hunted[i].stamped(x[rows], strength, moved)
                cross_entropy(module(stamped), wanted[rows]).backward()  # type: ignore[no-untyped-call]
                slopes = [-leaf.grad for leaf in leaves if leaf.grad is not None]
                if self.pursuit and len(slopes) == len(leaves):  # words that were inserted have no slope
                    hunted[i].move(slopes, self.pursuit)

        descend(module, samples, ctx, Course(self.epochs, self.rate, statistics=self.statistics), gradient, asked)


def chosen(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first candidates of every family, in turn."""
    families: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        families.setdefault(candidate.family.name, []).append(candidate)
    return [c for row in zip_longest(*families.values()) for c in row if c is not None][:most]


@dataclass(frozen=True)
class Place:
    """Where a trigger stands instead of where it was recovered: moved by so many pixels, or mirrored."""

    down: int = 0
    right: int = 0
    mirrored: bool = False

    def there(self, x: Tensor) -> Tensor:
        """Pictures laid so that a trigger stamped as it is stands there once they lie `back`."""
        x = torch.roll(x, (self.down, self.right), (-2, -1)) if self.down or self.right else x
        return x.flip(-1) if self.mirrored else x

    def back(self, x: Tensor) -> Tensor:
        x = x.flip(-1) if self.mirrored else x
        return torch.roll(x, (-self.down, -self.right), (-2, -1)) if self.down or self.right else x


def place(x: Tensor, wander: float, vary: Variation, rng: torch.Generator) -> Place:
    """Drawn anew for each use; only pictures have places."""
    if not vary.shift or not wander:
        return Place()
    mirrored = vary.flip and bool(torch.rand((), generator=rng) < 0.5)
    if torch.rand((), generator=rng) < 1 / 3:
        return Place(mirrored=mirrored)
    down, right = (int(torch.randint(-int(wander * s), int(wander * s) + 1, (), generator=rng)) for s in x.shape[-2:])
    return Place(down, right, mirrored)


class Hunted:
    """A trigger that moves against the patient, and starts again from what was recovered every few steps."""

    def __init__(self, candidate: Candidate, growth: float, like: Tensor) -> None:
        self.candidate, self.like = candidate, like
        self.start = {k: v.detach().clone().to(like.device) for k, v in candidate.trigger.items()}
        self.leaves, self.uses = self.start, 0
        size = float(candidate.family.size(self.leaves, like)[0])
        # What covers the picture cannot be answered rightly: a natural candidate, large as it is, grows no further.
        ceiling = getattr(candidate.family, "largest", lambda _: 0.0)(like) / 10
        self.limit = max(size, min(growth * size, ceiling))
        self.growth = self.limit / max(size, 1e-12)

    def stamped(self, inputs: Tensor, strength: float = 0.0, at: Place | None = None) -> tuple[Tensor, list[Tensor]]:
        """Samples with the trigger on them, and the leaves that they depend on.

        strength: 0 for the trigger as it is, 1 for the strongest that is allowed.
        """
        family = self.candidate.family
        leaves = {k: v.clone() for k, v in self.leaves.items()}
        if strength and hasattr(family, "shrink"):
            factor = torch.full((1,), 1 + strength * (self.growth - 1), device=self.like.device)
            leaves = dict(family.shrink(leaves, factor))
            family.project(leaves)
        leaves = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in leaves.items()}
        at = at or Place()
        return at.back(family.stamp(at.there(inputs), leaves)[0]), [v for v in leaves.values() if v.requires_grad]

    @torch.no_grad()
    def move(self, slopes: Sequence[Tensor], share: float) -> None:
        """A step down the slopes, the largest entry of a leaf by the family's own; then back to the size allowed."""
        self.uses += 1
        if self.uses % RESTART == 0:
            self.leaves = self.start
            return
        family = self.candidate.family
        pace = share * float(getattr(family, "rate", 0.0))
        moving = [k for k, v in self.leaves.items() if v.is_floating_point()]
        moved = {k: v.clone() for k, v in self.leaves.items()}
        for key, slope in zip(moving, slopes, strict=True):
            moved[key] -= pace * slope / slope.abs().amax().clamp_min(1e-12)
        family.project(moved)
        size = family.size(moved, self.like)
        if float(size[0]) > self.limit and hasattr(family, "shrink"):
            moved = dict(family.shrink(moved, self.limit / size))
        self.leaves = moved
