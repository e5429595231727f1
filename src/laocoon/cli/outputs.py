"""Where reports go: checked before a scan starts, written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from laocoon.core.errors import InputError
from laocoon.files.wording import printable

NEEDED = 32 * 2**20  # free bytes; an HTML report with many pictures is far below
DEFAULT = "report.html"
STDOUT = "-"
_OURS = b'<meta name="generator" content="Laocoon'


@dataclass(frozen=True)
class Outputs:
    """Files to write, by kind ("html", "json", "sarif"); "-" stands for standard output."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def to_stdout(self) -> bool:
        return STDOUT in self.files.values()

    @property
    def written(self) -> list[str]:
        """Names of files, for the reader."""
        return [name for name in self.files.values() if name != STDOUT]

    def write(self, kind: str, text: str) -> None:
        """Write one report; the old one stays if that fails."""
        name = self.files[kind]
        if name == STDOUT:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        place = Path(name)
        part = ""
        try:
            handle, part = tempfile.mkstemp(prefix=f".{place.name[:40]}.", suffix=".part", dir=place.parent)
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, place)
        except OSError as error:
            if part and os.path.exists(part):
                os.unlink(part)
            raise InputError(
                f"the report {printable(name)} cannot be written ({error.strerror}).",
                "The verdict above stands; make room, or name another place.",
            ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def prepare(html: str | None, json: str | None, sarif: str | None, inputs: tuple[str, ...]) -> Outputs:
    """Check every place that will be written. Raises InputError before any work is done."""
    notes: list[str] = []
    files: dict[str, str] = {}
    for kind, name in (("json", json), ("sarif", sarif)):
        if name is not None:
            files[kind] = name
    if html is not None:
        if html.lower() != "none":
            files["html"] = html
    else:
        name = free_default(DEFAULT)
        try:
            check_place("html", name, ())
            files["html"] = name
        except InputError as error:
            notes.append(f"no HTML report: {error.problem}")
    if list(files.values()).count(STDOUT) > 1:
        raise InputError("two reports are to go to standard output.", "Give one of them a file name.")
    real = [os.path.realpath(n) for n in files.values() if n != STDOUT]
    if len(set(real)) != len(real):
        raise InputError("two reports are to go to the same file.", "Give each its own name.")
    for kind, name in files.items():
        if name != STDOUT:
            check_place(kind, name, inputs)
    return Outputs(files, tuple(notes))


def free_default(wanted: str) -> str:
    """The wanted name, or the next free one where that is somebody else's file."""
    for k in range(100):
        name = wanted if k == 0 else f"{Path(wanted).stem}-{k}.html"
        place = Path(name)
        try:
            if not place.exists():
                return name
            if place.is_file():
                with place.open("rb") as file:
                    if _OURS in file.read(2000):
                        return name
        except OSError:
            continue
    return wanted


def check_place(kind: str, name: str, inputs: tuple[str, ...]) -> None:
    """Raises InputError where a file cannot be written."""
    if not name or "\0" in name:
        raise InputError(f"--{kind} is {name!r}.", "Give a file name.")
    place, shown = Path(name), printable(name)
    if any(os.path.realpath(name) == os.path.realpath(i) for i in inputs if "\0" not in i):
        raise InputError(f"--{kind} {shown} would overwrite what is to be scanned.", "Name another file.")
    try:
        if place.is_dir():
            raise InputError(f"--{kind} {shown} is a folder.", "Give a file name in it.")
        if not place.parent.is_dir():
            raise InputError(
                f"--{kind} {shown}: the folder {printable(place.parent)} does not exist.", "Make it first."
            )
        if place.exists() and not os.access(place, os.W_OK):
            raise InputError(f"--{kind} {shown} may not be written by this user.", "Name another file.")
        with tempfile.TemporaryFile(prefix=".laocoon-", dir=place.parent) as trial:
            trial.write(b"\0" * 65536)
        free = shutil.disk_usage(place.parent).free
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else error.strerror
        raise InputError(
            f"--{kind} {shown} cannot be written ({what}).",
            "Make room." if full else "Name another place, or change its permissions.",
        ) from None
    if free < NEEDED:
        raise InputError(f"--{kind} {shown}: only {free} bytes are free there.", f"{NEEDED} are needed; make room.")
