"""Source-target trigger inversion: the smallest trigger of every ordered pair of classes, judged as a matrix.

Source-specific backdoors (TaCT, Tang et al., USENIX Security 2021) work from one class only, so a search towards a
target over all sources does not see them. Sizes vary with how close two classes are by nature; what is planted is a
cell that is smaller than its row (source) and its column (target) explain: the residual of a two-way median polish
of the log sizes, after the symmetric check of K-Arm (ICML 2021) made continuous.
Above `most` pairs a short screening keeps the cells of smallest residual.
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
from laocoon.core.goal import source_to_target
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search, invert
from laocoon.triggers.patch import Patch


def median_polish(matrix: Tensor, rounds: int = 6) -> Tensor:
    """Residuals of log sizes after removing row and column medians; NaN cells are ignored. [k, k] to [k, k]."""
    residual = matrix.clone()
    for _ in range(rounds):
        residual = residual - residual.nanmedian(1, keepdim=True).values
        residual = residual - residual.nanmedian(0, keepdim=True).values
    return residual


@dataclass(frozen=True)
class PairInversion(Detector):
    """Search every source-target pair with a patch and mask."""

    steps: int = 50
    batch: int = 10
    most: int = 14  # classes up to which every pair is searched

    card: ClassVar[Card] = Card(
        name="pair_inversion", paper="TaCT (2021) as the threat; K-Arm's symmetric check (2021) as the idea",
        url="https://arxiv.org/abs/1908.00686", modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches a patch for every ordered pair of classes and looks for a cell that its row and column do "
                "not explain.",
        misses="source-specific triggers that are not patches; pairs outside the screened ones when there are many "
               "classes",
        goal="source-to-target",
        quick={"steps": 40, "batch": 8},
        fails={"check_scores_planted_above_clean":
               "an all-to-one backdoor makes a whole column of pairs small, which the column then explains."})

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
        k = len(members)
        forward = folded(case.subject.module, fit.inputs[:4])
        pairs = [(int(s), int(t)) for s in members for t in members if s != t]
        destinations = torch.full((len(pairs), classes), -1)
        for row, (s, t) in enumerate(pairs):
            destinations[row, s] = t
        search = Search(steps=self.steps, batch=self.batch, wanted=0.9)
        found = invert(forward, family, destinations, fit, search, ctx,
                       note=lambda share, _: ctx.progress(self.card.name, share, f"searching {len(pairs)} pairs"))
        cell = {int(c): i for i, c in enumerate(members)}
        sizes = torch.full((k, k), float("nan"))
        for row, (s, t) in enumerate(pairs):
            sizes[cell[s], cell[t]] = found.effective[row].log().cpu()
        residual = median_polish(sizes)
        best: dict[int, tuple[float, int]] = {}
        for row, (s, t) in enumerate(pairs):
            score = -float(residual[cell[s], cell[t]])
            if t not in best or score > best[t][0]:
                best[t] = (score, row)
        for t, (score, row) in sorted(best.items(), key=lambda item: -item[1][0]):
            s, size, success = pairs[row][0], float(found.size[row]), float(found.success[row])
            yield Finding(
                rule="pair_inversion.cell", where=f"class {s} to class {t}", score=score, target_classes=(t,),
                numbers={"size": size, "success": success, "source": float(s)},
                explanation=f"a patch of {size:.3g} px sends {success:.0%} of class {s} to class {t}, "
                            f"{score:.2f} log units smaller than the two classes explain")
        t, (score, row) = max(best.items(), key=lambda item: item[1][0])
        one = family.select(found.trigger, torch.tensor([row], device=found.size.device))
        yield Candidate(family, {n: v.detach() for n, v in one.items()}, source_to_target(pairs[row][0], t, classes),
                        float(found.size[row]), float(found.success[row]), self.card.name)
