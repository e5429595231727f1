"""Trigger inversion over several trigger families, every target class at once.

After Neural Cleanse (Wang et al., S&P 2019) for patch and mask; perturbations run through the same engine
(`recipes/inversion.py`), families that change the whole image in `whole_image_inversion`. Departures: all classes are
arms of one batch; the weight of the size term moves continuously; above `most` classes a short screening keeps the
most promising arms and as many random ones (K-Arm, Shen et al., ICML 2021, as successive halving), so that the
reference stays representative.

The statistic of a class is log(median size / size): scale-free, comparable across models. The published decision
rule (an outlier index within the model) is not used: it fires on half of all clean models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector, SearchedFamily
from laocoon.core.report import Finding
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Forward, Recovered, Search, invert
from laocoon.recipes.smallest import contenders, smallest
from laocoon.triggers.additive import Additive
from laocoon.triggers.generator import Generator
from laocoon.triggers.patch import Patch

FAMILIES: dict[str, SearchedFamily] = {f.name: f for f in (Patch(), Additive(), Generator())}

SHARE = {"patch": 1.0, "additive": 0.8, "generator": 1.0}  # of `steps`


@dataclass(frozen=True)
class TriggerInversion(Detector):
    """Search the smallest trigger of every family towards every class."""

    families: tuple[str, ...] = ("patch", "additive")
    steps: int = 80  # of the patch search
    batch: int = 20  # samples per class and step
    most: int = 24  # above so many classes, screen first
    keep: int = 10  # candidates handed on, per family: the best and, as natural controls, the next

    card: ClassVar[Card] = Card(
        name="trigger_inversion", paper="Neural Cleanse (2019), K-Arm (2021), extended to perturbations",
        url="https://doi.org/10.1109/SP.2019.00031", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches the smallest patch and the smallest perturbation towards every class, in one batch.",
        misses="triggers that change the whole image (see whole_image_inversion); sample-specific and quantisation "
               "triggers; triggers towards most classes at once, which make a small size the norm; source-specific "
               "triggers that need their source class; triggers as strong as the picture, blended in at a half or more",
        quick={"families": ("patch",), "steps": 80, "batch": 24})

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

            arms, found = self._search(forward, family, everything, case.fit, search, ctx, note)
            yield from smallest(self.card.name, family, arms, found, classes, self.keep)

    def _search(self, forward: Forward, family: SearchedFamily, everything: Tensor, fit: Samples, search: Search,
                ctx: Context, note: object) -> tuple[Tensor, Recovered]:
        classes = len(everything)
        if classes <= self.most:
            return torch.arange(classes), invert(forward, family, everything, fit, search, ctx, note=note)  # type: ignore[arg-type]
        brief = Search(steps=max(6, min(25, 2400 // classes)), batch=max(6, min(self.batch, 3200 // classes)),
                       start=search.start)
        first = invert(forward, family, everything, fit, brief, ctx)
        arms = contenders((first.effective * (1.5 - first.success)).argsort(), self.most, ctx.rng)
        start = {k: v.detach() for k, v in family.select(first.trigger, arms.to(fit.inputs.device)).items()}
        return arms, invert(forward, family, everything[arms], fit, search, ctx, start=start, note=note)  # type: ignore[arg-type]
