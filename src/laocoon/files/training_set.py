"""A whole training set, labels and all, from the layouts that `scan` reads: streamed to disk, larger than memory.

Each sample keeps the row that it had in the data and, where there is one, the name of its file, so that a list of
samples to keep means the same tomorrow. Pixels are stored as whole numbers from 0 to 255, texts as ids, tables as
floats.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Modality, Subject
from laocoon.files.images_decode import Frame
from laocoon.files.images_source import DataOptions, Labels, Picture, Source
from laocoon.files.labels import class_numbers
from laocoon.files.samples import open_source
from laocoon.files.training_rows import kind_of, table_of, texts_of
from laocoon.files.wording import printable
from laocoon.modalities.accepted import canonical
from laocoon.modalities.image import Image
from laocoon.modalities.inferred import inferred

MOST_BROKEN = 0.05  # share of the images; one is always forgiven
MOST_CLASSES = 10_000
LARGEST_SIDE = 64  # px to which pictures are brought where no model says what it wants: a proxy is trained on them
LOOKED_AT = 64  # pictures from which that size is taken
SPARE = 256 * 2**20  # bytes that are left free on the disk
BLOCK = 64 * 2**20  # bytes read at a time for the digest


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Samples on disk or in memory, labels [n], and where they come from."""

    stored: npt.NDArray[Any]  # pixels [n, channels, height, width] as bytes, ids [n, length], cells [n, columns]
    labels: Labels
    rows: Labels  # [n], the place of each sample in the data, 0 first
    classes: int
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    paths: Sequence[Path] = ()  # of all pictures, by row, where each is a file
    root: Path | None = None  # the folder that these paths are told from
    modality: Modality = field(default_factory=Image)
    row_names: Sequence[str] = ()  # by row, where the data name them otherwise than by files: "line 7"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(side) for side in self.stored.shape[1:])

    def name(self, place: int) -> str:
        """The file of a sample as the data set's folder names it, or its row."""
        row = int(self.rows[place])
        if row < len(self.row_names):
            return self.row_names[row]
        if row >= len(self.paths):
            return f"row {row}"
        path = self.paths[row]
        inside = self.root is not None and path.is_relative_to(self.root)
        return str(path.relative_to(str(self.root)) if inside else path)

    def inputs(self, places: Tensor) -> Tensor:
        """Canonical samples [k, …], as the modality wants them: pixels in [0, 1], ids as int64, cells as float32."""
        taken = torch.from_numpy(np.ascontiguousarray(self.stored[places.cpu().numpy()]))
        if taken.dtype == torch.uint8:
            return taken.float() / 255
        return taken.float() if taken.is_floating_point() else taken.long()

    def samples(self, places: Tensor) -> Samples:
        return Samples(self.inputs(places), torch.from_numpy(self.labels[places.cpu().numpy()]),
                       class_names=self.class_names, modality=self.modality)

    def digest(self) -> str:
        """Of samples and labels in their order: two runs on the same data agree on it."""
        found = hashlib.sha256(f"{self.stored.shape}".encode())
        step = max(1, BLOCK // max(1, int(np.prod(self.shape))))
        for start in range(0, len(self), step):
            found.update(np.ascontiguousarray(self.stored[start: start + step]).tobytes())
        found.update(np.ascontiguousarray(self.labels).tobytes())
        return found.hexdigest()


def in_memory(samples: Samples, classes: int) -> TrainingSet:
    """A training set of samples that are there already: images, ids [n, length] or a table [n, columns]."""
    if len(samples) == 0:
        raise InputError("there are no samples.", "Give one at least.")
    modality = inferred(samples.inputs, samples.modality)
    inputs = samples.inputs if modality.name == "image" else canonical(samples.inputs, modality)
    return TrainingSet(packed(inputs), samples.labels.cpu().numpy().astype(np.int64), np.arange(len(samples)), classes,
                       samples.class_names, modality=modality)


def packed(inputs: Tensor) -> npt.NDArray[Any]:
    """Canonical samples as a training set stores them."""
    inputs = inputs.detach().cpu()
    if not inputs.is_floating_point():
        return inputs.to(torch.int32).numpy()
    return (inputs.clamp(0, 1) * 255).round().byte().numpy() if inputs.dim() == 4 else inputs.float().numpy()


@contextmanager
def training_set(path: str | Path, subject: Subject | None = None, *, options: DataOptions | None = None,
                 shape: tuple[int, ...] | None = None, like: TrainingSet | None = None) -> Iterator[TrainingSet]:
    """Every sample of the data at a path, while the block lasts; the bytes of pictures lie in a temporary folder.

    Pictures are brought to the subject's size, or to `shape`, or to their own, at most 64 px a side and square. Texts
    are cut as the subject cuts them, a table's columns put in its order. `like`: data that these belong to, where there
    is no subject. Raises InputError or BrokenFile.
    """
    options = options or DataOptions()
    kind = subject.modality.name if subject is not None else like.modality.name if like else kind_of(path, options)
    if kind in ("text", "tabular"):
        read = (texts_of(path, subject, options, None if like is None else like.modality) if kind == "text" else
                table_of(path, subject or _taking(like), options))
        classes = _classes(read.labels, read.class_names, subject, path)
        yield TrainingSet(read.stored, read.labels, read.rows, classes, read.class_names, read.notes,
                          modality=read.modality, row_names=read.names)
        return
    if kind != "image":
        raise InputError(f"the model takes {kind}.", "Training sets of images, texts and tables are sifted.")
    wanted = tuple(subject.input_shape) if subject is not None else shape or (like.shape if like else None)
    source = _opened(path, options, wanted)
    labels, names, notes = class_numbers(source, subject, options)
    if labels is None:
        raise InputError(f"the images in {printable(path)} have no labels.",
                         "A training set is <folder>/<class>/<image>, Parquet or .npz with labels.")
    classes = _classes(labels, names, subject, path)
    if wanted is None:
        wanted, told = _own_shape(source, options)
        notes = (*notes, told)
    frame = Frame((wanted[0], wanted[1], wanted[2]), options.fit)
    folder = Path(tempfile.mkdtemp(prefix="laocoon-data-"))
    try:
        place = Path(os.fspath(path))
        made = _stored(source, labels, frame, folder, classes)
        yield replace(made, class_names=names, notes=(*source.notes, *notes, *made.notes), paths=source.paths,
                      root=place if place.is_dir() else None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _classes(labels: Labels, names: Sequence[str], subject: Subject | None, path: str | Path) -> int:
    classes = subject.classes if subject is not None else max(int(labels.max()) + 1, len(names))
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"{printable(path)} has {classes} classes (the largest label is {int(labels.max())}).",
                         f"Between 2 and {MOST_CLASSES} are sifted; number the classes from 0 on.")
    return classes


def _taking(like: TrainingSet | None) -> Subject | None:
    """A subject that takes the columns of a table, so that another table is read in the same way."""
    if like is None:
        return None
    return Subject(torch.nn.Identity(), like.modality, like.classes, like.shape, frozenset(),
                   class_names=like.class_names)


def _opened(path: str | Path, options: DataOptions, shape: tuple[int, ...] | None) -> Source:
    """Of several splits the one that models are trained on, where there is one and nothing else was asked for."""
    if options.split is None and Path(os.fspath(path)).exists():
        try:
            return open_source(path, replace(options, split="train"), shape, True)
        except InputError:  # no such split, or an error that the next line will tell
            pass
    return open_source(path, options, shape, True)


def _own_shape(source: Source, options: DataOptions) -> tuple[tuple[int, int, int], str]:
    """A square of the pictures' usual side, at most LARGEST_SIDE, and a note."""
    step = max(1, source.count // LOOKED_AT)
    looked = source.read(range(0, source.count, step)[:LOOKED_AT], Frame(None, options.fit))
    shapes = [tuple(p.image.shape) for p in looked if p.image is not None]
    if not shapes:
        raise BrokenFile("none of the images can be read.", "Check the data.")
    channels = max(s[0] for s in shapes)
    side = min(LARGEST_SIDE, sorted(max(s[1:]) for s in shapes)[len(shapes) // 2])
    note = f"images are judged at {side} x {side} px"
    return (min(channels, 3), side, side), note if {s[1:] for s in shapes} != {(side, side)} else "images as they are"


def _stored(source: Source, labels: Labels, frame: Frame, folder: Path, classes: int) -> TrainingSet:
    """Decode everything once, a picture at a time, into a file of bytes."""
    assert frame.shape is not None
    size = source.count * int(np.prod(frame.shape))
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise InputError(f"{source.count} images of {list(frame.shape)} take {size} bytes; {free} are free in "
                         f"{printable(folder.parent)}.", "Make room, or name another place with TMPDIR.")
    pixels: Any = np.memmap(folder / "pixels", np.uint8, "w+", shape=(source.count, *frame.shape))
    rows = np.zeros(source.count, np.int64)
    count, broken = 0, list[BrokenFile]()
    for picture in _every(source, frame):
        if picture.image is None:
            broken.append(picture.broken or BrokenFile("an image cannot be read."))
            if len(broken) > max(1, MOST_BROKEN * source.count):
                break
            continue
        pixels[count] = (picture.image * 255).round().clamp(0, 255).byte().numpy()
        rows[count] = picture.row
        count += 1
    if broken and (count == 0 or len(broken) > max(1, MOST_BROKEN * source.count)):
        first = broken[0]
        raise BrokenFile(f"{first.problem} {len(broken)} images or more are broken.", first.remedy)
    pixels.flush()
    kept = rows[:count].copy()
    note = (f"{len(broken)} broken images left out, the first: {broken[0].problem}",) if broken else ()
    used: npt.NDArray[np.uint8] = pixels[:count]
    return TrainingSet(used, labels[kept], kept, classes, notes=note)


def _every(source: Source, frame: Frame) -> Iterator[Picture]:
    return source.stream(frame) if source.stream is not None else source.read(range(source.count), frame)
