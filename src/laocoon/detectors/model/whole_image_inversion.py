"""Trigger inversion of families that change the whole image, from a screened start.

Warps (WaNet, ICLR 2021), photo filters (ABS, CCS 2019), smooth patterns and patterns of few frequencies (SIG, ICIP
2019) are small families with many local minima. Every search starts at the best of some hundred examples of its
family (`recipes/screening.py`) and shrinks it with the engine of Neural Cleanse. The statistic of a class is
log(median size / size), as in `trigger_inversion`.
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
from laocoon.core.methods import Detector, VariedFamily
from laocoon.core.report import Finding
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search, invert
from laocoon.recipes.screening import screened
from laocoon.recipes.smallest import contenders, smallest
from laocoon.triggers.smooth import Smooth
from laocoon.triggers.spectral import Spectral
from laocoon.triggers.tone import Tone
from laocoon.triggers.warp import Warp

FAMILIES: dict[str, VariedFamily] = {f.name: f for f in (Warp(), Tone(), Smooth(), Spectral())}
SHARE = {"warp": 0.75, "tone": 0.625, "smooth": 0.625, "spectral": 1.0}  # of `steps`


@dataclass(frozen=True)
class WholeImageInversion(Detector):
    """Search the smallest warp, filter, smooth and sparse-frequency pattern towards every class."""

    families: tuple[str, ...] = ("warp", "tone", "smooth", "spectral")
    steps: int = 64  # of the spectral search; the smoother families need fewer
    batch: int = 20  # samples per class and step
    most: int = 24  # above so many classes, search those that the screening promises most of and as many others
    keep: int = 10  # candidates handed on, per family: the best and, as natural controls, the next

    card: ClassVar[Card] = Card(
        name="whole_image_inversion", paper="Neural Cleanse's search (2019) of four whole-image families",
        url="https://doi.org/10.1109/SP.2019.00031", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches the smallest warp, photo filter, smooth pattern and sinusoid towards every class, each from "
                "the best of some hundred examples.",
        misses="sample-specific and quantisation triggers; patterns of full detail as strong as the picture; waves of "
               "more than 10 cycles along an axis; triggers towards most classes at once, which make a small size the "
               "norm; source-specific triggers; on the sealed test photo filters and clean-label sinusoids of CIFAR-10 "
               "models that are right in 60 %",
        goal="whole-image",
        quick={"families": ("smooth",), "steps": 80, "batch": 24})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        classes = case.subject.classes
        forward = folded(case.subject.module, case.fit.inputs[:4])
        everything = torch.arange(classes)[:, None].expand(classes, classes)
        for number, name in enumerate(self.families):
            family = FAMILIES[name]
            search = Search(steps=max(1, round(self.steps * SHARE[name])), batch=self.batch)

            def note(share: float, _: Tensor, *, n: int = number, f: str = name) -> None:
                ctx.progress(self.card.name, (n + share) / len(self.families), f"searching {f} triggers")

            first = screened(forward, family, case.fit, classes, ctx)
            arms = contenders(first.score.argsort(descending=True), self.most, ctx.rng)
            start = {k: v.detach() for k, v in family.select(first.start, arms.to(first.score.device)).items()}
            found = invert(forward, family, everything[arms], case.fit, search, ctx, start=start, note=note)
            yield from smallest(self.card.name, family, arms, found, classes, self.keep)
