"""LOF: Identifying Density-Based Local Outliers. Breunig, Kriegel, Ng and Sander, SIGMOD 2000.

How much sparser the rows are around a request than around its nearest clean rows, among those of the class that the
model answers. With k-distance d_k(o) and reach(x, o) = max(d_k(o), |x − o|),

    lrd(x) = 1 / mean of reach(x, o) over the k nearest o,     score(x) = log(mean of lrd(o) / lrd(x)).

A trigger brings a row to a class that it does not look like. Departures: one reference for each answered class, in
units of the clean rows' own factors, each by the others; rows as standardised numbers and one-hot codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Checked, Guard
from laocoon.core.subject import Modality, Subject
from laocoon.recipes.requests import acceptable, nothing
from laocoon.recipes.tables import Encoded, encoder, table_of

LEAST = 8  # clean rows
CHUNK = 256
LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Crowd:
    """Clean rows that a class is compared with."""

    rows: Tensor  # [n, width]
    reach: Tensor  # [n]: distance to the k-th neighbour
    density: Tensor  # [n]
    centre: float  # of the factors of the rows themselves
    spread: float


@dataclass(frozen=True, eq=False)
class DensityWatch:
    """One forward pass, and a look at where the row lies."""

    subject: Subject
    encode: Encoded
    crowds: dict[int, Crowd]
    neighbours: int
    shape: tuple[int, ...]
    device: torch.device
    modality: Modality
    passes: float = 1.0

    def check(self, batch: Tensor) -> Checked:
        batch = acceptable(batch, self.shape, self.modality).to(self.device)
        if not len(batch):
            return nothing(self.subject.module, self.shape, self.device, self.modality)
        with torch.no_grad():
            logits = torch.cat([self.subject.outputs(part).logits.float() for part in batch.split(CHUNK)])
            scores = torch.zeros(len(batch), device=self.device)
            said = logits.argmax(1)
            for answer in said.unique().tolist():
                rows = (said == answer).nonzero().flatten()
                crowd = self.crowds.get(answer, self.crowds[-1])
                for part in rows.split(CHUNK):
                    found = factors(self.encode(batch[part]), crowd, self.neighbours)
                    scores[part] = (found - crowd.centre) / crowd.spread
        return Checked(logits, scores.nan_to_num(LARGEST, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST))


@dataclass(frozen=True)
class LocalOutlierFactor(Guard):
    """Is the row in a thin place among clean rows of the class that is answered?"""

    neighbours: int = 10

    card: ClassVar[Card] = Card(
        name="local_outlier_factor", paper="LOF: Identifying Density-Based Local Outliers (SIGMOD 2000)",
        url="https://doi.org/10.1145/342009.335388", modalities=frozenset({"tabular"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers of ordinary values on rows near the target class; honest rows from elsewhere are flagged.",
        summary="rows in a thin place among clean ones of the answered class; black box, no further pass")

    def fit(self, case: ModelCase, ctx: Context) -> DensityWatch:
        subject, fit = case.subject, case.fit
        if fit is None or len(fit) < LEAST:
            raise NotApplicable(f"at least {LEAST} clean samples are needed to fit on.")
        if self.neighbours < 1:
            raise InputError(f"neighbours is {self.neighbours}.", "At least one is needed.")
        inputs = fit.inputs.to(ctx.device)
        said = []
        with torch.no_grad():
            for part in inputs.split(ctx.batch):
                ctx.spend(len(part), backward=False)
                said.append(subject.outputs(part).logits.argmax(1))
        answers = torch.cat(said)
        encode = encoder(table_of(subject.modality, inputs), inputs, most=20.0)
        rows = encode(inputs)
        crowds = {-1: crowd_of(rows, self.neighbours)}  # for answers that too few clean rows have
        for answer in answers.unique().tolist():
            members = rows[answers == answer]
            if len(members) >= LEAST:
                crowds[answer] = crowd_of(members, self.neighbours)
        return DensityWatch(subject, encode, crowds, self.neighbours, subject.input_shape, inputs.device,
                            subject.modality)


def crowd_of(rows: Tensor, neighbours: int) -> Crowd:
    """Rows with their densities, each by the others; factors of duplicates stay finite."""
    away = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    away.fill_diagonal_(torch.inf)
    near = away.topk(min(neighbours, len(rows) - 1), 1, largest=False)
    reach = near.values[:, -1]
    density = 1 / torch.maximum(near.values, reach[near.indices]).mean(1).clamp_min(1e-3)
    own = (density[near.indices].mean(1) / density).log()
    low, centre, high = own.quantile(torch.tensor([0.16, 0.5, 0.84], device=rows.device)).tolist()
    return Crowd(rows, reach, density, centre, max((high - low) / 2, 0.02))


def factors(asked: Tensor, crowd: Crowd, neighbours: int) -> Tensor:
    """log of the local outlier factor of each asked row, [batch]."""
    away = torch.cdist(asked, crowd.rows, compute_mode="donot_use_mm_for_euclid_dist")
    near = away.topk(min(neighbours, len(crowd.rows) - 1), 1, largest=False)
    density = 1 / torch.maximum(near.values, crowd.reach[near.indices]).mean(1).clamp_min(1e-3)
    return (crowd.density[near.indices].mean(1) / density).log()
