"""NumPy archives (`.npz`) and arrays (`.npy`): headers are read by hand, pickled objects never.

Rows are streamed: memory is bounded by what was chosen, whatever the archive says about itself.
"""

from __future__ import annotations

import ast
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files import pickles
from laocoon.files.images_decode import Frame
from laocoon.files.images_source import DataOptions, Labels, Picture, Source
from laocoon.files.wording import first_line, printable

IMAGE_NAMES = ("x", "images", "image", "data", "inputs", "imgs", "arr_0")
LABEL_NAMES = ("y", "labels", "label", "targets", "target", "classes", "arr_1")
_SPLITS = ("", "test", "val", "validation", "train")  # x, x_test, x_val, x_train …: the first that is there
LARGEST_ROW = 256 * 2**20
LARGEST_ARRAY = 2**38  # bytes that an array may claim to have; rows are streamed
MOST_LABELS = 50_000_000
MOST_RATIO = 1100  # DEFLATE cannot do better; more means a forged header
MOST_HEADER = 65536
BLOCK = 8 * 2**20
# A stored x becomes (x − b) / a.
RANGES = {"0-1": (1.0, 0.0), "0-255": (255.0, 0.0), "0-65535": (65535.0, 0.0), "-1-1": (2.0, -1.0)}
_FAILURES = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class _Array:
    """One array in a file, known by its header."""

    path: Path
    member: str  # of an archive; empty for a .npy file
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int  # where the numbers begin

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def name(self) -> str:
        return f"{self.path.name}:{self.member.removesuffix('.npy')}" if self.member else self.path.name

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """(first row, rows [k, …]), a few at a time."""
        per = max(1, BLOCK // max(1, self.row_bytes))
        try:
            with _stream(self.path, self.member) as file:
                _skip(file, self.start)
                for first in range(0, self.shape[0], per):
                    count = min(per, self.shape[0] - first)
                    data = _exactly(file, count * self.row_bytes)
                    yield first, np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        except _FAILURES as error:
            raise _broken(self.name, error) from None


def open_arrays(path: Path, options: DataOptions, shape: tuple[int, ...] | None, direct: bool = False) -> Source:
    """Images and labels of an archive or an array. `direct`: the numbers are the canonical input, not pixels."""
    arrays = _arrays(path)
    images, labels = _pick(arrays, options, path)
    for array in (images, labels):
        if array is not None:
            _check(array)
    if not images.shape or images.shape[0] == 0:
        raise InputError(
            f"{printable(images.name)} has shape {list(images.shape)}: no images.", "The first axis counts images."
        )
    read = _DirectRead(images, shape) if direct else _ArrayRead(images, _plan(images, options, shape), options)
    stream = None if isinstance(read, _DirectRead) else read.stream
    if labels is None:
        return Source(images.shape[0], None, (), read, stream=stream)
    values, names, notes = _labels(labels, images.shape[0])
    named_by = f"array {labels.name.split(':')[-1]!r}"
    return Source(images.shape[0], values, names, read, named_by, notes, stream)


@contextmanager
def _stream(path: Path, member: str) -> Iterator[IO[bytes]]:
    if member:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield file
    else:
        with path.open("rb") as file:
            yield file


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"{count - len(data)} bytes are missing")
    return data


def _skip(file: IO[bytes], count: int) -> None:
    _exactly(file, count)


def _broken(name: str, error: BaseException) -> BrokenFile:
    return BrokenFile(
        f"{printable(name)} is damaged or cut off ({first_line(error, 120)}).", "Save it again with numpy.savez."
    )


