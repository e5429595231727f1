"""Clean samples from a folder, Parquet, NumPy arrays or the hub: a few of each class, fitted to the model, bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from laocoon.files.labels import class_numbers
from laocoon.files.table_samples import load as load_table
from laocoon.files.table_samples import seen
from laocoon.files.tables import is_table
from laocoon.files.text_samples import load_texts
from laocoon.files.wording import printable
from laocoon.modalities.encoder import encodes
from laocoon.modalities.tabular import Tabular

MOST_MEMORY = 2**30  # bytes that all samples together may take
UNUSED = "labels, if any, are not used: an encoder knows no classes"
CLASSES = 10  # for as many classes an encoder, which has none, is given samples
MOST_BROKEN = 0.05  # share of the images tried; one is always forgiven
KINDS = "a folder per class, a flat folder of images, Parquet, .npz or a hub id (owner/name)"


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
    if subject is not None and subject.modality.name == "text" and Path(path).suffix.lower() != ".npz":
        found = load_texts(path, subject, options, limit_per_class, seed)
        return _samples(found.inputs, found.labels, subject, found.notes, found.names)
    if subject is not None and subject.modality.name == "text_encoder":
        found = load_texts(path, replace(subject, classes=CLASSES), options, limit_per_class, seed)
        return Samples(found.inputs, torch.zeros(len(found.inputs), dtype=torch.long), False, (*found.notes, UNUSED))
    if _table_wanted(path, subject):
        return _from_table(path, subject, options, limit_per_class, seed)
    shape = tuple(subject.input_shape) if subject is not None else None
    pictures = subject is None or subject.modality.name in ("image", "image_encoder")
    source = open_source(path, options, shape, pictures)
    frame = Frame((shape[0], shape[1], shape[2]) if shape is not None and pictures else None, options.fit)
    if subject is not None and encodes(subject.modality.name):
        return _unlabelled(source, frame, subject, limit_per_class, seed, path)
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
    told = torch.from_numpy(labels[drawn.rows]) if labels is not None else None
    return _samples(inputs, told, subject, notes, names)


def _samples(inputs: Tensor, labels: Tensor | None, subject: Subject | None, notes: tuple[str, ...],
             names: tuple[str, ...]) -> Samples:
    """What was drawn, with the model's own answers where there are no labels."""
    known = subject.modality if subject is not None else None
    told = seen(inputs, known) if isinstance(known, Tabular) else None
    if labels is not None:
        return Samples(inputs, labels, True, (*notes, *_absent(labels, subject)), names, told)
    assert subject is not None
    return Samples(inputs, _predicted(subject, inputs), False, (*notes, "no labels: the model's predictions serve"),
                   names, told)


def _table_wanted(path: str | Path, subject: Subject | None) -> bool:
    if subject is not None and subject.modality.name == "tabular":
        return Path(path).suffix.lower() not in (".npz", ".npy")
    return (subject is None or subject.modality.name == "image") and is_table(path)


def _from_table(path: str | Path, subject: Subject | None, options: DataOptions, limit: int | None,
                seed: int) -> Samples:
    if subject is not None and subject.modality.name != "tabular":
        raise InputError(f"{printable(path)} is a table, the model was opened as one of images.",
                         "Open it with --modality tabular, if it takes the columns of a table.")
    samples, labelled = load_table(path, subject, options, limit, seed)
    if labelled:
        return replace(samples, notes=(*samples.notes, *_absent(samples.labels, subject)))
    if subject is None:
        raise InputError(f"no column of {printable(path)} is the label.", "Name it with --label.")
    return replace(samples, labels=_predicted(subject, samples.inputs),
                   notes=(*samples.notes, "no labels: the model's predictions serve"))


def _unlabelled(source: Source, frame: Frame, subject: Subject, limit: int | None, seed: int,
                path: str | Path) -> Samples:
    """Samples for an encoder, which knows no classes: whatever the data call theirs does not matter."""
    total = source.count if limit is None else min(source.count, limit * CLASSES)
    most, capped = _affordable(total, tuple(subject.input_shape), np.zeros(1, np.int64), subject, source.count)
    queue = np.random.default_rng(seed).permutation(source.count).astype(np.int64)
    drawn = _draw(source, frame, [(queue, most or total)], path)
    inputs = torch.stack([drawn.images[r] for r in drawn.rows])
    notes = (*source.notes, *capped, *drawn.notes, UNUSED)
    return Samples(inputs, torch.zeros(len(inputs), dtype=torch.long), False, notes)


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
