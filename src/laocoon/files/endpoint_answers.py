"""What a model behind an address has answered so far: no sample is asked about twice, and all are counted.

Answers are kept by the digest of the sample as it was sent; the sample itself is not kept. With a file they outlive an
interruption, and what they cost counts on.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import numpy as np
import numpy.typing as npt

from laocoon.core.errors import BudgetSpent, InputError
from laocoon.files.wording import printable

Row = npt.NDArray[np.float32]


def key_of(row: npt.NDArray[np.generic]) -> bytes:
    """Digest of one sample as it is sent."""
    return hashlib.sha256(f"{row.dtype.str}{row.shape}".encode() + np.ascontiguousarray(row).tobytes()).digest()


class Answers:
    """Rows of scores by the sample's digest, and how many samples may still be asked about."""

    def __init__(self, limit: int) -> None:
        self.limit, self.asked = limit, 0
        self._rows: dict[bytes, Row] = {}
        self._file: sqlite3.Connection | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def left(self) -> int:
        return max(0, self.limit - self.asked)

    def spend(self, samples: int) -> None:
        """Count before asking; BudgetSpent where it does not fit."""
        if self.asked + samples > self.limit:
            raise BudgetSpent(f"{self.asked} of {self.limit} queries are spent, some are set aside for checks.",
                              "Raise --queries.")
        self.asked += samples

    def rows(self) -> list[Row]:
        """Every answer so far."""
        return list(self._rows.values())

    def get(self, key: bytes) -> Row | None:
        return self._rows.get(key)

    def add(self, keys: list[bytes], rows: Row) -> None:
        fresh = [(k, np.ascontiguousarray(r, np.float32)) for k, r in zip(keys, rows, strict=True)]
        self._rows.update(fresh)
        if self._file is not None:
            with self._file:
                self._file.executemany("insert or replace into answers values (?, ?)",
                                       [(k, r.tobytes()) for k, r in fresh])
                self._file.execute("insert or replace into facts values ('asked', ?)", (self.asked,))

    def keep(self, path: Path, model: str) -> None:
        """Write every answer to a file from now on, and take over what it holds of the same model.

        InputError where it holds another model's.
        """
        width = next((len(r) for r in self._rows.values()), 0)
        file = sqlite3.connect(path, check_same_thread=False)
        try:
            with file:
                file.execute("create table if not exists answers (key blob primary key, row blob not null)")
                file.execute("create table if not exists facts (name text primary key, value)")
                told = dict(file.execute("select name, value from facts"))
                if told.get("model", model) != model:
                    raise InputError(f"{path.name} in the resume folder holds answers of another model or address.",
                                     "Choose an empty folder.")
                for key, raw in file.execute("select key, row from answers"):
                    row = np.frombuffer(raw, np.float32)
                    if len(key) != 32 or (width and len(row) != width):
                        raise ValueError("rows of another size")
                    self._rows.setdefault(key, row)
                before = told.get("asked", 0)
                if not isinstance(before, int) or before < 0:
                    raise ValueError("a count that is none")
                self.asked += before
                file.execute("insert or replace into facts values ('model', ?)", (model,))
        except InputError:
            file.close()
            raise
        except (sqlite3.Error, ValueError, TypeError) as error:
            file.close()
            raise InputError(f"{path.name} in the resume folder cannot be read ({printable(error, 100)}).",
                             "Delete it, or choose an empty folder.") from None
        self._file = file
        if self._rows:
            self.add(list(self._rows), np.stack(list(self._rows.values())))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
