"""Tables from CSV and Parquet: bounded, column by column, with an error for every cell that cannot be used.

Nothing is parsed before a column is asked for, so that a broken column that no model takes is no obstacle.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_parquet import choose_split, parquet_files
from laocoon.files.images_source import DataOptions
from laocoon.files.table_column import Column, parsed
from laocoon.files.wording import first_line, printable

MOST_ROWS = 1_000_000
MOST_CELLS = 100_000_000
MOST_COLUMNS = 4096
LARGEST_FILE = 4 * 2**30
LONGEST_HEADER = 2**20
BLOCK = 8 * 2**20  # bytes of CSV that are parsed at once: no row is longer
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)


@dataclass(frozen=True, eq=False)
class Table:
    """A table as it was read; columns in the order of the file."""

    name: str
    columns: Mapping[str, Column]
    rows: int
    notes: tuple[str, ...] = ()


def is_table(path: str | Path) -> bool:
    """Are these the records of a table: CSV or Parquet with numbers, and neither pictures nor longer texts?"""
    place = Path(os.fspath(path))
    try:
        if place.is_dir():
            files = sorted((*place.glob("*.parquet"), *place.glob("data/*.parquet")))  # folders of pictures are large
            place = files[0] if files else place
        if not place.is_file():
            return False
        with place.open("rb") as file:
            head = file.read(65536)
        if head[:4] == b"PAR1":
            kinds = pq.read_schema(place)
            return any(_is_number(f.type) for f in kinds) and not any(
                pa.types.is_nested(f.type) or pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
                for f in kinds) and not _prose(place, [f.name for f in kinds if pa.types.is_string(f.type)])
        if place.suffix.lower() not in (".csv", ".tsv", ".txt", ".data") or b"\0" in head:
            return False
        lines = head.decode("utf-8", "replace").splitlines()[:50]
        if not lines:
            return False
        rows = list(csv.reader(lines[: -1 if len(lines) > 2 else None], delimiter=_delimiter(lines[0])))
    except (*_FAILURES, csv.Error):
        return False
    cells = [cell for row in rows[1:] for cell in row]
    return (len(rows) > 1 and len(rows[0]) > 1 and any(isinstance(parsed(c), float) for c in cells)
            and not any(len(c) > 40 and c.count(" ") > 3 for c in cells))


def _prose(place: Path, names: list[str]) -> bool:
    if not names:
        return False
    with pq.ParquetFile(place) as file:
        batch = next(file.iter_batches(50, columns=names), None)
    return batch is not None and any(isinstance(c, str) and len(c) > 40 and c.count(" ") > 3
                                     for column in batch.columns for c in column.to_pylist())


def read_table(path: str | Path, options: DataOptions | None = None) -> Table:
    """The table in a file, or in the Parquet files of a folder; of a huge one its first rows.

    Raises InputError or BrokenFile.
    """
    text = os.fspath(path)
    place = Path(text)
    if not text or "\0" in text or not place.exists():
        raise InputError(f"{printable(text)!r} does not exist.", "A table is a CSV or a Parquet file.")
    files: tuple[Path, ...] = (place,)
    notes: tuple[str, ...] = ()
    if place.is_dir():
        files, notes = choose_split(parquet_files(place), (options or DataOptions()).split)
        if not files:
            raise InputError(f"the folder {printable(place.name)} holds no Parquet file.", "Name the table's file.")
    for file in files:
        size = file.stat().st_size if file.is_file() else 0
        if not size:
            raise BrokenFile(f"{printable(file.name)} is empty (0 bytes) or no regular file.", "Fetch it again.")
        if size > LARGEST_FILE:
            raise BrokenFile(f"{printable(file.name)} has {size} bytes.", f"At most {LARGEST_FILE} are read.")
    name = printable(place.name, 80)
    names, batches = _parquet(files, name) if _starts(files[0], b"PAR1") else _csv(place, name)
    _check_names(names, name)
    return _gathered(name, names, batches, notes)


def _starts(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _check_names(names: Sequence[str], where: str) -> None:
    if not 1 <= len(names) <= MOST_COLUMNS:
        raise BrokenFile(f"{where} has {len(names)} columns.", f"Between 1 and {MOST_COLUMNS} are read.")
    double = next((n for n in names if names.count(n) > 1), None)
    if double is not None:
        raise InputError(f"{where} has {names.count(double)} columns named {printable(double, 60)!r}.",
                         "Give each its own name.")
    if all(isinstance(parsed(n), float) for n in names):
        first = printable(", ".join(names[:4]), 60)
        raise InputError(f"{where} does not name its columns (the first line is {first}).",
                         "Write a first line with their names.")


def _delimiter(line: str) -> str:
    return max((",", ";", "\t", "|"), key=line.count)


def _csv(place: Path, where: str) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    with place.open("rb") as file:
        head = file.read(LONGEST_HEADER)
    if b"\0" in head:
        raise BrokenFile(f"{where} is no text: it holds zero bytes.", "A table is CSV in UTF-8, or Parquet.")
    try:
        line = head.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise BrokenFile(f"{where} is not UTF-8 (byte {error.start} of the first line).",
                         "Write it as UTF-8.") from None
    delimiter = _delimiter(line)
    try:
        names = [n.strip() for n in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise BrokenFile(f"the first line of {where} cannot be read ({first_line(error, 80)}).",
                         "It names the columns, with commas between them.") from None
    _check_names(names, where)

    if not head.partition(b"\n")[2].strip():
        raise InputError(f"{where} holds no rows.", "It needs a line of names, and rows.")

    def batches() -> Iterator[pa.RecordBatch]:
        reader = pa_csv.open_csv(
            place, pa_csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names, skip_rows=1),
            pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=False),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False))
        yield from reader

    return names, batches()


def _parquet(files: Sequence[Path], where: str) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    try:
        schema = pq.read_schema(files[0])
    except _FAILURES as error:
        raise BrokenFile(f"the Parquet file {where} is damaged or cut off ({first_line(error, 120)}).",
                         "Fetch it again.") from None
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]

    def batches() -> Iterator[pa.RecordBatch]:
        for path in files:
            with pq.ParquetFile(path, read_dictionary=texts) as file:  # a long word is kept once
                if list(file.schema_arrow.names) != list(schema.names):
                    raise ValueError(f"{path.name} has other columns than {files[0].name}")
                yield from file.iter_batches(65536, use_threads=False)

    return list(schema.names), batches()


def _gathered(where: str, names: Sequence[str], batches: Iterator[pa.RecordBatch], notes: tuple[str, ...]) -> Table:
    limit = max(1, min(MOST_ROWS, MOST_CELLS // len(names)))
    kept, rows, cut, left = list[pa.RecordBatch](), 0, False, LARGEST_FILE
    try:
        for batch in batches:
            if rows + len(batch) > limit:
                batch, cut = batch.slice(0, limit - rows), True
            kept.append(batch)
            rows, left = rows + len(batch), left - batch.nbytes
            if left < 0:
                raise BrokenFile(f"{where} unpacks to more than {LARGEST_FILE} bytes.", "Give fewer rows.")
            if cut or rows == limit:
                break
        table = pa.Table.from_batches(kept) if kept else None
        if table is None or not rows:
            raise InputError(f"{where} holds no rows.", "It needs a line of names, and rows.")
        columns = {n: _column(n, where, table.column(n)) for n in names}
    except _FAILURES as error:
        what = first_line(error, 140)
        raise BrokenFile(f"{where} cannot be read as a table ({what}).",
                         "Write it as UTF-8." if "UTF8" in what else "Every row must have all columns.") from None
    more = (f"the first {rows} rows were read: the table is longer",) if cut else ()
    return Table(where, columns, rows, (*notes, *more))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
                or pa.types.is_decimal(kind))


def _column(name: str, where: str, found: pa.ChunkedArray) -> Column:
    """Different cells and their places; numbers are told apart by value, everything else as text."""
    kind = found.type
    if _is_number(kind):
        values = np.asarray(found.cast(pa.float64(), safe=False).to_numpy(), np.float64)
        different, places = np.unique(values, return_inverse=True)
        return Column(name, where, different.tolist(), places.reshape(-1).astype(np.int64))
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        return Column(name, where, [""], np.zeros(len(found), np.int64), printable(f"values of type {kind}", 80))
    if not pa.types.is_dictionary(kind):
        found = found.cast(pa.string()).dictionary_encode()
    joined = found.unify_dictionaries().combine_chunks()
    joined = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
    cells = [*joined.dictionary.to_pylist(), None]
    places = joined.indices.fill_null(len(cells) - 1).to_numpy().astype(np.int64)
    return Column(name, where, cells, places)
