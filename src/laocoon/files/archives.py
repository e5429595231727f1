"""Zip archives from strangers: names, sizes, compression and the pickles inside, without unpacking anything to disk."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from laocoon.core.errors import BrokenFile
from laocoon.files.danger import Danger
from laocoon.files.pickles import inspect_stream, looks_like_pickle
from laocoon.files.wording import first_line, printable

MOST_MEMBERS = 100_000
LARGEST_TOTAL = 64 * 2**30
LARGEST_NESTED = 64 * 2**20
LARGEST_PICKLE = 256 * 2**20
BOMB_RATIO, BOMB_SIZE = 100, 32 * 2**20  # compressed weights shrink by a third at most


@contextmanager
def opened(source: Path | IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        raise BrokenFile(f"{name} is not a complete zip archive ({first_line(error, 100)}).",
                         "It is truncated or damaged: fetch it again.") from error


def read_member(archive: zipfile.ZipFile, member: str, limit: int) -> bytes:
    """A member's bytes, never more than `limit`, whatever its header claims."""
    info = archive.getinfo(member)
    with archive.open(info) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BrokenFile(f"member {printable(member)!r} has over {limit} bytes.", "Files like that are refused.")
    return data


def member_ending(names: list[str], *endings: str) -> str | None:
    """The first member whose path ends so (archives of torch put all under one folder)."""
    return next((n for n in names for e in endings if n == e or n.endswith(f"/{e}")), None)


def inspect_archive(source: Path | IO[bytes], name: str, *, depth: int = 0) -> list[Danger]:
    """Path traversal, links, bombs and dangerous pickles, in this archive and in archives inside."""
    found: list[Danger] = []
    with opened(source, name) as archive:
        infos = archive.infolist()
        if len(infos) > MOST_MEMBERS:
            raise BrokenFile(f"{name} has {len(infos)} members.", f"At most {MOST_MEMBERS} are read.")
        total = sum(i.file_size for i in infos)
        packed = sum(i.compress_size for i in infos)
        bombs = [i for i in infos if i.file_size > BOMB_SIZE and i.file_size > BOMB_RATIO * max(i.compress_size, 1)]
        if bombs or total > LARGEST_TOTAL or (total > BOMB_SIZE and total > BOMB_RATIO * max(packed, 1)):
            raise BrokenFile(f"{name} holds {packed} bytes that unpack to {total}: a zip bomb.", "Do not unpack it.")
        names = [i.filename for i in infos]
        outside = [printable(i.filename) for i in infos if _leaves(i)]
        if outside:
            found.append(
                Danger("path-traversal", "members would be written outside of the folder", tuple(outside[:16]))
            )
        if any(i.flag_bits & 1 for i in infos):
            raise BrokenFile(f"{name} is encrypted.", "Decrypt it first.")
        twice = sorted({printable(n) for n in names if names.count(n) > 1}) if len(names) < 5000 else []
        if twice:
            found.append(
                Danger(
                    "ambiguous-archive",
                    "members have the same name, so that programs may read different ones",
                    tuple(twice[:8]),
                    score=0.8,
                )
            )
        script = member_ending(names, "constants.pkl") is not None and any("/code/" in n or n.startswith("code/")
                                                                           for n in names)
        for info in infos:
            if info.is_dir() or not info.file_size:
                continue
            found.extend(_inspect_member(archive, info, name, depth, script))
    return found


def _leaves(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    parts = name.replace("\\", "/").split("/")
    return (name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":")
            or stat.S_ISLNK(info.external_attr >> 16))


def _inspect_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, depth: int, script: bool
) -> list[Danger]:
    with archive.open(info) as file:
        head = file.read(64)
    shown = printable(info.filename)
    named = info.filename.lower().endswith((".pkl", ".pickle"))
    binary = head[:1] == b"\x80" and looks_like_pickle(head) and not info.filename.split("/")[-1].isdigit()
    if named or binary:
        if info.file_size > LARGEST_PICKLE:
            raise BrokenFile(
                f"{name}: the pickle {shown!r} has {info.file_size} bytes.", "Pickles that large are refused."
            )
        data = read_member(archive, info.filename, LARGEST_PICKLE)
        try:
            return inspect_stream(io.BytesIO(data), shown, len(data), script=script)
        except BrokenFile:
            if named:
                raise
            return []  # raw numbers that happen to begin like a pickle
    if head[:4] == b"PK\x03\x04":
        if depth >= 2 or info.file_size > LARGEST_NESTED:
            raise BrokenFile(
                f"{name}: the archive {shown!r} inside is too deep or too large.", "Files like that are refused."
            )
        return inspect_archive(io.BytesIO(read_member(archive, info.filename, LARGEST_NESTED)), shown, depth=depth + 1)
    return []
