"""Lines of a text file from a stranger: UTF-8, no NUL, none longer than a bound; an error names file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.wording import printable

LARGEST_FILE = 100 * 2**20  # bytes of text in one data set
LONGEST_LINE = 4 * 2**20  # bytes


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (1 first) and content of each line, with its end; at most LONGEST_LINE bytes are held at a time."""
    small_enough(path.stat().st_size, path.name)
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{printable(path.name)} line {number}"
            if len(raw) > LONGEST_LINE:
                raise BrokenFile(f"{where} has more than {LONGEST_LINE} bytes.", "Is it text? Break it into lines.")
            if b"\0" in raw:
                raise BrokenFile(f"{where} holds a NUL byte (at byte {raw.index(0)}).",
                                 "It is no text in UTF-8; UTF-16 must be converted first.")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BrokenFile(f"{where} is not UTF-8 (byte {error.start}, {raw[error.start]:#04x}).",
                                 "Convert the file: iconv -f LATIN1 -t UTF-8.") from None


def small_enough(size: int, name: str) -> None:
    if size > LARGEST_FILE:
        raise InputError(f"{printable(name)} has {size} bytes of text.",
                         f"At most {LARGEST_FILE} are read: pass a part of it.")
    if size == 0:
        raise BrokenFile(f"{printable(name)} is empty (0 bytes).", "Fetch it again.")
