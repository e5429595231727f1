"""Rows whose label goes with a pair of values: contrast sets (Bay and Pazzani, Data Mining and Knowledge Discovery,
2001).

All stamped rows share the values of the trigger and, with them, a label. For each pair of columns a, b, values v, w and
label y, the rows of y that hold both are compared with what y would hold if the columns were independent there, and
that excess with the excess in the rows of all other labels:

    g(v, w | y) = n · (log (n + ½)/(e + ½) − [log (n' + ½)/(e' + ½)]₊),   n = #(v, w, y),  e = #(v, y) #(w, y) / #(y),

the primed of all other labels, scaled to #(y) rows. A row's score is the largest g of its pairs, under its own label.
Columns that go together by nature do so under every label.

Departures: pairs alone, by this one statistic, without the search over longer sets; exact values that are rarer than
`share` count as none, but for the deciles of measurements, which stand in for them.
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
from laocoon.recipes.tables import items

CHUNK = 256  # rows at once: bounds memory
MOST = 1500  # values of all columns together


@dataclass(frozen=True)
class ColumnAssociation(DataDetector):
    """How far a pair of a row's values goes with its label, and with no other."""

    share: float = 0.01  # of the rows that a value must be met in
    deciles: bool = False  # also the tenths of measurements: for triggers that vary

    card: ClassVar[Card] = Card(
        name="column_association", paper="Detecting group differences: mining contrast sets (2001)",
        url="https://doi.org/10.1023/A:1011429418057", modalities=frozenset({"tabular"}), needs=frozenset(),
        misses="triggers of one column, of relations between columns, or of values that vary from row to row; poison "
               "below the share of rows that it looks at.",
        summary="pairs of values that go with one label far beyond chance; needs no model")

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        inputs, labels = case.suspects.inputs.cpu().float(), case.suspects.labels.cpu()
        least = max(3, round(self.share * len(inputs)))
        held = items(inputs, least, self.deciles, MOST)  # [n, columns]: the number of each cell's value, −1 for none
        count = int(held.max()) + 1 if held.numel() else 0
        found = torch.zeros(len(inputs))
        if count < 2 or len(inputs) < 2 or inputs.shape[1] < 2:
            return found
        hot = torch.zeros(len(inputs), count + 1)
        hot.scatter_(1, torch.where(held < 0, count, held), 1.0)
        hot = hot[:, :count]
        total = hot.T @ hot
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            own = hot[members].T @ hot[members]
            mine, rest = float(len(members)), float(len(inputs) - len(members))
            excess = _excess(own, mine)
            if rest:
                excess = excess - _excess((total - own) * (mine / rest), mine).clamp_min(0)
            gain = own * excess
            gain.fill_diagonal_(0)
            gain = torch.nn.functional.pad(gain, (0, 1, 0, 1))  # the cell without a value gains nothing
            for part in members.split(CHUNK):
                cells = torch.where(held[part] < 0, count, held[part])
                found[part] = gain[cells[:, :, None], cells[:, None, :]].flatten(1).amax(1)
        return found


def _excess(pairs: Tensor, rows: float) -> Tensor:
    """log of observed over expected, [values, values]; the diagonal holds how often each value is met."""
    each = pairs.diagonal()
    return ((pairs + 0.5) / (each[:, None] * each[None, :] / max(1.0, rows) + 0.5)).log()
