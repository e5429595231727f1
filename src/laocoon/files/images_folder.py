"""A folder of images per class, or a flat folder of images without labels."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_decode import LARGEST_BYTES, SUFFIXES, Frame, decode
from laocoon.files.images_source import Picture, Source
from laocoon.files.wording import printable

MOST_FILES = 2_000_000
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


@dataclass
class _Listing:
    """Images of one folder, and what else lay there."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    outside: int = 0  # links that lead out of the data folder
    others: list[str] = field(default_factory=list)


def open_folder(root: Path) -> Source:
    """The images under `root`, sorted by name."""
    inside = root.resolve()
    top = _list(root, inside)
    notes = []
    if top.others:
        notes.append(f"{len(top.others)} files that are no images were left out ({printable(top.others[0], 60)})")
    outside = top.outside
    if not top.folders:
        if not top.images:
            raise InputError(
                f"the folder {printable(root)} holds no images{_why(top)}.", f"Images end in {', '.join(SUFFIXES)}."
            )
        return Source(len(top.images), None, (), _reader(top.images, inside), notes=(*notes, *_left(outside)),
                      paths=top.images)
    paths: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    deeper: list[str] = []
    for folder in top.folders:
        listing = _list(folder, inside)
        outside += listing.outside
        deeper += [f.name for f in listing.folders[:1]] if not listing.images else []
        labels += [len(names)] * len(listing.images)
        paths += listing.images
        names.append(folder.name)
        if len(paths) > MOST_FILES:
            raise InputError(f"the folder {printable(root)} holds more than {MOST_FILES} images.", "Pass a part of it.")
    if not paths:
        top.outside = outside  # the reason may lie in the folders of classes
        if deeper and any(n.lower() in _SPLITS for n in names):
            raise InputError(
                f"the folder {printable(root)} holds splits ({printable(', '.join(names), 80)}), not classes.",
                f"Pass one of them, for instance {printable(root / names[-1])}.",
            )
        raise InputError(
            f"the folders in {printable(root)} hold no images{_why(top)}.",
            "It must be <folder>/<class>/<image>, or a folder of images without labels.",
        )
    if top.images:
        notes.append(f"{len(top.images)} images beside the folders of classes were left out")
    return Source(
        len(paths),
        np.asarray(labels, np.int64),
        tuple(names),
        _reader(paths, inside),
        "folders",
        (*notes, *_left(outside)),
        paths=paths,
    )


def _left(outside: int) -> tuple[str, ...]:
    return (f"{outside} links that lead out of the data folder were left out",) if outside else ()


def _why(top: _Listing) -> str:
    if top.outside:
        return f" ({top.outside} links lead out of it and are not followed)"
    if any(o.lower().endswith(".svg") for o in top.others):
        return " (SVG is not made of pixels)"
    return f" (but {len(top.others)} other files, such as {printable(top.others[0], 60)})" if top.others else ""


def _list(folder: Path, inside: Path) -> _Listing:
    found = _Listing()
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= MOST_FILES:
                    raise InputError(
                        f"the folder {printable(folder)} holds more than {MOST_FILES} files.", "Pass a part of it."
                    )
                if not entry.name.startswith((".", "__MACOSX")):
                    _sort_in(entry, inside, found)
    except OSError as error:
        raise InputError(
            f"the folder {printable(folder)} cannot be read ({error.strerror}).", "Check the path and its permissions."
        ) from None
    found.images.sort()
    found.folders.sort()
    found.others.sort()
    return found


def _sort_in(entry: os.DirEntry[str], inside: Path, found: _Listing) -> None:
    path = Path(entry.path)
    if entry.is_symlink() and not path.resolve().is_relative_to(inside):
        found.outside += 1
    elif entry.is_dir():
        found.folders.append(path)
    elif entry.is_file() and path.suffix.lower() in SUFFIXES:
        found.images.append(path)
    else:
        found.others.append(entry.name)


def _reader(paths: Sequence[Path], inside: Path) -> _FolderRead:
    return _FolderRead(tuple(paths), inside)


@dataclass(frozen=True)
class _FolderRead:
    """Reads the images of a folder by their row."""

    paths: tuple[Path, ...]
    inside: Path

    def __call__(self, rows: Sequence[int], frame: Frame) -> Iterator[Picture]:
        for row in rows:
            path = self.paths[row]
            try:
                yield Picture(row, decode(_bytes(path), path.name, frame))
            except BrokenFile as error:
                yield Picture(row, None, error)


def _bytes(path: Path) -> bytes:
    """At most a byte more than is allowed, from a regular file: a pipe would never end."""
    try:
        with open(path, "rb", opener=lambda p, f: os.open(p, f | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BrokenFile(f"{printable(path.name)} is not a regular file.", "Leave it out.")
            return file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise BrokenFile(
            f"the image {printable(path.name)} cannot be read ({error.strerror}).", "Check its permissions."
        ) from None
