"""STRIP for tables: other rows' values in random columns, instead of other pictures laid over a picture.

Gao et al., STRIP: A Defence Against Trojan Attacks on Deep Neural Networks (ACSAC 2019, arXiv 1902.06531). A row keeps
a random half (or three quarters) of its columns and takes the others from a clean row. With p(x) the probabilities that
the copies give to the row's own answer,

    score(x) = log (p(x) − μ)ᵀ Σ⁻¹ (p(x) − μ),     μ and Σ those of clean rows.

A trigger's answer stays where its columns stay, whatever else is exchanged, and falls where one of them goes.

Departures: columns are exchanged, since a sum of two records is none; the profile's distance in place of the entropy.
In tables with redundant columns clean answers stay more often than triggered ones, and the entropy turns the wrong way
round: AUROC 0.26 on the breast cancer twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Guard
from laocoon.recipes.consistency import Change, CopyWatch, outlying, profile_of


@dataclass(frozen=True)
class ColumnStrip(Guard):
    """Does the answer stay, and fall, with other columns than that of clean rows?"""

    copies: int = 24
    shrink: float = 0.2  # share of the identity in the covariance of profiles

    card: ClassVar[Card] = Card(
        name="column_strip", paper="STRIP: A Defence Against Trojan Attacks on Deep Neural Networks (ACSAC 2019)",
        url="https://arxiv.org/abs/1902.06531", modalities=frozenset({"tabular"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers of so many columns that few copies keep them all; classes that a single column decides by "
               "nature; source-specific backdoors.",
        summary="how the answer takes exchanged columns, against clean rows; black box, 24 further passes")

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        if self.copies < 1:
            raise InputError(f"copies is {self.copies}.", "At least one is needed.")
        # Every class lends equally many rows: a copy that is made of a class's own rows would say nothing.
        order = torch.randperm(len(fit), generator=ctx.rng)
        turns = [order[fit.labels[order].cpu() == c] for c in fit.labels.unique().tolist()]
        changes = []
        for k in range(self.copies):
            rows = turns[k % len(turns)]
            row = fit.inputs[rows[(k // len(turns)) % len(rows)]].to(ctx.device)
            keep = 0.5 if k < self.copies // 2 else 0.75
            changes.append(_exchange(row, (torch.rand(len(row), generator=ctx.rng) < keep).to(ctx.device)))
        copies = tuple(changes)
        clean = profile_of(subject.module, fit, copies, ctx)
        judge = outlying(clean, self.shrink)
        return CopyWatch(subject.module, copies, judge, subject.input_shape, clean.logits.device, subject.modality)


def _exchange(other: Tensor, kept: Tensor) -> Change:
    def change(rows: Tensor) -> Tensor:
        return torch.where(kept, rows, other)

    return change
