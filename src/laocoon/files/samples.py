"""Clean samples from a folder, Parquet, NumPy arrays or the hub: a few of each class, fitted to the model, bounded."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Subject
from laocoon.files.images_arrays import open_arrays
from laocoon.files.images_decode import SUFFIXES, Frame
from laocoon.files.images_folder import open_folder
from laocoon.files.images_hub import fetch_parquet, is_data_id
from laocoon.files.images_parquet import choose_split, open_parquet, parquet_files
from laocoon.files.images_source import DataOptions, Labels, Source
from laocoon.files.wording import printable

MOST_MEMORY = 2**30  # bytes that all samples together may take
MOST_BROKEN = 0.05  # share of the images tried; one is always forgiven
KINDS = "a folder per class, a flat folder of images, Parquet, .npz or a hub id (owner/name)"
_NUMBER = re.compile(r"^(?:class|label|c)?[ _-]?0*(\d{1,9})$", re.IGNORECASE)


def load_data(
    path: str | Path,
    subject: Subject | None = None,
    *,
    options: DataOptions | None = None,
    limit_per_class: int | None = 20,
    seed: int = 0,
) -> Samples:
    """Clean samples for a subject: at most `limit_per_class` of each class, drawn by `seed`, as the model wants them.

    Without a subject the images must agree in size and bring labels. Raises InputError or BrokenFile.
    """
    options = options or DataOptions()
    if limit_per_class is not None and limit_per_class < 1:
        raise InputError(f"samples per class is {limit_per_class}.", "Use at least 1.")
    shape = tuple(subject.input_shape) if subject is not None else None
    pictures = subject is None or subject.modality.name == "image"
    source = open_source(path, options, shape, pictures)
    frame = Frame((shape[0], shape[1], shape[2]) if shape is not None and pictures else None, options.fit)
    labels, names, notes = class_numbers(source, subject, options)
    if labels is None and subject is None:
        raise InputError(
            f"the images in {printable(path)} have no labels.", "Pass the model too: its predictions serve."
        )
    rng = np.random.default_rng(seed)
    limit, capped = _affordable(limit_per_class, shape, labels, subject, source.count)
    drawn = _draw(source, frame, _queues(labels, source.count, limit, subject, rng), path)
    inputs = torch.stack([drawn.images[r] for r in drawn.rows])
    notes = (*source.notes, *notes, *capped, *drawn.notes)
    if labels is not None:
        told = torch.from_numpy(labels[drawn.rows])
        return Samples(inputs, told, True, (*notes, *_absent(told, subject)), names)
    assert subject is not None
    return Samples(
        inputs, _predicted(subject, inputs), False, (*notes, "no labels: the model's predictions serve"), names
    )


def open_source(path: str | Path, options: DataOptions, shape: tuple[int, ...] | None, pictures: bool) -> Source:
    """The data set at a path, recognised by its content."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is not a path.", f"Data is {KINDS}.")
    place = Path(text)
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if pictures and not place.is_symlink() and is_data_id(text):
            return open_parquet(*_fetched(text, options))
        raise InputError(f"{printable(text)} does not exist.", f"Data is {KINDS}.") from None
    except OSError as error:
        raise InputError(f"{printable(text)} cannot be read ({error.strerror}).", "Check the path.") from None
    if not os.access(place, os.R_OK):
        raise InputError(f"{printable(text)} may not be read by this user.", "Change its permissions.")
    if stat.S_ISDIR(mode):
        if not pictures:
            raise InputError(
                f"{printable(text)} is a folder; the model takes no images.", "Pass an .npz file with x and y."
            )
        files = parquet_files(place)
        if files:
            chosen, notes = choose_split(files, options.split)
            return open_parquet(chosen, options, notes)
        arrays = sorted(place.glob("*.npz"))
        return open_arrays(arrays[0], options, shape) if len(arrays) == 1 else open_folder(place)
    if not stat.S_ISREG(mode):
        raise InputError(f"{printable(text)} is not a regular file.", f"Data is {KINDS}.")
    return _opened_file(place, options, shape, pictures)


def _fetched(text: str, options: DataOptions) -> tuple[tuple[Path, ...], DataOptions, tuple[str, ...]]:
    files, notes = fetch_parquet(text, options)
    return files, options, notes


