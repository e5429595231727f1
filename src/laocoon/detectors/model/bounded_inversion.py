"""Which class a wave or a photo filter of bounded strength makes the network most sure of.

Ours: Neural Cleanse's search (S&P 2019) turned round. Not the smallest trigger that sends samples to a class, but the
largest margin that any trigger of a small family reaches there without being stronger than an attacker would have it:
waves (SIG, ICIP 2019) of up to 31 grey levels, photo filters (ABS, CCS 2019) that leave local contrast as it is. The
smallest filter or wave of a clean network of moderate accuracy is no larger than a planted one; the margin is another
matter, since training drove the loss of stamped samples to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector, TriggerFamily, VariedFamily
from laocoon.core.report import Finding
from laocoon.recipes.conviction import Convinced, Course, convince
from laocoon.recipes.folding import folded
from laocoon.recipes.smallest import contenders
from laocoon.triggers.faithful_tone import FaithfulTone
from laocoon.triggers.tone import Tone
from laocoon.triggers.wave import Wave

FAMILIES: dict[str, VariedFamily] = {"wave": Wave(), "tone": FaithfulTone()}
SHOWN: dict[str, TriggerFamily] = {"wave": Wave(), "tone": Tone()}  # as a candidate, whose size a reader understands
COST = {"wave": 0.0, "tone": 1.0}  # of size: a wave is bounded by what it is


@dataclass(frozen=True)
class BoundedInversion(Detector):
    """Search the most convincing wave and photo filter towards every class."""

    families: tuple[str, ...] = ("wave", "tone")
    steps: int = 24
    batch: int = 16  # samples per arm and step
    starts: int = 2  # examples of a class to go on from
    most: int = 24  # above so many classes, search those that the screening promises most of and as many others
    keep: int = 10  # candidates handed on, per family: the best and, as natural controls, the next

    card: ClassVar[Card] = Card(
        name="bounded_inversion",
        paper="Neural Cleanse's search (2019) turned round: the largest margin at bounded strength",
        url="https://doi.org/10.1109/SP.2019.00031", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches the wave and the photo filter of bounded strength that make the network surest of a class.",
        misses="triggers that are no wave and no filter; waves of more than 31 grey levels or 10 cycles; filters, and "
               "with eight classes and more waves, in grey pictures, where brightness alone convinces clean networks; "
               "several target classes by one kind",
        goal="whole-image",
        quick={"families": ("wave",), "steps": 12})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        classes, inputs = case.subject.classes, case.fit.inputs
        families = [f for f in self.families if f != "tone" or inputs.shape[1] > 1]
        if not families:
            raise NotApplicable("a photo filter needs colours.")
        forward = folded(case.subject.module, inputs[:4])
        for number, name in enumerate(families):
            def note(share: float, _: Tensor, *, n: int = number, f: str = name) -> None:
                ctx.progress(self.card.name, (n + share) / len(families), f"searching {f} triggers")

            course = Course(self.steps, self.batch, self.starts, cost=COST[name])
            rows, found = convince(
                forward, FAMILIES[name], case.fit, classes, course, ctx, note=note,
                choose=lambda scores: contenders(scores.argsort(descending=True), self.most, ctx.rng))
            yield from self._said(name, rows, found, inputs, classes)

    def _said(self, name: str, rows: Tensor, found: Convinced, inputs: Tensor,
              classes: int) -> Iterator[Finding | Candidate]:
        margins = found.margin.cpu()
        order = margins.argsort(descending=True).tolist()
        family = SHOWN[name]
        each = [family.select(found.trigger, torch.tensor([row], device=inputs.device)) for row in range(len(rows))]
        sizes = [float(family.size(one, inputs[:32])) for one in each]
        for row in order:
            # The surest of the other classes is the natural control; where none is sure of anything, nothing is.
            other = max((float(margins[o]) for o in order[:2] if o != row), default=0.0)
            target, success = int(rows[row]), float(found.success[row])
            yield Finding(
                rule=f"{self.card.name}.{name}", where=f"class {target}", target_classes=(target,),
                score=float(margins[row]) - max(other, 0.0),
                explanation=f"a {name} trigger of {sizes[row]:.3g} {family.unit} sends {success:.0%} of the "
                            f"samples to class {target}, nine in ten by {float(margins[row]):.2f} of a clean sample's "
                            f"margin or more; the surest of the other classes by {other:.2f}",
                numbers={"size": sizes[row], "success": success, "margin": float(margins[row])})
        for row in order[:self.keep]:
            yield Candidate(family, each[row], all_to_one(int(rows[row]), classes), sizes[row],
                            float(found.success[row]), self.card.name)
