"""Universal Binary JSON, as XGBoost writes it: bounded, and as plain values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from laocoon.core.errors import BrokenFile

DEEPEST = 64
MOST_VALUES = 50_000_000
_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_ARRAYS = {b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_FIXED = {b"Z": None, b"T": True, b"F": False}


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at, self.left = data, name, 0, MOST_VALUES

    def broken(self, what: str) -> BrokenFile:
        return BrokenFile(f"{self.name} is not valid UBJSON at byte {self.at} ({what}).",
                          "It is truncated or damaged: fetch it again, or save it as JSON.")

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise self.broken(f"{count} bytes wanted, {len(self.data) - self.at} left")
        self.at += count
        return self.data[self.at - count: self.at]

    def number(self, kind: bytes) -> Any:
        form = _NUMBERS.get(kind)
        if form is None:
            raise self.broken(f"{kind!r} is no number")
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def size(self) -> int:
        count = self.number(self.take(1))
        if not isinstance(count, int) or count < 0:
            raise self.broken(f"a length of {count}")
        return count

    def text(self) -> str:
        return self.take(self.size()).decode("utf-8", "replace")

    def value(self, kind: bytes, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise self.broken("too many values, or too deep")
        if kind in _FIXED:
            return _FIXED[kind]
        if kind == b"S":
            return self.text()
        if kind == b"C":
            return self.take(1).decode("latin-1")
        if kind in b"[{":
            return self.container(kind, depth)
        return self.number(kind)

    def container(self, kind: bytes, depth: int) -> Any:
        """An array or an object; both may say in advance of what type and how many their values are."""
        inner = count = None
        if self.data[self.at: self.at + 1] == b"$":
            self.at += 1
            inner = self.take(1)
        if self.data[self.at: self.at + 1] == b"#":
            self.at += 1
            count = self.size()
        if inner is not None and count is None:
            raise self.broken("a type without a count")
        if kind == b"[" and inner in _ARRAYS and count is not None:
            form = np.dtype(_ARRAYS[inner])
            return np.frombuffer(self.take(count * form.itemsize), form).tolist()
        pairs: list[tuple[str, Any]] = []
        end = b"]" if kind == b"[" else b"}"
        while count is None or len(pairs) < count:
            if count is None and self.data[self.at: self.at + 1] == end:
                self.at += 1
                break
            key = self.text() if kind == b"{" else ""
            pairs.append((key, self.value(inner or self.take(1), depth + 1)))
        return dict(pairs) if kind == b"{" else [v for _, v in pairs]


def decode(data: bytes, name: str) -> Any:
    """The value that a file holds. BrokenFile where it is none."""
    reader = _Reader(data, name)
    return reader.value(reader.take(1), 0)
