"""Source-target trigger inversion: the smallest trigger of every ordered pair of classes.

Source-specific backdoors (TaCT, Tang et al., USENIX Security 2021) work from one class only, so a search towards a
target over all sources does not see them. Sizes vary with how close two classes are by nature, and a short search
stops where both kinds still look alike; a long one shrinks the planted trigger much further than any natural one.
So all pairs are searched briefly, and the pairs of smallest size, natural rivals included, are searched on
(successive halving, as in K-Arm, Shen et al., ICML 2021). The statistic is log(median size of the rivals / size).
Departure: K-Arm's symmetric check is not used; it did not separate better in trials than the rivals do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import source_to_target
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Halving, Search, halve
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class PairInversion(Detector):
    """Search every source-target pair with a patch and mask."""

    steps: int = 50  # for every pair
    further: int = 100  # for the pairs that are kept
    keep: int = 24
    batch: int = 10
    most: int = 14  # classes up to which every pair is searched

    card: ClassVar[Card] = Card(
        name="pair_inversion", paper="TaCT (2021) as the threat; K-Arm's successive halving (2021)",
        url="https://arxiv.org/abs/1908.00686", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches a patch for every ordered pair of classes, and on for the smallest: a planted one shrinks "
                "far below its rivals.",
        misses="source-specific triggers that are not patches; with more than 14 classes, the pairs outside 14 classes "
               "drawn at random; pairs of a class without two clean samples",
        goal="source-to-target",
        quick={"steps": 60, "further": 60, "batch": 8, "keep": 40})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        fit, family, classes = case.fit, Patch(), case.subject.classes
        present = torch.bincount(fit.labels.cpu(), minlength=classes)
        members = (present >= 2).nonzero().flatten()
        if len(members) < 4:
            raise NotApplicable(f"pair_inversion needs samples of at least 4 classes; {len(members)} have two or more.")
        if len(members) > self.most:
            order = torch.randperm(len(members), generator=ctx.rng)[:self.most]
            members = members[order].sort().values
        forward = folded(case.subject.module, fit.inputs[:4])
        pairs = [(int(s), int(t)) for s in members for t in members if s != t]
        destinations = torch.full((len(pairs), classes), -1)
        for row, (s, t) in enumerate(pairs):
            destinations[row, s] = t
        halving = Halving(Search(batch=self.batch, wanted=0.9), (self.steps, self.further), (self.keep,))
        halved = halve(forward, family, destinations, fit, halving, ctx,
                       note=lambda share, _: ctx.progress(self.card.name, share, f"searching {len(pairs)} pairs"))
        found, kept = halved.last, halved.members
        logs = found.effective.log().cpu()
        margin = logs.median() - logs
        best: dict[int, int] = {}  # target -> its most suspected row
        for row in margin.argsort(descending=True).tolist():
            best.setdefault(pairs[int(kept[row])][1], row)
        for t, row in best.items():
            s, size, success = pairs[int(kept[row])][0], float(found.size[row]), float(found.success[row])
            yield Finding(
                rule="pair_inversion.cell", where=f"class {s} to class {t}", score=float(margin[row]),
                target_classes=(t,), numbers={"size": size, "success": success, "source": float(s)},
                explanation=f"a patch of {size:.3g} px sends {success:.0%} of class {s} to class {t}; the median of "
                            f"the smallest {len(kept)} pairs needs {float(found.effective.median()):.3g}")
        for row in list(best.values())[:3]:
            one = family.select(found.trigger, torch.tensor([row], device=found.size.device))
            s, t = pairs[int(kept[row])]
            yield Candidate(family, {n: v.detach() for n, v in one.items()}, source_to_target(s, t, classes),
                            float(found.size[row]), float(found.success[row]), self.card.name)
