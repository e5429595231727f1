"""Texts and labels in the columns of a table: CSV and its kin, JSON lines, Parquet.

A column is found by its name, then by what it holds: texts are the longest strings, labels are few and often.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_source import DataOptions, Labels
from laocoon.files.text_lines import LONGEST_LINE, lines, small_enough
from laocoon.files.wording import first_line, printable

TEXT_NAMES = ("text", "sentence", "content", "review", "comment", "comment_text", "tweet", "message", "body", "email",
              "sms", "post", "document", "utterance", "title")
LABEL_NAMES = ("label", "labels", "class", "target", "y", "category", "sentiment", "toxic", "toxicity", "spam",
               "offensive", "hate", "cls")
MOST_ROWS = 5_000_000
MOST_COLUMNS = 1000
MOST_NAMES = 1000  # different labels
LONGEST_QUOTE = 1000  # lines in one quoted cell: beyond it a quote was not closed
LOOKED_AT = 200  # rows from which unnamed columns are told apart
_WHOLE = re.compile(r"^[+-]?\d{1,12}(\.0*)?$")
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts with what they are labelled as: numbers, or places in `names` where there are names."""

    texts: tuple[str, ...]
    labels: Labels | None = None
    names: tuple[str, ...] = ()
    named_by: str = "labels"
    notes: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()  # where each text stands, for messages: "line 7"

    def __len__(self) -> int:
        return len(self.texts)


def read_csv(path: Path, options: DataOptions) -> Texts:
    """Cells between commas, semicolons or tabs; the first row is a header where it names a known column."""
    cells = _cells(path)
    number, first = next(cells, (0, []))
    known = {*TEXT_NAMES, *LABEL_NAMES, options.text_column, options.label_key}
    header = any(c.strip().lower() in known or c in known for c in first)
    columns = [c.strip() for c in first] if header else [str(i + 1) for i in range(len(first))]
    if not 0 < len(columns) <= MOST_COLUMNS:
        raise BrokenFile(f"{printable(path.name)} has {len(columns)} columns.", f"At most {MOST_COLUMNS} are read.")
    table: dict[str, list[Any]] = {c: [] for c in columns}
    if len(table) != len(columns):
        raise InputError(f"{printable(path.name)} has two columns of one name.", "Rename one of them.")
    rows: list[str] = []
    for line, row in cells if header else _again((number, first), cells):
        if len(row) != len(columns):
            raise BrokenFile(f"{printable(path.name)} line {line} has {len(row)} cells, the first row {len(columns)}.",
                             "Put texts that hold the separator into quotes.")
        for column, value in zip(columns, row, strict=True):
            table[column].append(value)
        rows.append(f"line {line}")
        if len(rows) > MOST_ROWS:
            raise InputError(f"{printable(path.name)} has more than {MOST_ROWS} rows.", "Pass a part of it.")
    return _chosen(table, rows, path.name, options, guess_label=not header)


