"""Tensors of the Open Inference Protocol v2, as JSON and as raw bytes. Counts are checked before memory is taken."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from laocoon.core.errors import InputError

Array = npt.NDArray[Any]
# Little-endian, as the binary-data extension wants. BYTES are objects; BF16 has no type in NumPy and is not spoken.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}


@dataclass(frozen=True, eq=False)
class Named:
    """A tensor as the protocol knows it; `array` has the tensor's shape."""

    name: str
    datatype: str
    array: Array


def counted(name: str, datatype: str, shape: Sequence[int], most: int) -> int:
    """Number of elements that a header promises. InputError where no tensor of at most `most` has it."""
    if datatype not in DATATYPES:
        raise InputError(f"the tensor {name!r} has the datatype {datatype[:40]!r}.", f"Known: {', '.join(DATATYPES)}.")
    if not 1 <= len(shape) <= 16 or min(shape) < 0:
        raise InputError(f"the tensor {name!r} has the shape {list(shape)[:17]}.", "Use 1 to 16 sizes of 0 or more.")
    count = math.prod(shape)
    if count > most or math.prod(max(1, s) for s in shape) > 2**40:  # NumPy overflows beside a size of 0
        raise InputError(f"the tensor {name!r} has {count} elements.", f"At most {most} are taken.")
    return count


def from_json(name: str, datatype: str, shape: Sequence[int], data: Sequence[Any], most: int) -> Named:
    """Flat or nested lists. Texts and booleans are not taken for numbers."""
    count, kind = counted(name, datatype, shape, most), DATATYPES[datatype]
    if datatype == "BYTES":
        if len(data) != count or not all(isinstance(d, str) for d in data):
            raise InputError(f"the tensor {name!r} promises {count} texts.", "Give a flat list of them.")
        texts = [d.encode("utf-8", "surrogatepass") for d in data]
        return Named(name, datatype, np.asarray(texts, object).reshape(shape))
    try:
        array = np.asarray(data)
    except (ValueError, RecursionError):
        raise InputError(f"the data of tensor {name!r} is not rectangular.", "Nest it like its shape.") from None
    wanted = {"b": "b", "f": "iuf", "i": "iu", "u": "iu"}[kind.kind]
    if array.size != count or (count and array.dtype.kind not in wanted):
        what = f"{array.size} elements" if array.size != count else f"elements that are not {datatype}"
        raise InputError(f"the tensor {name!r} of shape {list(shape)} has {what}.", f"{count} {datatype} belong there.")
    if array.ndim > 1 and array.shape != tuple(shape):
        raise InputError(f"the data of tensor {name!r} is nested as {array.shape}.", "Nest it like its shape.")
    if kind.kind in "iu" and count:
        limits = np.iinfo(kind)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"the tensor {name!r} holds numbers outside of {datatype}.", "Use a larger datatype.")
    with np.errstate(over="ignore"):
        return Named(name, datatype, array.astype(kind).reshape(shape))


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes, most: int) -> Named:
    count, kind = counted(name, datatype, shape, most), DATATYPES[datatype]
    if datatype == "BYTES":
        return Named(name, datatype, _texts(name, raw, count).reshape(shape))
    if len(raw) != count * kind.itemsize:
        raise InputError(
            f"the tensor {name!r} of shape {list(shape)} comes with {len(raw)} bytes.",
            f"{count * kind.itemsize} belong there.",
        )
    return Named(name, datatype, np.frombuffer(raw, kind).reshape(shape))


def _texts(name: str, raw: bytes, count: int) -> Array:
    """Each text behind its length in four bytes."""
    found: list[bytes] = []
    place = 0
    while place + 4 <= len(raw) and len(found) < count:
        (size,) = struct.unpack_from("<I", raw, place)
        if place + 4 + size > len(raw):
            break
        found.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    if len(found) != count or place != len(raw):
        raise InputError(f"the texts of tensor {name!r} do not fit into its {len(raw)} bytes.", "Check their lengths.")
    return np.asarray(found, object)


def to_json(tensor: Named) -> list[Any]:
    """Flat. JSON has no NaN: what is not finite becomes null."""
    flat = tensor.array.ravel()
    if tensor.datatype == "BYTES":
        return [b.decode("utf-8", "replace") for b in flat.tolist()]
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [v if math.isfinite(v) else None for v in flat.tolist()]
    return list(flat.tolist())


def to_bytes(tensor: Named) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(b)) + b for b in tensor.array.ravel().tolist())
    return np.ascontiguousarray(tensor.array, DATATYPES[tensor.datatype]).tobytes()


def withheld(tensor: Named, rows: npt.NDArray[np.bool_]) -> Named:
    """The same tensor with some rows abstained from: NaN for floats, −1 for signed whole numbers.

    InputError for datatypes that have no value to say "no answer" with.
    """
    kind = tensor.array.dtype.kind
    if kind not in "fi":
        raise InputError(
            f"the output {tensor.name!r} is {tensor.datatype}, which has no value for abstaining.",
            "Ask for other outputs, or use --policy block.",
        )
    array = tensor.array.copy()
    array[rows] = np.nan if kind == "f" else -1
    return Named(tensor.name, tensor.datatype, array)
