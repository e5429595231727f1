"""Texts for a model: from CSV, JSON lines, Parquet, a folder per class, or one text a line; drawn, encoded, bounded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Subject
from laocoon.files.images_hub import fetch_parquet, is_data_id
from laocoon.files.images_parquet import choose_split, parquet_files
from laocoon.files.images_source import DataOptions, Labels, Picture, Source
from laocoon.files.labels import class_numbers
from laocoon.files.text_lines import LARGEST_FILE, LONGEST_LINE, lines, small_enough
from laocoon.files.text_tables import Texts, read_csv, read_json, read_parquet
from laocoon.files.wording import printable
from laocoon.modalities.text import Text

KINDS = "CSV, JSON lines, Parquet, a folder of .txt files per class, or a .txt file with one text a line"
TABLES = (".csv", ".tsv", ".tab")
JSON = (".json", ".jsonl", ".ndjson")
MOST_FILES = 200_000
LONGEST = 100_000  # characters that are kept of one text
CHUNK = 1024  # texts encoded at a time
_SPLITS = ("test", "validation", "valid", "val", "dev", "train")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as a model takes them. `rows` are places among the texts that were read."""

    inputs: Tensor
    labels: Tensor | None
    rows: Labels
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_texts(path: str | Path, options: DataOptions | None = None) -> Texts:
    """All texts of a data set with their labels; empty ones are left out. Raises InputError or BrokenFile."""
    found = _read(path, options or DataOptions())
    kept = [i for i, text in enumerate(found.texts) if text.strip()]
    if not kept:
        raise InputError(f"all {len(found)} texts in {printable(path)} are empty.", "Name another --text-column.")
    notes = list(found.notes)
    if len(kept) < len(found):
        first = found.rows[next(i for i, t in enumerate(found.texts) if not t.strip())] if found.rows else "one"
        notes.append(f"{len(found) - len(kept)} empty texts left out, the first: {first}")
    long = sum(len(found.texts[i]) > LONGEST for i in kept)
    if long:
        notes.append(f"{long} texts were cut at {LONGEST} characters")
    labels = None if found.labels is None else found.labels[kept]
    rows = tuple(found.rows[i] for i in kept) if found.rows else ()
    return replace(found, texts=tuple(found.texts[i][:LONGEST] for i in kept), labels=labels, rows=rows,
                   notes=tuple(notes))


def load_texts(path: str | Path, subject: Subject, options: DataOptions, limit: int | None, seed: int) -> Encoded:
    """At most `limit` texts of each class (None: all), drawn by `seed`, as the subject takes them."""
    modality = subject.modality
    if not isinstance(modality, Text):
        raise InputError(f"the model takes {modality.name}, not texts.", "Pass data of its kind.")
    texts = read_texts(path, options)
    labels, names, notes = class_numbers(source_of(texts), subject, options)
    order = np.random.default_rng(seed).permutation(len(texts)).astype(np.int64)
    groups = np.zeros(len(texts), np.int64) if labels is None else labels
    most = len(texts) if limit is None else limit if labels is not None else limit * subject.classes
    room = dict.fromkeys(np.unique(groups).tolist(), most)
    taken: dict[int, Tensor] = {}
    blank = 0
    for start in range(0, len(order), CHUNK):
        rows = [r for r in order[start:start + CHUNK].tolist() if room[int(groups[r])] > 0]
        if not rows:
            if not any(room.values()):
                break
            continue
        for row, ids in zip(rows, modality.encode([texts.texts[r] for r in rows]), strict=True):
            if not bool((ids != 0).any()):
                blank += 1
            elif room[int(groups[row])] > 0:
                room[int(groups[row])] -= 1
                taken[row] = ids
    if not taken:
        raise InputError(f"no text in {printable(path)} holds a token that the model knows.",
                         "Check that data and model belong together.")
    if blank:
        notes = (*notes, f"{blank} texts left out in which the tokenizer sees nothing")
    kept = np.array(sorted(taken), np.int64)
    told = None if labels is None else torch.from_numpy(labels[kept])
    return Encoded(torch.stack([taken[int(r)] for r in kept]), told, kept, names, (*texts.notes, *notes))


def source_of(texts: Texts) -> Source:
    """What the mapping of labels looks at."""

    def unread(rows: Sequence[int], frame: object) -> list[Picture]:
        raise BrokenFile("texts are no pictures.", "")

    return Source(len(texts), texts.labels, texts.names, unread, texts.named_by, texts.notes)  # type: ignore[arg-type]


