"""One column of a table as it was read, and what its cells are: numbers, words, missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from laocoon.core.errors import InputError
from laocoon.files.wording import printable

MISSING = frozenset({"", "na", "n/a", "nan", "null", "?", "#n/a"})
_TRUTH = {"true": 1.0, "false": 0.0}

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Column:
    """One column: the different cells that it holds, as text or numbers, and which of them stands in each row."""

    name: str
    where: str  # the file, for messages
    cells: Sequence[Any]
    places: npt.NDArray[np.int64]
    foreign: str = ""  # the type of cells that are neither numbers nor words

    @cached_property
    def different(self) -> list[float | str | None]:
        """The different cells: a number, a word, or None where it is missing."""
        return [parsed(cell) for cell in self.cells]

    def _rows(self, wanted: Sequence[bool]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.asarray(wanted, bool)[self.places])

    def check(self) -> None:
        """InputError where cells are missing, not finite, or neither numbers nor words."""
        if self.foreign:
            raise InputError(f"column {printable(self.name, 60)!r} of {self.where} holds {self.foreign}.",
                             "Numbers or categories are wanted; leave the column out with --drop.")
        gone = self._rows([c is None or (isinstance(c, float) and not abs(c) < 3e38) for c in self.different])
        if len(gone):
            some = self.cells[self.places[gone[0]]]
            missing = self.different[self.places[gone[0]]] is None
            what = "missing values" if missing else "values that are no finite numbers"
            raise InputError(
                f"column {printable(self.name, 60)!r} of {self.where} holds {len(gone)} {what} in {len(self.places)} "
                f"rows (the first in row {gone[0]}: {printable(repr(some), 40)}).",
                "Fill these cells, or leave the rows out.")

    @property
    def worded(self) -> bool:
        """Does it hold words? InputError where it holds numbers, and words here and there."""
        text = self._rows([isinstance(c, str) for c in self.different])
        if 0 < len(text) < len(self.places) / 2:
            said = str(self.cells[self.places[text[0]]])
            hint = " Decimal points are wanted." if "," in said else ""
            raise InputError(f"column {printable(self.name, 60)!r} of {self.where} holds numbers, but {len(text)} rows "
                             f"hold text (row {text[0]}: {printable(repr(said), 60)}).", f"Correct these cells.{hint}")
        return bool(len(text))

    def numbers(self) -> Numbers:
        """A number for every row."""
        self.check()
        if self.worded:
            raise InputError(f"column {printable(self.name, 60)!r} of {self.where} holds text.", "Numbers are wanted.")
        return np.asarray([c if isinstance(c, float) else 0.0 for c in self.different], np.float64)[self.places]

    def words(self) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """For every row the place of its word among the words, which are in alphabetical order."""
        self.check()
        said = [str(cell).strip() for cell in self.cells]
        names = sorted({said[i] for i in np.unique(self.places)})
        order = {name: i for i, name in enumerate(names)}
        return np.asarray([order.get(s, -1) for s in said], np.int64)[self.places], tuple(names)


def parsed(cell: Any) -> float | str | None:
    if cell is None:
        return None
    if isinstance(cell, bool | int | float | np.number):
        value = float(cell)
        return None if value != value else value
    text = str(cell).strip()
    if text.casefold() in MISSING:
        return None
    if text.casefold() in _TRUTH:
        return _TRUTH[text.casefold()]
    try:
        return float(text) if "_" not in text else text
    except ValueError:
        return text
