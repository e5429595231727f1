"""Trigger inversion for tables: Neural Cleanse (S&P 2019) over columns instead of pixels.

For every class t at once, find the few columns, and valid values for them, that send rows of other classes there:

    min over m, v of  mean CE(f(x·(1 − m) + m·v), t) + λ·|m|,     m in [0, 1], v inside the column's range,

then keep the `columns` largest of m, set them to one, and fit v again. The statistic is the mean margin of class t
over the best other class on stamped held-out rows, in units of the clean median margin. Real columns carry real
evidence, so a clean model can be moved too; a trigger moves every row, and by more.

Departures: hard columns and a margin instead of the mask norm and its MAD index, which no clean model would pass
at a stated rate; every class starts from the same point, so that the order of classes cannot matter.
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
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.tabular import Tabular
from laocoon.recipes.arms import in_parts, losses_towards, stamped_margins
from laocoon.recipes.margins import logit_scale
from laocoon.triggers.columns import Columns


@dataclass(frozen=True)
class TabularInversion(Detector):
    """Search, for every class, the few column values that send every row there."""

    columns: int = 1  # set by the trigger; already with three, the ends of real columns flip clean models wholesale
    steps: int = 80  # of each of the two fits
    rate: float = 0.05  # of Adam, in shares of a column's range
    weight: float = 0.05  # λ

    card: ClassVar[Card] = Card(
        name="tabular_inversion",
        paper="Neural Cleanse: identifying and mitigating backdoor attacks in neural networks (S&P 2019)",
        url="https://ieeexplore.ieee.org/document/8835365",
        modalities=frozenset({"tabular"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers of which no single column does much, of relations between columns, and source-specific ones; "
               "the class named is often another one.",
        summary="the column values that send every row to one class",
        quick={"steps": 40},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        modality = case.subject.modality
        if not isinstance(modality, Tabular):
            raise NotApplicable("tabular_inversion needs the ranges of the columns.")
        subject, fit, family = case.subject, case.fit, Columns(modality)
        scale = logit_scale(subject, fit.inputs, fit.labels, ctx).margin
        trigger = family.blank(fit.inputs, subject.classes, rng=ctx.rng)
        self._fit(subject, fit, family, trigger, ("mask", "value"), self.weight, ctx)
        chosen = trigger["mask"].topk(min(self.columns, trigger["mask"].shape[1]), 1).indices
        trigger["mask"] = torch.zeros_like(trigger["mask"]).scatter(1, chosen, 1.0)
        self._fit(subject, fit, family, trigger, ("value",), 0.0, ctx)
        judged = case.held if case.held is not None and len(case.held) else fit
        margins = stamped_margins(subject, judged, lambda x: family.stamp(x, trigger), ctx)
        best, found = -torch.inf, None
        for t in range(subject.classes):
            rows = judged.labels != t
            if not rows.any():
                continue
            score = float(margins[t][rows].mean()) / scale
            success = float((margins[t][rows] > 0).float().mean())
            names = ", ".join(modality.columns[i] for i in sorted(chosen[t].tolist()))
            yield Finding("tabular_inversion.margin", f"class {t}", score,
                          f"setting {names} sends {success:.0%} of other rows to class {t}", (t,),
                          numbers={"success": success})
            if score > best:
                arm = family.select(trigger, torch.tensor([t], device=fit.inputs.device))
                best, found = score, Candidate(family, arm, all_to_one(t, subject.classes), float(self.columns),
                                               success, self.card.name)
        if found is not None:
            yield found

    def _fit(self, subject: Subject, fit: Samples, family: Columns, trigger: dict[str, Tensor],
             names: tuple[str, ...], weight: float, ctx: Context) -> None:
        """Descend on the named leaves, in place, all classes at once."""
        leaves = [trigger[name].requires_grad_(True) for name in names]
        optimiser = torch.optim.Adam(leaves, lr=self.rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            for part in in_parts(fit, subject.classes, ctx):
                ctx.spend(subject.classes * len(part))
                logits = subject.outputs(family.stamp(part.inputs, trigger).flatten(0, 1)).logits
                losses_towards(logits, part.labels, subject.classes).sum().div(len(fit)).backward()
            if weight:
                (weight * family.size(trigger, fit.inputs).sum()).backward()
            optimiser.step()
            with torch.no_grad():
                family.project(trigger)
        for name in names:
            trigger[name] = trigger[name].detach()
