"""Isolation Forest. Liu, Ting and Zhou, ICDM 2008.

Random trees cut the rows of a class at random values; what lies where few others do is alone after few cuts:

    score(x) = 2^(−E[h(x)] / c(n)),     h the depth at which x is alone, c(n) that of an average row.

Stamped rows of another class are strange rows of their new one. Departures: one forest for each label, since poison is
strange only among the rows whose label it carries; categories as one-hot codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.methods import DataDetector
from laocoon.recipes.tables import encoder, table_of

LEAST = 8  # rows of a class, below which its scores are 0


@dataclass(frozen=True)
class IsolationForest(DataDetector):
    """How soon random cuts leave a row alone among those of its label."""

    trees: int = 200
    sample: int = 256  # rows that each tree is grown on

    card: ClassVar[Card] = Card(
        name="isolation_forest", paper="Isolation Forest (ICDM 2008)", url="https://doi.org/10.1109/ICDM.2008.17",
        modalities=frozenset({"tabular"}), needs=frozenset(),
        misses="triggers of ordinary values; poison so frequent that it is a crowd of its own; rows that are strange "
               "for honest reasons score high as well.",
        summary="rows that random cuts soon leave alone among those of their label; needs no model",
        quick={"trees": 100})

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        from sklearn.ensemble import IsolationForest as Forest

        inputs, labels = case.suspects.inputs.cpu().float(), case.suspects.labels.cpu()
        rows = encoder(table_of(case.suspects.modality, inputs), inputs, most=1e6)(inputs)
        found = torch.zeros(len(rows))
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            seed = int(torch.randint(0, 2**31 - 1, (), generator=ctx.rng))
            if len(members) < LEAST:
                continue
            forest = Forest(n_estimators=self.trees, max_samples=min(self.sample, len(members)), random_state=seed,
                            n_jobs=1).fit(rows[members].numpy())
            found[members] = -torch.tensor(forest.score_samples(rows[members].numpy()), dtype=torch.float32)
        return found
