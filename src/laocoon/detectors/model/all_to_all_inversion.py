"""Search one trigger that moves every class to a different one (all-to-all backdoors).

The search (`recipes/displacement.py`) is ours; the idea of looking for a consistent map between classes rather than
an outlier target is that of UMD (Xiang, Xiong and Li, ICML 2023), whose search over all pairs costs hours.
Two statistics. Per family, success + log(largest meaningful size / size): a clean network hardly reaches a bijection
at any size, an all-to-all one does at the size of its trigger. And the shift: the largest share of classes that move
by the same number of places. Maps that a weak clean network allows follow likeness (ship to plane, truck to car);
attackers number their classes, and y to y + k is found exactly or not at all (a random map shares three in ten).

The first statistic is the one of all searches that compares sizes with a fixed scale instead of with other classes of
the same network. What moves a network at all is smaller, pixel for pixel, the more pixels there are (like 1/√pixels:
the norm stays), so that log √(pixels / 32²) is taken off for pictures larger than the references' 32 × 32. A clean
network on photographs of 64 × 64, which had shown the need, would be accused without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Detector, SearchedFamily
from laocoon.core.report import Finding
from laocoon.recipes.displacement import displace
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search
from laocoon.triggers.additive import Additive
from laocoon.triggers.patch import Patch

MEASURED = 32 * 32  # pixels of the largest pictures that the references were measured on
FAMILIES: dict[str, SearchedFamily] = {"patch": Patch(), "additive": Additive()}


@dataclass(frozen=True)
class AllToAllInversion(Detector):
    """Alternate between a trigger search and the assignment of classes to classes."""

    families: tuple[str, ...] = ("patch", "additive")
    arms: int = 4  # random starts
    steps: int = 60
    batch: int = 24

    card: ClassVar[Card] = Card(
        name="all_to_all_inversion", paper="after UMD: unsupervised model detection for X2X backdoors (2023)",
        url="https://arxiv.org/abs/2305.18651", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches one trigger and one bijection of the classes together.",
        misses="maps that are not bijections (several sources to few targets), warps and sample-specific triggers, "
               "more classes than a few samples each can tell apart",
        goal="all-to-all",
        quick={"families": ("patch",), "arms": 2, "steps": 30, "batch": 16},
        fails={})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        classes = case.subject.classes
        if classes < 3:
            raise NotApplicable("with two classes an all-to-all backdoor is a pair of source-specific ones.")
        present = torch.bincount(case.fit.labels.cpu(), minlength=classes)
        if int((present == 0).sum()) > 0:
            missing = int((present == 0).nonzero()[0])
            raise NotApplicable(f"all_to_all_inversion needs clean samples of every class; none of class {missing} in "
                                f"{len(case.fit)}. Pass more with --data.")
        forward = folded(case.subject.module, case.fit.inputs[:4])
        search = Search(steps=self.steps, batch=self.batch, wanted=0.9)
        shift, shifted = 0.0, ""
        for number, name in enumerate(self.families):
            family = FAMILIES[name]
            ctx.progress(self.card.name, number / len(self.families), f"searching {name} triggers for a map of classes")
            found = displace(forward, family, case.fit, classes, self.arms, search, ctx)
            recovered = found.recovered
            largest = family.largest(case.fit.inputs)
            for destinations in found.destinations:
                moves = (destinations - torch.arange(classes)) % classes
                share = float(torch.bincount(moves, minlength=classes).max()) / classes
                if share > shift:
                    shift, shifted = share, ClassGoal(tuple(int(v) for v in destinations)).describe()
            scores = recovered.success + (largest / recovered.effective.clamp_min(1e-3)).log() - crowding(
                case.fit.inputs.shape[-2:].numel())
            best = int(scores.argmax())
            goal = ClassGoal(tuple(int(v) for v in found.destinations[best]))
            size, success = float(recovered.size[best]), float(recovered.success[best])
            yield Finding(
                rule=f"all_to_all_inversion.{name}", where=goal.describe(), score=float(scores[best]),
                target_classes=(), numbers={"size": size, "success": success},
                explanation=f"a {name} trigger of {size:.3g} {family.unit} moves {success:.0%} of the samples along "
                            f"one map of the classes ({goal.describe()})")
            one = family.select(recovered.trigger, torch.tensor([best], device=recovered.size.device))
            yield Candidate(family, {k: v.detach() for k, v in one.items()}, goal, size, success, self.card.name)
        yield Finding(rule="all_to_all_inversion.shift", where=shifted, score=shift, numbers={"share": shift},
                      explanation=f"the best map of the classes moves {shift:.0%} of them by the same number of places")


def crowding(pixels: int) -> float:
    """What the logarithm of a size owes to the number of pixels alone."""
    return 0.5 * max(0.0, math.log(pixels / MEASURED))
