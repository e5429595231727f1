"""Clean samples from a table: its columns fitted to the model's, a schema read off them, a few rows of each class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files.images_source import DataOptions, Labels, Source
from laocoon.files.labels import class_numbers
from laocoon.files.table_column import Column, Numbers
from laocoon.files.tables import Table, read_table
from laocoon.files.wording import printable
from laocoon.modalities.tabular import CATEGORY, Tabular, kind_of

LABEL_NAMES = ("label", "class", "target", "y", "labels", "classes")
MOST_WORDS = 1000  # different words in one column; more are names or texts
EXACT = 2**24  # whole numbers up to this are themselves in single precision
MOST_CLASSES = 10_000
TOLD = 20  # rows from which a column that equals the label is no coincidence
_UNNAMED = re.compile(r"^(column[ _]?|f|x|input[ _]?)\d+$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Records:
    """A whole table as a model takes it: cells [rows, columns], labels by class, what each column may hold."""

    inputs: npt.NDArray[np.float32]
    labels: Labels | None
    modality: Tabular
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)


def load(path: str | Path, subject: Subject | None, options: DataOptions, limit_per_class: int | None,
         seed: int) -> tuple[Samples, bool]:
    """At most so many rows of each class, and whether they have labels; without labels class 0 stands in."""
    found = records(read_table(path, options), subject, options)
    rng, rows = np.random.default_rng(seed), list[int]()
    if found.labels is None:
        count = len(found) if limit_per_class is None else limit_per_class * (subject.classes if subject else 1)
        rows = rng.permutation(len(found))[:count].tolist()
    else:
        order = rng.permutation(len(found))
        for label in np.unique(found.labels):
            rows += order[found.labels[order] == label][:limit_per_class].tolist()
    rows.sort()
    labels = np.zeros(len(found), np.int64) if found.labels is None else found.labels
    samples = Samples(torch.from_numpy(found.inputs[rows]), torch.from_numpy(labels[rows]), found.labels is not None,
                      found.notes, found.class_names, found.modality)
    return samples, found.labels is not None


def records(table: Table, subject: Subject | None, options: DataOptions) -> Records:
    """Every row of a table, as a subject takes it, or with all of its columns."""
    known = subject.modality if subject is not None and isinstance(subject.modality, Tabular) else None
    label = _label(table, known, options)
    chosen, notes = _chosen(table, known, subject, label, options)
    labels, names, more = _labels(table, label, subject, options) if label else (None, (), ())
    cells, words = list[Numbers](), list[tuple[str, ...]]()
    for place, name in enumerate(chosen):
        values, said, assumed = _cells(table.columns[name], known, place)
        cells.append(values)
        words.append(said)
        more = (*more, *assumed)
    if label and labels is not None:
        _check_copies(chosen, cells, labels, label, table.name)
    inputs = np.stack(cells, 1).astype(np.float32)
    large = [chosen[i] for i, c in enumerate(cells) if np.abs(c).max() > EXACT and (c == c.round()).all()]
    if large:
        more = (*more, f"numbers over {EXACT} are rounded in {_listed(large)}")
    return Records(inputs, labels, _schema(chosen, inputs, words, known, options), names,
                   (*table.notes, *notes, *more))


def _listed(names: Sequence[str], limit: int = 6) -> str:
    return printable(", ".join(names[:limit]), 200) + (", …" if len(names) > limit else "")


def _label(table: Table, known: Tabular | None, options: DataOptions) -> str | None:
    """The column of the classes: as told, or one with a usual name that the model does not take."""
    told = options.label_key
    if told is not None:
        if told not in table.columns:
            raise InputError(f"{table.name} has no column {printable(told, 60)!r} of labels.",
                             f"Columns: {_listed([*table.columns], 12)}.")
        if known is not None and told in known.columns:
            raise InputError(f"the label {printable(told, 60)!r} is one of the columns that the model takes.",
                             "Name another label, or a model that does not see the answer.")
        return told
    taken = set(known.columns) if known is not None else set()
    folded = {name.casefold(): name for name in reversed([*table.columns]) if name not in taken}
    return next((folded[name] for name in LABEL_NAMES if name in folded), None)


def _chosen(table: Table, known: Tabular | None, subject: Subject | None, label: str | None,
            options: DataOptions) -> tuple[list[str], tuple[str, ...]]:
    """Names of the table's columns in the model's order, and what was assumed."""
    dropped = set(options.drop or ())
    if dropped - set(table.columns):
        raise InputError(f"{table.name} has no column {printable(min(dropped - set(table.columns)), 60)!r} to drop.",
                         f"Columns: {_listed([*table.columns], 12)}.")
    rest = [n for n in table.columns if n != label and n not in dropped]
    if not rest:
        raise InputError(f"{table.name} has no column beside the label.", "A record needs at least one.")
    if known is None or subject is None:
        return rest, ()
    wanted = list(known.columns)
    folded = {_folded(n): n for n in rest}
    by_name = [n if n in rest else folded.get(_folded(n), "") for n in wanted]
    if all(by_name) and len(set(by_name)) == len(by_name):
        extra = [n for n in rest if n not in by_name]
        moved = [n for n in rest if n in by_name] != by_name
        return by_name, (*((f"left out, since the model does not take them: {_listed(extra)}",) if extra else ()),
                         *(("the columns were put into the model's order, by name",) if moved else ()))
    if not all(_UNNAMED.match(n) for n in wanted):
        gone = [n for n, found in zip(wanted, by_name, strict=True) if not found]
        raise InputError(f"{table.name} lacks {len(gone)} of the {len(wanted)} columns that the model takes: "
                         f"{_listed(gone)}.", f"It has {_listed(rest, 12)}.")
    if len(rest) != len(wanted):
        _miscounted(table, rest, wanted, label)
    return rest, ("assumed: the columns of the table are in the model's order (the model does not name them)",)


def _miscounted(table: Table, rest: list[str], wanted: list[str], label: str | None) -> NoReturn:
    beside = f"beside the label {printable(label, 40)!r}" if label else "and no label"
    remedy = ("Leave the others out with --drop A,B,…." if label or len(rest) > len(wanted) + 1
              else "Name the label with --label.") if len(rest) > len(wanted) else "Columns are missing."
    raise InputError(f"{table.name} has {len(rest)} columns {beside} ({_listed(rest)}), the model takes "
                     f"{len(wanted)}.", remedy)


def _folded(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", name).casefold()


def _cells(column: Column, known: Tabular | None, place: int) -> tuple[Numbers, tuple[str, ...], tuple[str, ...]]:
    """Numbers for every row, the words that they stand for, and what was assumed."""
    column.check()
    told = known.words[place] if known is not None and known.words else ()
    if not told and not column.worded:
        return column.numbers(), (), ()
    codes, names = column.words()
    shown = printable(column.name, 60)
    if told:
        if not column.worded:  # codes already
            values = column.numbers()
            if strange_codes := sorted(set(np.unique(values).tolist()) - set(range(len(told)))):
                raise InputError(f"column {shown!r} of {column.where} holds the code {strange_codes[0]:g}, the model "
                                 f"knows {len(told)} categories, 0 to {len(told) - 1}.",
                                 f"They are {_listed(told, 12)}.")
            return values, told, ()
        order = {word: i for i, word in enumerate(told)}
        if strange := [n for n in names if n not in order]:
            raise InputError(f"column {shown!r} of {column.where} holds {printable(strange[0], 60)!r}, a category that "
                             "the model does not know.", f"It knows {_listed(told, 12)}.")
        return np.asarray([order[n] for n in names], np.float64)[codes], told, ()
    if len(names) > MOST_WORDS or len(names) > max(12, len(codes) // 2):
        raise InputError(f"column {shown!r} of {column.where} holds text ({len(names)} different ones in {len(codes)} "
                         f"rows, the first {printable(repr(names[0]), 40)}).",
                         "Numbers or a few categories are wanted; leave the column out with --drop.")
    note = f"assumed: categories of {shown!r} are numbered by the alphabet, from {printable(names[0], 40)!r} = 0 on"
    return codes.astype(np.float64), names, (note,) if known is not None else ()


def _labels(table: Table, label: str, subject: Subject | None,
            options: DataOptions) -> tuple[Labels, tuple[str, ...], tuple[str, ...]]:
    """Labels as the model numbers its classes, their names, notes."""
    column = table.columns[label]
    column.check()
    words: tuple[str, ...] = ()
    if column.worded:
        numbers, words = column.words()
    else:
        values = column.numbers()
        if not (values == values.round()).all() or np.abs(values).max() > 2**53:
            odd = values[values != values.round()][:1]
            raise InputError(f"the label {printable(label, 60)!r} of {table.name} holds "
                             f"{odd[0] if len(odd) else values.max():g}.", "Classes are whole numbers or words.")
        numbers = values.astype(np.int64)
        if subject is not None and subject.class_names and all(
                str(n) in subject.class_names for n in np.unique(numbers)[:MOST_CLASSES]):
            found, places = np.unique(numbers, return_inverse=True)  # classes that are named by other numbers
            numbers, words = places.reshape(-1).astype(np.int64), tuple(str(n) for n in found)
    if (count := len(np.unique(numbers))) > MOST_CLASSES:
        raise InputError(f"the label {printable(label, 60)!r} of {table.name} holds {count} different values.",
                         "A class is wanted; name the right column with --label.")
    source = Source(len(numbers), numbers, words, lambda rows, frame: iter(()), f"column {printable(label, 60)!r}")
    found_labels, names, notes = class_numbers(source, subject, options)
    assert found_labels is not None
    if options.label_key is None:
        notes = (f"the classes were read from the column {printable(label, 60)!r}", *notes)
    return found_labels, names, notes


def _check_copies(names: Sequence[str], cells: Sequence[Numbers], labels: Labels, label: str, where: str) -> None:
    """InputError where a column tells the label row by row: the same under other numbers."""
    classes = len(np.unique(labels))
    if len(labels) < TOLD or classes < 2:
        return
    for name, values in zip(names, cells, strict=True):
        different, places = np.unique(values, return_inverse=True)
        if len(different) == classes and len(np.unique(places.reshape(-1) * classes + _places(labels))) == classes:
            raise InputError(f"the column {printable(name, 60)!r} of {where} is the label {printable(label, 60)!r} "
                             "under another name.", "A model that sees it tells nothing; leave it out with --drop.")


def _places(labels: Labels) -> Labels:
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)


def seen(inputs: Tensor, known: Tabular) -> Tabular:
    """The schema of rows that came as plain arrays."""
    return Tabular.of(known.columns, inputs, tuple(kind_of(column) for column in inputs.T), known.fixed)


def _schema(names: Sequence[str], inputs: npt.NDArray[np.float32], words: Sequence[tuple[str, ...]],
            known: Tabular | None, options: DataOptions) -> Tabular:
    """Ranges, kinds and codes as the whole table has them, with the names and codes that the model has."""
    values = torch.from_numpy(inputs)
    columns = tuple(names) if known is None or all(_UNNAMED.match(n) for n in known.columns) else known.columns
    kinds = tuple(CATEGORY if said else kind_of(values[:, i]) for i, said in enumerate(words))
    allowed: list[tuple[float, ...]] = []
    kept: list[tuple[str, ...]] = []
    for i, kind in enumerate(kinds):
        seen = tuple(values[:, i].unique().tolist()) if kind == CATEGORY else ()
        allowed.append(seen)
        kept.append(tuple(words[i][int(c)] for c in seen) if words[i] else ())
    fixed = _fixed(columns, names, options)
    return Tabular(columns, tuple(values.amin(0).tolist()), tuple(values.amax(0).tolist()), kinds, tuple(allowed),
                   tuple(kept), fixed)


def _fixed(columns: Sequence[str], names: Sequence[str], options: DataOptions) -> tuple[str, ...]:
    """The columns that nobody can touch, by the model's or the table's name."""
    places: Mapping[str, str] = {**dict(zip(names, columns, strict=True)), **{c: c for c in columns}}
    if strange := [n for n in options.fixed or () if n not in places]:
        raise InputError(f"there is no column {printable(strange[0], 60)!r} to keep fixed.",
                         f"Columns: {_listed(columns, 12)}.")
    return tuple(dict.fromkeys(places[n] for n in options.fixed or ()))