def _again(one: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield one
    yield from rest


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each begins at."""
    at = 0

    def content() -> Iterator[str]:
        nonlocal at
        for at, line in source:  # noqa: B007  read below
            yield line

    source = lines(path)
    peek = next(source, (1, ""))
    source = _again(peek, source)  # type: ignore[arg-type, assignment]
    separator = "\t" if path.suffix.lower() in (".tsv", ".tab") else max(",;\t|", key=peek[1].count)
    separator = separator if separator in peek[1] else ","
    plain = separator == "\t"  # tables between tabs leave the quotes of their texts alone
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        start = 1
        for row in csv.reader(content(), delimiter=separator,
                              quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL):
            if at - start > LONGEST_QUOTE:
                raise BrokenFile(f"{printable(path.name)} line {start}: a quote is not closed for {at - start} lines.",
                                 "Write quotes inside of texts twice.")
            if row:
                yield start, row
            start = at + 1
    except csv.Error as error:
        raise BrokenFile(f"{printable(path.name)} line {at} cannot be read ({first_line(error, 80)}).",
                         "Write quotes inside of texts twice.") from None
    finally:
        csv.field_size_limit(before)


def read_json(path: Path, options: DataOptions) -> Texts:
    """One JSON object a line, or one array of objects."""
    records: list[tuple[str, Any]] = []
    whole = False
    for number, line in lines(path):
        if number == 1 and line.lstrip().startswith("["):
            whole = True
            break
        if line.strip():
            records.append((f"line {number}", _parsed(line, f"{printable(path.name)} line {number}")))
        if len(records) > MOST_ROWS:
            raise InputError(f"{printable(path.name)} has more than {MOST_ROWS} rows.", "Pass a part of it.")
    if whole:
        found = _parsed("".join(line for _, line in lines(path)), printable(path.name))
        records = [(f"record {i + 1}", r) for i, r in enumerate(found)]
    table: dict[str, list[Any]] = {}
    for i, (where, record) in enumerate(records):
        if not isinstance(record, dict):
            raise BrokenFile(f"{printable(path.name)} {where} is no JSON object.", "Each has a text, and a label.")
        for key, value in record.items():
            if key not in table and len(table) >= MOST_COLUMNS:
                raise BrokenFile(f"{printable(path.name)} {where}: over {MOST_COLUMNS} keys.", "Is it such a table?")
            column = table.setdefault(key, [])
            column += [None] * (i - len(column)) + [value]
    for column in table.values():
        column += [None] * (len(records) - len(column))
    return _chosen(table, [w for w, _ in records], path.name, options)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{where} is not JSON ({first_line(error, 80)}).", "Each line holds one object.") from None


def read_parquet(paths: Sequence[Path], options: DataOptions, notes: tuple[str, ...] = ()) -> Texts:
    """The layout of `datasets`; several files of one split are read one after another."""
    table: dict[str, list[Any]] = {}
    told: tuple[str, ...] = ()
    count = 0
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                kept = [f.name for f in schema if _readable(f.type)][:MOST_COLUMNS]
                groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
                small_enough(max(1, sum(g.total_byte_size for g in groups)), path.name)
                values = file.read(columns=kept).to_pydict()
                count += file.metadata.num_rows
        except _FAILURES as error:
            raise BrokenFile(f"{printable(path.name)} cannot be read as Parquet ({first_line(error, 100)}).",
                             "Fetch it again.") from None
        if table and set(values) != set(table):
            raise InputError(f"{printable(path.name)} has other columns than {printable(paths[0].name)}.",
                             "Pass files of one data set, or name the columns.")
        for name, column in values.items():
            table.setdefault(name, []).extend(column)
        told = told or _class_names(schema, options)
    found = _chosen(table, [f"row {i}" for i in range(count)], paths[0].name, options)
    whole = found.labels is not None and not found.names and len(found.labels) and found.labels.max() < len(told)
    return Texts(found.texts, found.labels, told if whole else found.names, found.named_by, (*notes, *found.notes),
                 found.rows)


def _readable(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
                or pa.types.is_boolean(kind) or pa.types.is_floating(kind))


def _class_names(schema: pa.Schema, options: DataOptions) -> tuple[str, ...]:
    """Names of the classes, as `datasets` keeps them in the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    wanted = (options.label_key,) if options.label_key else LABEL_NAMES
    for name in wanted:
        feature = features.get(name) if isinstance(features, dict) else None
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and len(names) <= MOST_NAMES:
            return tuple(map(str, names))
    return ()


def _chosen(table: dict[str, list[Any]], rows: list[str], where: str, options: DataOptions,
            guess_label: bool = False) -> Texts:
    """The column of texts and the column of labels."""
    if not rows:
        raise BrokenFile(f"{printable(where)} has no rows.", "Pass a table with texts.")
    listed = printable(", ".join(table), 200)
    for flag, name in (("--text-column", options.text_column), ("--label-key", options.label_key)):
        if name is not None and name not in table:
            raise InputError(f"{printable(where)} has no column {printable(name, 60)!r} ({flag}).",
                             f"Columns: {listed}.")
    lower = {c.lower(): c for c in reversed(table)}
    label = options.label_key or next((lower[n] for n in LABEL_NAMES if n in lower), None)
    text = options.text_column or next((lower[n] for n in TEXT_NAMES if n in lower), None)
    notes: tuple[str, ...] = ()
    if text is None:
        text = max((c for c in table if c != label), key=lambda c: _length(table[c]), default=None)
        if text is None or not _length(table[text]):
            raise InputError(f"{printable(where)} has no column of texts.",
                             f"Name it with --text-column. Columns: {listed}.")
        notes += (f"assumed: the column {printable(text, 60)!r} holds the texts",)
    if label is None and guess_label:
        few = [c for c in table if c != text and len(set(map(str, table[c]))) <= min(50, max(2, len(rows) // 2))]
        label = few[0] if len(few) == 1 else None
    if label is None and len(table) > 1:
        notes += (f"no column of labels was found among {listed}",)
    texts = _strings(table[text], rows, where, text)
    if label is None:
        return Texts(texts, notes=notes, rows=tuple(rows))
    labels, names = label_values(table[label], rows, where, label)
    if labels is None:
        notes += ("every label is -1: taken as texts without labels",)
    return Texts(texts, labels, names, f"column {label!r}", notes, tuple(rows))


def _length(values: Sequence[Any]) -> float:
    """Mean length of the strings in a column."""
    some = [len(v) if isinstance(v, str) and not _WHOLE.match(v) else 0 for v in values[:LOOKED_AT]]
    return sum(some) / max(1, len(some))


def _strings(values: Sequence[Any], rows: Sequence[str], where: str, column: str) -> tuple[str, ...]:
    for value, row in zip(values, rows, strict=True):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{printable(where)} {row}: column {printable(column, 60)!r} holds "
                             f"{printable(value, 40)!r}, which is no text.", "Name another with --text-column.")
    return tuple(v or "" for v in values)


def label_values(values: Iterable[Any], rows: Sequence[str], where: str,
                 column: str) -> tuple[Labels | None, tuple[str, ...]]:
    """Whole numbers as they are, words as places among their sorted names; None where all are -1."""
    told = [str(int(v)) if isinstance(v, bool) else "" if v is None else str(v).strip() for v in values]
    empty = next((row for v, row in zip(told, rows, strict=True) if not v), None)
    if empty is not None:
        raise InputError(f"{printable(where)} {empty} has no label in column {printable(column, 60)!r}.",
                         "Leave such rows out, or name another column with --label-key.")
    if all(_WHOLE.match(v) for v in told):
        numbers = np.array([int(v.partition(".")[0]) for v in told], np.int64)
        return (None, ()) if (numbers == -1).all() else (numbers, ())
    names, places = np.unique(np.array(told), return_inverse=True)
    if len(names) > MOST_NAMES:
        raise InputError(f"{printable(where)}: column {printable(column, 60)!r} holds {len(names)} different labels, "
                         f"such as {printable(names[0], 40)!r}.", "Name the column of labels with --label-key.")
    return places.astype(np.int64).reshape(-1), tuple(map(str, names))