def _opened_file(place: Path, options: DataOptions, shape: tuple[int, ...] | None, pictures: bool) -> Source:
    if place.stat().st_size == 0:
        raise BrokenFile(f"{printable(place.name)} is empty (0 bytes).", "Fetch it again.")
    with place.open("rb") as file:
        head = file.read(8)
    if head[:4] == b"PAR1" and pictures:
        return open_parquet([place], options)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or head[:6] == b"\x93NUMPY":
        return open_arrays(place, options, shape, direct=not pictures)
    if place.suffix.lower() in SUFFIXES:
        raise InputError(f"{printable(place.name)} is one image.", "Pass the folder that holds it.")
    if place.suffix.lower() in (".parquet", ".npz", ".npy"):
        raise BrokenFile(
            f"{printable(place.name)} is not what its name says (it begins with {head!r}).", "Fetch it again."
        )
    raise InputError(f"{printable(place.name)} is not data of a known kind.", f"Data is {KINDS}.")


def _words(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def class_numbers(
    source: Source, subject: Subject | None, options: DataOptions
) -> tuple[Labels | None, tuple[str, ...], tuple[str, ...]]:
    """Labels as the model numbers its classes, the names of the classes in that order, and what was assumed."""
    if source.labels is None:
        return None, (), ()
    classes = subject.classes if subject is not None else None
    table, notes = _table(source, subject, options)
    labels = source.labels if table is None else np.asarray(table, np.int64)[source.labels]
    if source.named_by != "folders" and table is None:
        labels = labels - options.first_label
    bad = np.flatnonzero((labels < 0) | (labels >= (classes if classes is not None else np.iinfo(np.int64).max)))
    if len(bad):
        first = int(bad[0])
        hint = (
            " They seem to count from 1: pass --first-label 1."
            if classes is not None and options.first_label == 0 and (labels.min() >= 1 and labels.max() == classes)
            else ""
        )
        raise InputError(
            f"{printable(source.named_by)} hold the label {int(labels[first])} (row {first}), but the model "
            f"has {classes} classes, 0 to {(classes or 0) - 1}.",
            f"Check that data and model belong together.{hint}",
        )
    names = _names(source, table, classes)
    return labels, names, notes


def _table(source: Source, subject: Subject | None, options: DataOptions) -> tuple[list[int] | None, tuple[str, ...]]:
    """For each name of the data the class that it stands for; None: labels are class numbers already."""
    names = source.names
    if not names:
        return None, ()
    known: dict[str, int] = {}
    for number, name in enumerate(subject.class_names if subject is not None else ()):
        for part in (name, *name.split(",")):  # ImageNet: "tench, Tinca tinca"
            known.setdefault(_words(part), number)
    by_name = [known.get(_words(n), -1) for n in names]
    if known and min(by_name) >= 0:
        return by_name, ()
    numbers = [int(m[1]) - options.first_label if (m := _NUMBER.match(n)) else None for n in names]
    if all(n is not None for n in numbers) and len(set(numbers)) == len(names):
        return [n for n in numbers if n is not None], ()
    classes = subject.classes if subject is not None else len(names)
    unknown = printable(next((n for n, k in zip(names, by_name, strict=True) if k < 0), ""), 60)
    if known and max(by_name) >= 0:
        raise InputError(
            f"{source.named_by} name the class {unknown!r}, which the model does not have.",
            f"It has {printable(', '.join((subject.class_names if subject else ())[:12]), 300)}.",
        )
    if len(names) == classes:
        order = f"assumed: {source.named_by} are the model's classes in this order: {printable(', '.join(names), 200)}"
        return list(range(len(names))), (order,) if subject is not None else ()
    raise InputError(
        f"{source.named_by} name {len(names)} classes ({printable(', '.join(names[:4]), 120)}"
        f"{', …' if len(names) > 4 else ''}), the model has {classes}.",
        "Name each folder or label by the number of its class, 0 first.",
    )


def _names(source: Source, table: list[int] | None, classes: int | None) -> tuple[str, ...]:
    """Names by class number, where they say more than the number."""
    if table is None or not source.names or all(_NUMBER.match(n) for n in source.names):
        return ()
    count = classes if classes is not None else max(table) + 1
    if count > 100_000:
        return ()
    names = [str(i) for i in range(count)]
    for name, number in zip(source.names, table, strict=True):
        if 0 <= number < count:
            names[number] = printable(name, 80)
    return tuple(names)


def _affordable(
    limit: int | None, shape: tuple[int, ...] | None, labels: Labels | None, subject: Subject | None, count: int
) -> tuple[int | None, tuple[str, ...]]:
    """The limit per class, lowered so that the samples fit into memory."""
    size = 4 * int(np.prod(shape or (3, 224, 224)))
    groups = len(np.unique(labels)) if labels is not None else subject.classes if subject is not None else 1
    most = max(1, MOST_MEMORY // size)
    if min(count, (limit or count) * groups) <= most:
        return limit, ()
    lower = max(1, most // groups)
    return lower, (f"{lower} samples per class instead of {limit or 'all'}, so that they fit into memory",)


def _queues(
    labels: Labels | None, count: int, limit: int | None, subject: Subject | None, rng: np.random.Generator
) -> list[tuple[Labels, int]]:
    """For each class its rows in random order, and how many to take. Without labels there is one queue."""
    if labels is None:
        total = count if limit is None or subject is None else min(count, limit * subject.classes)
        return [(rng.permutation(count).astype(np.int64), total)]
    order = rng.permutation(count)
    ranked = order[np.argsort(labels[order], kind="stable")]
    groups = np.split(ranked, np.flatnonzero(np.diff(labels[ranked])) + 1)
    return [(g.astype(np.int64), len(g) if limit is None else min(limit, len(g))) for g in groups]


@dataclass
class _Drawn:
    """Decoded images by row; `rows` in ascending order."""

    images: dict[int, Tensor]
    rows: list[int]
    notes: tuple[str, ...] = ()


def _draw(source: Source, frame: Frame, queues: list[tuple[Labels, int]], path: str | Path) -> _Drawn:
    """Decode what was chosen; a broken image is replaced by the next of its class."""
    images: dict[int, Tensor] = {}
    broken: list[BrokenFile] = []
    taken, tried = [0] * len(queues), [0] * len(queues)
    while True:
        batch: list[int] = []
        owner: dict[int, int] = {}
        for k, (queue, want) in enumerate(queues):
            more = queue[tried[k] : tried[k] + want - taken[k]]
            tried[k] += len(more)
            batch += more.tolist()
            owner.update(dict.fromkeys(more.tolist(), k))
        if not batch:
            break
        for picture in source.read(sorted(batch), frame):
            if picture.image is None:
                broken.append(picture.broken or BrokenFile("an image cannot be read."))
                continue
            images[picture.row] = picture.image
            taken[owner[picture.row]] += 1
        if len(broken) > max(1, MOST_BROKEN * sum(tried)):
            break
    if broken and (not images or len(broken) > max(1, MOST_BROKEN * (len(images) + len(broken)))):
        others = f" {len(broken)} of {len(images) + len(broken)} images are broken." if len(broken) > 1 else ""
        raise BrokenFile(f"{broken[0].problem}{others}", broken[0].remedy)
    rows = sorted(images)
    shapes = {tuple(images[r].shape) for r in rows}
    if len(shapes) > 1:
        raise InputError(
            f"the images in {printable(path)} have several sizes ({sorted(shapes)[:3]}).",
            "Pass the model too: they are then fitted to it.",
        )
    notes = (
        (f"{len(broken)} broken image left out: {broken[0].problem}",)
        if len(broken) == 1
        else (f"{len(broken)} broken images left out, the first: {broken[0].problem}",)
        if broken
        else ()
    )
    return _Drawn(images, rows, notes)


def _absent(labels: Tensor, subject: Subject | None) -> tuple[str, ...]:
    if subject is None:
        return ()
    missing = sorted(set(range(subject.classes)) - set(labels.tolist()))
    if not missing:
        return ()
    shown = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
    return (f"no samples of {len(missing)} of {subject.classes} classes ({shown})",)


def _predicted(subject: Subject, inputs: Tensor) -> Tensor:
    """The model's own answers."""
    said: list[Tensor] = []
    device: Sequence[Tensor] = [*subject.module.parameters(), *subject.module.buffers()][:1]
    with torch.no_grad():
        for part in inputs.split(64):
            said.append(subject.outputs(part.to(device[0].device) if device else part).logits.argmax(-1).cpu())
    return torch.cat(said)
