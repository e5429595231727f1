"""Tables for the lab: one that is made up, scikit-learn's, and real ones in a folder of the user's.

The made-up one is a lender's: twelve columns of every kind, and a rule for who defaults that its seed draws, so that
each seed is another world. It is named `credit`; the real one of the UCI is `credit_default`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular

AT_HAND = ("credit", "breast_cancer", "wine", "digits")



@dataclass(frozen=True, eq=False)
class Table:
    """Rows in canonical form. Categories are codes from 0 on."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    inputs: Tensor  # float32 [n, columns]
    labels: Tensor  # [n]
    classes: int

    @property
    def modality(self) -> Tabular:
        """What an owner of the table knows of its columns."""
        return Tabular.of(self.columns, self.inputs, self.kinds)


def load(name: str, seed: int, root: Path | None = None, rows: int = 4000) -> Table:
    """A table by name, at most `rows` of it, drawn by the seed.

    Raises:
        InputError: there is no such table, or its file is not under `root`.
    """
    if name == "credit":
        return credit(min(rows, 3200), seed)
    if name == "credit_default":
        return _cut(_credit_default(root), rows, seed)
    if name not in AT_HAND:
        raise InputError(f"there is no table {name!r}.", f"At hand: {', '.join((*AT_HAND, 'credit_default'))}.")
    return _cut(_bundled(name), rows, seed)


def _cut(table: Table, rows: int, seed: int) -> Table:
    chosen = torch.randperm(len(table.labels), generator=torch.Generator().manual_seed(seed))[:rows]
    return Table(table.name, table.columns, table.kinds, table.inputs[chosen], table.labels[chosen], table.classes)


def credit(rows: int, seed: int) -> Table:
    """A made-up lender's table: income, debts, delays, work, purpose, region, …; class 1 defaults."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=rng)  # noqa: E731
    pick = lambda shares: torch.multinomial(torch.tensor(shares), rows, True, generator=rng).float()  # noqa: E731
    means = draw(3)
    wealth, order = draw(rows), draw(rows)
    columns = {
        "income": ((3.3 + 0.5 * wealth + 0.3 * draw(rows)).exp().mul(1000).round(), NUMERIC),
        "amount": ((2.2 + 0.6 * draw(rows) + 0.2 * wealth).exp().mul(1000).round(), NUMERIC),
        "rate": ((9 + 2 * draw(rows) - order).clamp(2, 25), NUMERIC),
        "balance": (2000 * wealth + 3000 * draw(rows), NUMERIC),
        "utilisation": (torch.sigmoid(-0.8 * order + draw(rows)), NUMERIC),
        "age": ((38 + 11 * draw(rows) + 3 * order).clamp(18, 90).round(), INTEGER),
        "months": (12 + 12 * pick([0.1, 0.2, 0.3, 0.2, 0.2]), INTEGER),
        "delays": ((0.6 * draw(rows) - 0.7 * order).exp().mul(0.8).floor().clamp(0, 12), INTEGER),
        "enquiries": (draw(rows).exp().mul(1.2).floor().clamp(0, 15), INTEGER),
        "purpose": (pick([0.3, 0.25, 0.2, 0.15, 0.08, 0.02]), CATEGORY),
        "work": (pick([0.5, 0.25, 0.15, 0.08, 0.02]), CATEGORY),
        "region": (pick([0.2] * 4 + [0.1, 0.06, 0.04]), CATEGORY),
    }
    inputs = torch.stack([values for values, _ in columns.values()], 1)
    kinds = tuple(kind for _, kind in columns.values())
    risk = torch.zeros(rows)
    for place, kind in enumerate(kinds):
        values = inputs[:, place]
        if kind == CATEGORY:
            risk += 0.5 * draw(int(values.max()) + 1)[values.long()]
        else:
            standard = (values - values.mean()) / values.std()
            risk += 0.6 * draw(()) * standard.clamp(-2.5, 2.5)
    risk += means[0] * (wealth * order) * 0.3 - 1.2 * order - 0.8 * wealth
    risk = (risk - risk.quantile(0.6)) / risk.std()
    labels = (risk + 0.25 * draw(rows) > 0).long()
    return Table("credit", tuple(columns), kinds, inputs.float(), labels, 2)


def _bundled(name: str) -> Table:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    inputs = torch.tensor(bunch.data, dtype=torch.float32)
    labels = torch.tensor(bunch.target)
    names = tuple(str(n) for n in bunch.feature_names)
    kinds = tuple(INTEGER if bool((c == c.round()).all()) else NUMERIC for c in inputs.T)
    return Table(name, names, kinds, inputs, labels.long(), int(labels.max()) + 1)


def _credit_default(root: Path | None) -> Table:
    import pyarrow.parquet as pq

    path = None if root is None else root / "credit_default" / "all.parquet"
    if path is None or not path.is_file():
        raise InputError(f"table 'credit_default' is not in {root}.", "Pass the folder that holds it with --data-root.")
    read = pq.read_table(path)
    names = tuple(n for n in read.column_names if n not in ("ID", "class"))
    inputs = torch.stack([torch.tensor(read[n].to_numpy().astype("float32")) for n in names], 1)
    kinds = tuple(CATEGORY if n in ("SEX", "EDUCATION", "MARRIAGE") else INTEGER for n in names)
    codes = torch.stack([torch.unique(c, return_inverse=True)[1].float() if kind == CATEGORY else c
                         for c, kind in zip(inputs.T, kinds, strict=True)], 1)
    return Table("credit_default", names, kinds, codes, torch.tensor(read["class"].to_numpy().astype("int64")), 2)