def _read(path: str | Path, options: DataOptions) -> Texts:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is not a path.", f"Data is {KINDS}.")
    place = Path(text)
    if not place.exists():
        if not place.is_symlink() and is_data_id(text) and not place.suffix:
            files, notes = fetch_parquet(text, options)
            return read_parquet(files, options, notes)
        raise InputError(f"{printable(text)} does not exist.", f"Data is {KINDS}.")
    if not os.access(place, os.R_OK):
        raise InputError(f"{printable(text)} may not be read by this user.", "Change its permissions.")
    if place.is_dir():
        return _folder(place, options)
    if not place.is_file():
        raise InputError(f"{printable(text)} is not a regular file.", f"Data is {KINDS}.")
    return _file(place, options)


def _file(place: Path, options: DataOptions) -> Texts:
    small_enough(place.stat().st_size, place.name)
    with place.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"PAR1":
        return read_parquet([place], options)
    suffix = place.suffix.lower()
    if suffix == ".parquet":
        raise BrokenFile(f"{printable(place.name)} is not Parquet (it begins with {head[:8]!r}).", "Fetch it again.")
    if head[:2] == b"PK" or head[:2] == b"\x1f\x8b":
        raise InputError(f"{printable(place.name)} is compressed.", "Unpack it first.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BrokenFile(f"{printable(place.name)} line 1 is UTF-16, not UTF-8.",
                         "Convert it: iconv -f UTF-16 -t UTF-8.")
    if suffix in TABLES:
        return read_csv(place, options)
    if suffix in JSON:
        return read_json(place, options)
    if suffix in (".txt", ".text", ""):
        found = [(number, line.rstrip("\r\n")) for number, line in lines(place)]
        return Texts(tuple(line for _, line in found), rows=tuple(f"line {n}" for n, _ in found))
    raise InputError(f"{printable(place.name)} is not data of a known kind.", f"Data is {KINDS}.")


def _folder(place: Path, options: DataOptions) -> Texts:
    """Parquet, one table, or files of text: in a folder per class, or all in one without labels."""
    parquet = parquet_files(place)
    if parquet:
        chosen, notes = choose_split(parquet, options.split)
        return read_parquet(chosen, options, notes)
    inside = [p for p in sorted(place.iterdir()) if not p.name.startswith(".")][:MOST_FILES]
    splits = {p.name.lower(): p for p in inside if p.name.lower() in _SPLITS and p.is_dir()}
    tables = {p.stem.lower(): p for p in inside if p.is_file() and p.suffix.lower() in (*TABLES, *JSON)}
    for kinds, open_one in ((splits, _folder), (tables, _file)):
        if kinds:
            name = options.split or next((s for s in _SPLITS if s in kinds), next(iter(kinds)))
            if name not in kinds:
                raise InputError(f"{printable(place.name)} has no split {printable(name, 40)!r}.",
                                 f"Splits: {printable(', '.join(kinds), 200)}.")
            others = printable(", ".join(sorted(set(kinds) - {name})), 100)
            note = (f"the split {printable(name, 40)!r} was read ({others} left out)",) if others else ()
            found = open_one(kinds[name], options)
            return replace(found, notes=(*note, *found.notes))
    classes = [p for p in inside if p.is_dir() and any(p.glob("*.txt"))]
    groups = [(c.name, sorted(c.glob("*.txt"))) for c in classes] or [("", [p for p in inside if p.suffix == ".txt"])]
    files = [(k, f) for k, (_, members) in enumerate(groups) for f in members]
    if not files or len(files) > MOST_FILES:
        raise InputError(f"{printable(place.name)} holds {len(files)} .txt files.", f"Data is {KINDS}.")
    texts = _contents([f for _, f in files], place)
    rows = tuple(str(f.relative_to(place)) for _, f in files)
    if not classes:
        return Texts(texts, rows=rows)
    return Texts(texts, np.array([k for k, _ in files], np.int64), tuple(n for n, _ in groups), "folders", rows=rows)


def _contents(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    """Each file as one text; links that lead out of the folder are not followed."""
    total, texts = 0, []
    for file in files:
        shown = printable(file.relative_to(root))
        if not file.resolve().is_relative_to(root.resolve()) or not file.is_file():
            raise InputError(f"{shown} leads out of the folder.", "Copy the file into it.")
        size = file.stat().st_size
        total += size
        if size > LONGEST_LINE or total > LARGEST_FILE:
            raise InputError(f"{shown} has {size} bytes, all files so far {total}.",
                             f"At most {LONGEST_LINE} and {LARGEST_FILE} are read.")
        texts.append("".join(line for _, line in lines(file)) if size else "")
    return tuple(texts)
