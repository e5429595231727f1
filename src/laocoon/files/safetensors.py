"""Safetensors: a length, a JSON header, raw numbers. The header is checked before the library reads the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from laocoon.core.errors import BrokenFile
from laocoon.files.wording import first_line, printable

LARGEST_HEADER = 100 * 2**20
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
         "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "U32": 32, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
         "F8_E8M0": 8}


def looks_like_safetensors(head: bytes) -> bool:
    """Eight bytes of a length, then the brace of a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") >= 2


def check(path: Path) -> dict[str, str]:
    """The metadata of a file whose header agrees with its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise BrokenFile(f"{path.name} claims a header of {length} bytes.", f"At most {LARGEST_HEADER} are read.")
        if length + 8 > size:
            raise BrokenFile(f"{path.name} claims a header of {length} bytes but has {size} bytes in all.",
                             "It is truncated: fetch it again.")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(
            f"{path.name} has a header that is not JSON ({first_line(error, 80)}).", "It is damaged."
        ) from error
    if not isinstance(header, dict):
        raise BrokenFile(f"{path.name} has a header that is not an object.", "It is damaged.")
    metadata = header.pop("__metadata__", {})
    spans = sorted((*_check_entry(path.name, k, v, size - 8 - length), k) for k, v in header.items())
    end = 0
    for start, stop, name in spans:
        if start < end:
            raise BrokenFile(f"{path.name}: tensor {printable(name, 80)!r} claims bytes of another one, from {start}.",
                             "The file is damaged, or was made so that programs read different weights.")
        end = stop
    if end != size - 8 - length:
        raise BrokenFile(f"{path.name} has {size - 8 - length} bytes of numbers; its header speaks of {end}.",
                         "It is truncated or damaged.")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return {printable(k, 60): printable(v, 400) for k, v in list(pairs)[:64]}


def _check_entry(where: str, name: str, entry: object, size: int) -> tuple[int, int]:
    """One tensor's entry; the offsets of its start and end."""
    shown = f"{where}: tensor {printable(name, 80)!r}"
    if not isinstance(entry, dict):
        raise BrokenFile(f"{shown} has a malformed entry.", "The file is damaged.")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if kind not in _BITS or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 \
            or not all(isinstance(v, int) and 0 <= v < 2**63 for v in (*shape, *offsets)):
        raise BrokenFile(f"{shown} has a malformed entry.", "The file is damaged.")
    start, end = offsets
    if end > size or start > end or math.prod(shape) * _BITS[kind] != (end - start) * 8:
        raise BrokenFile(f"{shown} of shape {shape[:8]} claims bytes {start} to {end} of {size}.",
                         "The file is truncated or damaged.")
    return int(start), int(end)


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A state dict as it is; tensors that share memory are written each for itself."""
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in state.items()}, str(path), metadata=dict(metadata))


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a checked file."""
    check(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise BrokenFile(
            f"{path.name} cannot be read as safetensors ({first_line(error)}).", "It is damaged."
        ) from error