def _arrays(path: Path) -> dict[str, _Array]:
    """Every array of a file by its name; headers only."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if path.suffix.lower() == ".npy" or head == b"\x93NUMPY":
            return {"": _header(path, "")}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if len(members) > 1000:
            raise InputError(f"{printable(path.name)} holds {len(members)} arrays.", "At most 1000 are looked at.")
        for info in members:
            if info.file_size > MOST_RATIO * max(info.compress_size, 64):
                raise BrokenFile(
                    f"{printable(path.name)}:{printable(info.filename, 40)} says that it unpacks "
                    f"{info.file_size // max(info.compress_size, 1)}-fold.",
                    "Save it again.",
                )
        return {
            i.filename.removesuffix(".npy"): _header(path, i.filename) for i in members if i.filename.endswith(".npy")
        }
    except _FAILURES as error:
        raise _broken(path.name, error) from None


def _header(path: Path, member: str) -> _Array:
    with _stream(path, member) as file:
        magic = _exactly(file, 8)
        if magic[:6] != b"\x93NUMPY":
            raise ValueError("an array does not begin as NumPy writes it")
        wide = 2 if magic[6] == 1 else 4
        length = int.from_bytes(_exactly(file, wide), "little")
        if length > MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = ast.literal_eval(_exactly(file, length).decode("latin1" if magic[6] < 3 else "utf-8").strip())
    shape, descr = tuple(header["shape"]), header["descr"]
    if not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 32:
        raise ValueError(f"an array of shape {shape}")
    dtype = np.dtype(descr) if isinstance(descr, str) else np.dtype("V1")
    return _Array(path, member, dtype, shape, bool(header["fortran_order"]), 8 + wide + length)


def _pick(arrays: dict[str, _Array], options: DataOptions, path: Path) -> tuple[_Array, _Array | None]:
    if "" in arrays:
        return arrays[""], None
    lower = {name.lower(): array for name, array in arrays.items()}
    shown = printable(", ".join(arrays), 200) or "none"

    def find(wanted: str | None, names: Sequence[str], suffix: str) -> _Array | None:
        if wanted is not None:
            if wanted not in arrays:
                raise InputError(f"{printable(path.name)} has no array {wanted!r}.", f"Arrays: {shown}.")
            return arrays[wanted]
        return next((lower[f"{n}{suffix}"] for n in names if f"{n}{suffix}" in lower), None)

    splits = (
        {"validation": ("val", "validation")}.get(options.split or "", (options.split,)) if options.split else _SPLITS
    )
    for split in splits:
        suffix = f"_{split}" if split else ""
        images = find(options.image_key, IMAGE_NAMES, suffix)
        if images is not None:
            return images, find(options.label_key, LABEL_NAMES, suffix)
    raise InputError(
        f"{printable(path.name)} has no array that is named like images.",
        f"Arrays: {shown}; name one with --image-key.",
    )


def _check(array: _Array) -> None:
    if array.dtype.hasobject:
        with _stream(array.path, array.member) as file:
            _skip(file, array.start)
            for danger in pickles.inspect_stream(file, array.name, 0):
                raise danger.error(array.name)
        raise InputError(
            f"{printable(array.name)} holds pickled Python objects, which are never loaded.",
            "Save it as plain numbers.",
        )
    if array.dtype.kind not in "uifbUS":
        raise InputError(f"{printable(array.name)} has the type {array.dtype}.", "Use integers or floats.")
    if array.row_bytes > LARGEST_ROW or array.row_bytes * (array.shape[0] if array.shape else 1) > LARGEST_ARRAY:
        raise BrokenFile(
            f"{printable(array.name)} says that it has shape {list(array.shape)} of {array.dtype}.",
            f"At most {LARGEST_ROW} bytes a row are read.",
        )
    if array.fortran and len(array.shape) > 1:
        raise InputError(
            f"{printable(array.name)} is stored column by column (Fortran order).",
            "Save numpy.ascontiguousarray(x) instead.",
        )


def _labels(array: _Array, count: int) -> tuple[Labels, tuple[str, ...], tuple[str, ...]]:
    """Labels as integers, with their names where they are words."""
    if not array.shape or array.shape[0] < count:
        have = array.shape[0] if array.shape else 1
        raise InputError(f"{printable(array.name)} has {have} labels for {count} images.", "Give one for each image.")
    if array.shape[0] > MOST_LABELS or array.row_bytes > 2**20:
        raise InputError(
            f"{printable(array.name)} has shape {list(array.shape)}: too many labels.", "Give one for each image."
        )
    values = np.concatenate([block for _, block in array.blocks()])[:count]
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "uifb":
        if not (np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all()):
            raise InputError(
                f"{printable(array.name)} has shape {list(array.shape)}.", "Give one label for each image."
            )
        return values.argmax(1).astype(np.int64), (), ("one-hot labels were read",)
    values = values.reshape(count, -1)
    if values.shape[1] != 1:
        raise InputError(f"{printable(array.name)} has shape {list(array.shape)}.", "Give one label for each image.")
    values = values[:, 0]
    if values.dtype.kind in "US":
        names, inverse = np.unique(values.astype(np.str_), return_inverse=True)
        return inverse.astype(np.int64), tuple(str(n) for n in names), ()
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise InputError(f"{printable(array.name)} holds labels that are not whole numbers.", "Give class numbers.")
    return values.astype(np.int64), (), ()


def _plan(images: _Array, options: DataOptions, shape: tuple[int, ...] | None) -> tuple[int, str]:
    """Channels and layout of one stored image: (channels, "NCHW", "NHWC", "NHW" or "flat")."""
    inner = images.shape[1:]
    if images.dtype.kind not in "uifb":
        raise InputError(f"{printable(images.name)} has the type {images.dtype}.", "Images are integers or floats.")
    if len(inner) == 2:
        return 1, "NHW"
    if len(inner) == 1 and shape is not None and inner[0] == math.prod(shape):
        return shape[0], "flat"
    if len(inner) == 3:
        first, last = inner[0] in (1, 3, 4), inner[2] in (1, 3, 4)
        if options.data_layout == "NCHW" or (options.data_layout is None and first and (not last or inner == shape)):
            return inner[0], "NCHW"
        if options.data_layout == "NHWC" or (options.data_layout is None and last):
            return inner[2], "NHWC"
    raise InputError(
        f"{printable(images.name)} has shape {list(images.shape)}, which is not a stack of images.",
        "Use [n, height, width], [n, height, width, channels] or [n, channels, height, width].",
    )


def _chosen(array: _Array, rows: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    wanted = sorted(rows)
    position = 0
    for first, block in array.blocks():
        while position < len(wanted) and wanted[position] < first + len(block):
            yield wanted[position], block[wanted[position] - first]
            position += 1
        if position == len(wanted):
            return


@dataclass(frozen=True)
class _DirectRead:
    """Numbers as they are, for modalities whose inputs are no pictures."""

    array: _Array
    shape: tuple[int, ...] | None

    def __call__(self, rows: Sequence[int], frame: Frame) -> Iterator[Picture]:
        if self.shape is not None and self.array.shape[1:] != self.shape:
            raise InputError(
                f"{printable(self.array.name)} holds samples of shape {list(self.array.shape[1:])}.",
                f"The model takes {list(self.shape)}.",
            )
        for row, value in _chosen(self.array, rows):
            yield Picture(row, torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64)))


@dataclass(frozen=True)
class _ArrayRead:
    """Pixels, brought to [0, 1] and fitted to the frame. The range is judged over all rows that were asked for."""

    array: _Array
    plan: tuple[int, str]
    options: DataOptions

    def __call__(self, rows: Sequence[int], frame: Frame) -> Iterator[Picture]:
        values = [(row, np.array(v)) for row, v in _chosen(self.array, rows)]
        yield from self._pictures(values, self.options.data_range or self._range([v for _, v in values]), frame)

    def stream(self, frame: Frame) -> Iterator[Picture]:
        """Every row, a block at a time; the range is judged over all of them in a pass of its own."""
        scale = self.options.data_range or ("0-255" if self.array.dtype == np.uint8 else self._range_of_all())
        for first, block in self.array.blocks():
            yield from self._pictures(list(enumerate(block, first)), scale, frame)

    def _range_of_all(self) -> str:
        ends = []
        for _, block in self.array.blocks():
            finite = block[np.isfinite(block)] if block.dtype.kind == "f" else block
            if finite.size:
                ends.append(np.array([finite.min(), finite.max()]))
        return self._range(ends)

    def _pictures(self, values: Sequence[tuple[int, npt.NDArray[Any]]], scale: str, frame: Frame) -> Iterator[Picture]:
        a, b = RANGES[scale]
        for row, value in values:
            image = torch.from_numpy(value.astype(np.float32)).sub(b).div(a)
            if not bool(torch.isfinite(image).all()):
                yield Picture(
                    row,
                    None,
                    BrokenFile(
                        f"{printable(self.array.name)} row {row} holds values that are not finite (NaN or infinite).",
                        "Check how it was made.",
                    ),
                )
            elif not -1e-3 <= float(image.min()) <= float(image.max()) <= 1 + 1e-3:
                raise InputError(
                    f"{printable(self.array.name)} row {row} leaves the range "
                    f"{self.options.data_range or 'of the others'}.",
                    "Pass another --data-range.",
                )
            else:
                yield Picture(row, self._fitted(image.clamp(0, 1), frame))

    def _range(self, values: list[npt.NDArray[Any]]) -> str:
        """The range that the numbers are in, from their type and extent."""
        if self.array.dtype.kind == "b":
            return "0-1"
        finite = [v[np.isfinite(v)] for v in values] if self.array.dtype.kind == "f" else values
        low = min((float(v.min()) for v in finite if v.size), default=0.0)
        high = max((float(v.max()) for v in finite if v.size), default=0.0)
        if self.array.dtype == np.uint8:
            return "0-255"
        if self.array.dtype.kind in "ui" and low >= 0:
            return "0-255" if high <= 255 else "0-65535" if high <= 65535 else self._unclear(low, high)
        if low >= 0 and high <= 1.0001:
            return "0-1"
        if low >= 0 and 2 < high <= 255:
            return "0-255"
        if low >= -1.0001 and high <= 1.0001:
            return "-1-1"
        return self._unclear(low, high)

    def _unclear(self, low: float, high: float) -> str:
        raise InputError(
            f"{printable(self.array.name)} holds values from {low:.4g} to {high:.4g}: normalised, or of an "
            "unknown range.",
            "Store pixels before normalisation, or pass --data-range.",
        )

    def _fitted(self, image: Tensor, frame: Frame) -> Tensor:
        layout = self.plan[1]
        if layout == "NHWC":
            image = image.permute(2, 0, 1)
        elif layout == "NHW":
            image = image.unsqueeze(0)
        elif layout == "flat" and frame.shape is not None:
            image = image.reshape(frame.shape)
        if frame.shape is None:
            return image.contiguous()
        image = _recoloured(image, frame.shape[0])
        if image.shape[1:] != frame.shape[1:]:
            image = _resized(image, frame)
        return image.contiguous()


def _recoloured(image: Tensor, channels: int) -> Tensor:
    have = image.shape[0]
    if have == channels:
        return image
    if have == 4:  # over white
        image = image[:3] * image[3:] + (1 - image[3:])
    if channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # luma of ITU-R BT.601, as Pillow
        return image if image.shape[0] == 1 else (image * weights).sum(0, keepdim=True)
    colour = image.expand(3, -1, -1)
    return colour if channels == 3 else torch.cat([colour, torch.ones_like(colour[:1])])


def _resized(image: Tensor, frame: Frame) -> Tensor:
    assert frame.shape is not None
    _, height, width = frame.shape
    if frame.fit == "crop":
        have_h, have_w = image.shape[1:]
        scale = max(height / have_h, width / have_w)
        h, w = round(height / scale), round(width / scale)
        top, left = (have_h - h) // 2, (have_w - w) // 2
        image = image[:, top : top + h, left : left + w]
    return functional.interpolate(
        image.unsqueeze(0), (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0].clamp(0, 1)
