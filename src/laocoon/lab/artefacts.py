"""Artefacts by their content: the address is the digest of the bytes, so that nothing is stored twice or mixed up.

The place is a folder, or any location that fsspec knows (`s3://…`, `gs://…`, `memory://…`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.files.wording import first_line, printable

ADDRESS = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,16}")

T = TypeVar("T")


class Store(Protocol):
    """Where artefacts are."""

    def put(self, data: bytes, ending: str) -> str:
        """Store, unless it is there; returns the address, `<digest>.<ending>`."""

    def get(self, address: str) -> bytes:
        """The bytes, checked against their digest."""


def _address(data: bytes, ending: str) -> str:
    return f"{hashlib.sha256(data).hexdigest()}.{ending}"


def _split(address: str) -> tuple[str, str]:
    if not ADDRESS.fullmatch(address):
        raise InputError(f"{printable(address, 80)!r} is not the address of an artefact.", "The ledger holds others.")
    return address[:2], address[2:]


def _checked(data: bytes, address: str, place: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != address.partition(".")[0]:
        raise BrokenFile(f"artefact {address} in {place} is not what was stored.", "Delete it and run its trial again.")
    return data


@dataclass(frozen=True)
class Folder:
    """Artefacts on a disk: `ab/cdef….safetensors`."""

    root: Path

    def put(self, data: bytes, ending: str) -> str:
        address = _address(data, ending)
        target = self.root.joinpath(*_split(address))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{os.getpid()}.part")  # a kill leaves no half artefact
            part.write_bytes(data)
            part.replace(target)
        return address

    def get(self, address: str) -> bytes:
        target = self.root.joinpath(*_split(address))
        try:
            data = target.read_bytes()
        except OSError as error:
            raise BrokenFile(f"artefact {address} is not in {printable(self.root)} ({error.strerror}).",
                             "Run its trial again, or name the place with --artefacts.") from None
        return _checked(data, address, printable(self.root))


class Remote:
    """Artefacts on any file system of fsspec."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"artefacts at {shown(url)} need fsspec.", "pip install 'laocoon[lab]'") from None
        self.shown = shown(url)
        self._system, self._root = self._told(lambda: fsspec.core.url_to_fs(url))

    def _told(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise InputError(f"artefacts at {self.shown}: {first_line(error)}.",
                             "Check the location, and that its driver is installed.") from None

    def _path(self, address: str) -> str:
        return "/".join([self._root.rstrip("/"), *_split(address)])

    def put(self, data: bytes, ending: str) -> str:
        address = _address(data, ending)
        path = self._path(address)
        system: Any = self._system

        def store() -> None:
            if system.exists(path) and system.size(path) == len(data):
                return
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            with system.transaction:  # where the system has transactions, nothing half is seen
                system.pipe_file(path, data)

        self._told(store)
        return address

    def get(self, address: str) -> bytes:
        path = self._path(address)
        data: bytes = self._told(lambda: self._system.cat_file(path))
        return _checked(data, address, self.shown)


def shown(url: str) -> str:
    """A location without what may be secret in it."""
    return printable(re.sub(r"//[^/@]*@", "//***@", url).partition("?")[0], 120)


def opened(location: str | Path) -> Store:
    """The store at a folder or a URL."""
    if isinstance(location, str) and "://" in location:
        return Remote(location)
    return Folder(Path(location))
