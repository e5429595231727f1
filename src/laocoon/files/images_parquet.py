"""Parquet in the layout of Hugging Face `datasets`: encoded images, labels, the names of classes in the schema.

Labels are read first; image bytes only from the row groups that hold a chosen row, a batch at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_decode import Frame, decode
from laocoon.files.images_source import DataOptions, Labels, Picture, Source
from laocoon.files.wording import first_line, printable

MOST_ROWS = 50_000_000
MOST_FILES = 1000
LARGEST_GROUP = 4 * 2**30  # bytes of images in one row group, unpacked
BATCH = 256
IMAGE_NAMES = ("image", "img", "images", "picture", "pixels", "jpg", "png")
LABEL_NAMES = ("label", "labels", "class", "fine_label", "target", "y", "cls")
_SPLITS = ("test", "validation", "valid", "val", "dev", "train")  # held-out ones first: the model has not seen them
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)


def parquet_files(folder: Path) -> tuple[Path, ...]:
    """Parquet files in a folder, or one floor further down (`data/`, or a folder per configuration)."""
    found = sorted(p for p in (*folder.glob("*.parquet"), *folder.glob("*/*.parquet")) if p.is_file())
    return tuple(p for p in found if p.resolve().is_relative_to(folder.resolve()))[:MOST_FILES]


def choose_split(files: Sequence[Path], wanted: str | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of one split and a note on the choice; files whose names tell no split are taken together."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = file.stem.lower().replace("_", "-").split("-")
        splits.setdefault(next((s for s in _SPLITS if s in words or file.parent.name.lower() == s), ""), []).append(
            file
        )
    if wanted is not None:
        same = {"validation": ("validation", "valid", "val", "dev")}.get(wanted, (wanted,))
        chosen = next((splits[s] for s in same if s in splits), None)
        if chosen is None:
            raise InputError(
                f"there is no split {wanted!r}.", f"Splits: {', '.join(sorted(filter(None, splits))) or 'none'}."
            )
        return tuple(chosen), ()
    name = next((s for s in _SPLITS if s in splits), "")
    others = ", ".join(sorted(set(splits) - {name, ""}))
    return tuple(splits[name]), (f"the split {name!r} was read ({others} left out)",) if name and others else ()


def open_parquet(files: Sequence[Path], options: DataOptions, notes: tuple[str, ...] = ()) -> Source:
    """The rows of some Parquet files with one schema, one after another."""
    tables = [_Table.opened(file, options) for file in files]
    first = tables[0]
    for table in tables[1:]:
        if (table.image, table.label, table.names) != (first.image, first.label, first.names):
            raise InputError(
                f"{printable(table.path.name)} has other columns or classes than {printable(first.path.name)}.",
                "Pass files of one data set, or name the columns.",
            )
    count = sum(t.rows for t in tables)
    if not 0 < count <= MOST_ROWS:
        raise InputError(f"{printable(first.path.name)} has {count} rows.", f"Between 1 and {MOST_ROWS} are read.")
    labels, names = None, first.names
    if first.label is not None:
        parts = [t.labels() for t in tables]
        if parts[0].dtype.kind in "US":
            values = np.concatenate(parts)
            unique, inverse = np.unique(values, return_inverse=True)
            labels, names = inverse.astype(np.int64).reshape(-1), tuple(str(u) for u in unique)
        else:
            labels = np.concatenate(parts).astype(np.int64)
        if (labels == -1).all():  # the convention of `datasets` for a test split without labels
            labels, names, notes = None, (), (*notes, "every label is -1: taken as images without labels")
    return Source(count, labels, names, _ParquetRead(tuple(tables)), f"column {first.label!r}", notes)


@dataclass(frozen=True)
class _Table:
    """One file: where its images and labels are."""

    path: Path
    rows: int
    image: str
    label: str | None
    names: tuple[str, ...]

    @staticmethod
    def opened(path: Path, options: DataOptions) -> _Table:
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except _FAILURES as error:
            raise _broken(path, error) from None
        features = _features(schema)
        image = _image_column(schema, features, options, path)
        label = _label_column(schema, features, options, path)
        told = features.get(label or "", {}).get("names")
        names = tuple(map(str, told)) if isinstance(told, list) and len(told) <= 100_000 else ()
        return _Table(path, rows, image, label, names)

    def labels(self) -> Labels | np.ndarray[Any, np.dtype[np.str_]]:
        assert self.label is not None
        try:
            column = pq.read_table(self.path, columns=[self.label]).column(0)
        except _FAILURES as error:
            raise _broken(self.path, error) from None
        if column.null_count:
            raise InputError(
                f"column {self.label!r} of {printable(self.path.name)} has {column.null_count} rows without a label.",
                "Leave them out, or name another column.",
            )
        if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            return np.asarray(column.to_numpy()).astype(np.int64)
        return np.asarray(column.to_pylist(), dtype=np.str_)


def _broken(path: Path, error: BaseException) -> BrokenFile:
    return BrokenFile(
        f"the Parquet file {printable(path.name)} is damaged or cut off ({first_line(error, 120)}).", "Fetch it again."
    )


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the writer says about its columns; anything unexpected counts as nothing said."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {str(k): v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(schema: pa.Schema, features: dict[str, dict[str, Any]], options: DataOptions, path: Path) -> str:
    usable: list[str] = [f.name for f in schema if _holds_bytes(f.type)]
    shown = printable(", ".join(schema.names), 200) or "none"
    if options.image_key is not None:
        if options.image_key not in usable:
            raise InputError(
                f"{printable(path.name)} has no column {options.image_key!r} of encoded images.", f"Columns: {shown}."
            )
        return options.image_key
    told = [n for n in usable if features.get(n, {}).get("_type") == "Image"]
    named = [n for n in IMAGE_NAMES if n in usable]
    for choice in (*told, *named, *usable):
        return choice
    raise InputError(f"{printable(path.name)} has no column of encoded images.", f"Columns: {shown}.")


def _label_column(
    schema: pa.Schema, features: dict[str, dict[str, Any]], options: DataOptions, path: Path
) -> str | None:
    def usable(name: str) -> bool:
        kind = schema.field(name).type
        return bool(
            pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
        )

    if options.label_key is not None:
        if options.label_key not in schema.names or not usable(options.label_key):
            raise InputError(
                f"{printable(path.name)} has no column {options.label_key!r} of labels.",
                f"Columns: {printable(', '.join(schema.names), 200)}.",
            )
        return options.label_key
    told = [n for n in schema.names if features.get(n, {}).get("_type") == "ClassLabel" and usable(n)]
    named = [n for n in LABEL_NAMES if n in schema.names and usable(n)]
    return next(iter((*[n for n in told if n in named], *told, *named)), None)


@dataclass(frozen=True)
class _ParquetRead:
    """Reads rows, by row group."""

    tables: tuple[_Table, ...]

    def __call__(self, rows: Sequence[int], frame: Frame) -> Iterator[Picture]:
        wanted = sorted(rows)
        start = 0
        for table in self.tables:
            mine = [r - start for r in wanted if start <= r < start + table.rows]
            if mine:
                try:
                    for row, data in _cells(table, mine):
                        yield _decoded(start + row, data, f"{table.path.name} row {row}", frame)
                except _FAILURES as error:
                    raise _broken(table.path, error) from None
            start += table.rows


def _cells(table: _Table, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    wanted = set(rows)
    with pq.ParquetFile(table.path) as file:
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if any(start <= r < start + size for r in wanted):
                if file.metadata.row_group(group).total_byte_size > LARGEST_GROUP:
                    raise BrokenFile(
                        f"row group {group} of {printable(table.path.name)} unpacks to more than "
                        f"{LARGEST_GROUP} bytes.",
                        "Write it with smaller row groups.",
                    )
                offset = start
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=[table.image]):
                    column = batch.column(0)
                    for i in sorted(r - offset for r in wanted if offset <= r < offset + len(batch)):
                        yield offset + i, column[i].as_py()
                    offset += len(batch)
            start += size


def _decoded(row: int, cell: Any, name: str, frame: Frame) -> Picture:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    try:
        if not isinstance(data, bytes):
            raise BrokenFile(
                f"{printable(name)} holds no image, only a path or nothing.", "Embed the images in the file."
            )
        return Picture(row, decode(data, name, frame))
    except BrokenFile as error:
        return Picture(row, None, error)
