"""A whole training set that is no pictures: texts and tables, with every label, in memory.

Without a model the texts are cut at blanks, and their own commonest words are the vocabulary.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laocoon.core.errors import InputError
from laocoon.core.subject import Modality, Subject
from laocoon.files.images_source import DataOptions, Labels
from laocoon.files.labels import class_numbers
from laocoon.files.table_samples import records
from laocoon.files.tables import is_table, read_table
from laocoon.files.text_samples import JSON, TABLES, read_texts, source_of
from laocoon.files.wording import printable
from laocoon.modalities.text import PADDING, UNKNOWN, Text

MOST_WORDS = 20_000  # of a vocabulary that is read off the data
LEAST_SEEN = 2  # times that a word must be met to be in it
SHORTEST, LONGEST = 16, 128  # tokens of a text; in between, as many as 95 % of the texts have
MOST_CELLS = 2**28  # numbers in memory
CHUNK = 4096  # texts encoded at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """What was read: canonical samples, and where they come from."""

    stored: npt.NDArray[Any]  # ids [n, length] as int32, cells [n, columns] as float32
    labels: Labels
    rows: Labels
    modality: Modality
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    names: Sequence[str] = ()  # by row, where the data name them: "line 7"


def kind_of(path: str | Path, options: DataOptions) -> str:
    """What a data set holds, by its content: "text", "tabular", else "image"."""
    place = Path(os.fspath(path))
    if options.text_column is not None:
        return "text"
    if is_table(place):
        return "tabular"
    if place.is_file():
        return "text" if place.suffix.lower() in (*TABLES, *JSON, ".txt") or _worded(place) else "image"
    if not place.is_dir():
        return "image"
    inside = sorted(p for p in place.iterdir() if not p.name.startswith("."))[:1000]
    tables = [p for p in inside if p.is_file() and p.suffix.lower() in (*TABLES, *JSON)]
    if tables:
        return "tabular" if is_table(tables[0]) else "text"
    parquet = sorted((*place.glob("*.parquet"), *place.glob("data/*.parquet")))[:1]
    if parquet:
        return "text" if _worded(parquet[0]) else "image"
    folders = [p for p in inside if p.is_dir()]
    return "text" if folders and all(any(f.glob("*.txt")) for f in folders[:20]) else "image"


def _worded(place: Path) -> bool:
    """Is it Parquet with strings, and without pictures?"""
    try:
        kinds = pq.read_schema(place)
    except (pa.ArrowException, OSError):
        return False
    pictures = any(pa.types.is_nested(f.type) or pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
                   for f in kinds)
    return not pictures and any(pa.types.is_string(f.type) or pa.types.is_large_string(f.type) for f in kinds)


def texts_of(path: str | Path, subject: Subject | None, options: DataOptions, known: Modality | None = None, *,
             labelled: bool = True) -> Rows:
    """Every text. known: the vocabulary to use where no model has one, of data that these belong to.

    labelled: labels must be there; else class 0 stands in.
    """
    texts = read_texts(path, options)
    labels, names, notes = class_numbers(source_of(texts), subject, options)
    if labels is None and labelled:
        raise InputError(f"the texts in {printable(path)} have no labels.", "Name the column with --label.")
    labels = np.zeros(len(texts), np.int64) if labels is None else labels
    modality = subject.modality if subject is not None else known or vocabulary_of(texts.texts)
    if not isinstance(modality, Text):
        raise InputError(f"the model takes {modality.name}, not texts.", "Pass data of its kind.")
    if len(texts) * modality.length > MOST_CELLS:
        raise InputError(f"{len(texts)} texts of {modality.length} tokens do not fit into memory.", "Pass a part.")
    stored = np.zeros((len(texts), modality.length), np.int32)
    for start in range(0, len(texts), CHUNK):
        part = texts.texts[start:start + CHUNK]
        stored[start:start + len(part)] = modality.encode(part).numpy()
    kept = np.flatnonzero((stored != PADDING).any(1)).astype(np.int64)
    if not len(kept):
        raise InputError(f"no text in {printable(path)} holds a token that the model knows.",
                         "Check that data and model belong together.")
    gone = len(texts) - len(kept)
    more = (f"{gone} texts left out in which the tokenizer sees nothing",) if gone else ()
    if subject is None and known is None:
        more = (*more, f"no model: texts are cut at blanks, into {len(modality.vocabulary)} words of their own, at "
                       f"most {modality.length} a text")
    return Rows(stored[kept], labels[kept], kept, modality, names, (*texts.notes, *notes, *more), texts.rows)


def vocabulary_of(texts: Iterable[str]) -> Text:
    """The commonest words of texts, as long as nearly all of the texts are."""
    seen: Counter[str] = Counter()
    lengths = []
    for text in texts:
        words = text.lower().split()
        lengths.append(len(words))
        seen.update(words[:LONGEST])
    length = int(np.clip(np.quantile(lengths, 0.95), SHORTEST, LONGEST)) if lengths else SHORTEST
    ranked = sorted((word for word, count in seen.items() if count >= LEAST_SEEN), key=lambda w: (-seen[w], w))
    return Text(("<pad>", "<unk>", *ranked[:MOST_WORDS]), length, (PADDING, UNKNOWN))


def table_of(path: str | Path, subject: Subject | None, options: DataOptions, *, labelled: bool = True) -> Rows:
    """Every row of a table. labelled: labels must be there; else class 0 stands in."""
    found = records(read_table(path, options), subject, options)
    if found.labels is None and labelled:
        raise InputError(f"no column of {printable(path)} is the label.", "Name it with --label.")
    labels = np.zeros(len(found), np.int64) if found.labels is None else found.labels
    return Rows(found.inputs, labels, np.arange(len(found), dtype=np.int64), found.modality, found.class_names,
                found.notes)
