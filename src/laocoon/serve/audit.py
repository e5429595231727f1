"""The audit log: one JSON object a line. No answer leaves before its line is written.

Lines are only ever appended. A log that has reached its size is set aside under a name with the time, never deleted; a
file that was moved away by somebody else is opened anew on SIGHUP. A line that a full disk cut short is taken back; one
that a killed process left is closed by a line break when the log is opened again. One process writes to a log: it
holds a lock, which the system releases when the process dies.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laocoon.core.errors import InputError
from laocoon.files.wording import printable
from laocoon.serve.refusal import AuditFailed


class Audit:
    """Not for several threads: one worker writes (see `Gathered`)."""

    def __init__(self, path: Path, *, sync: bool, largest: int) -> None:
        self.path, self.sync, self.largest = path, sync, largest
        self.set_aside = 0
        self._file = -1
        try:
            self._open()
        except OSError as error:
            raise InputError(
                f"the audit log {printable(path)} cannot be written ({error.strerror}).", "Name another with --audit."
            ) from None

    def _open(self) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")
            if not size and self.sync:
                _sync_folder(self.path.absolute().parent)  # else the name of a new file may be lost
        except BlockingIOError:
            os.close(file)
            raise InputError(
                f"another process writes to the audit log {printable(self.path)}.", "Name another with --audit."
            ) from None
        except OSError:
            os.close(file)
            raise
        self.close()
        self._file = file

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """All of the lines, on disk if so told; AuditFailed, and none of them, otherwise."""
        text = b"".join(json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n" for line in lines)
        try:
            self._rotate(len(text))
            before = os.fstat(self._file).st_size
            try:
                self._append(text)
            except OSError:
                os.ftruncate(self._file, before)
                raise
        except OSError as error:
            raise AuditFailed(f"the audit log cannot be written ({error.strerror}).", "Make room for it.") from None

    def _append(self, text: bytes) -> None:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if self.sync:
            os.fdatasync(self._file)

    def _rotate(self, more: int) -> None:
        size = os.fstat(self._file).st_size
        if not size or size + more <= self.largest:
            return
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        aside = self.path
        while aside.exists():
            self.set_aside += 1
            aside = self.path.with_name(f"{self.path.stem}-{now}-{self.set_aside}{self.path.suffix}")
        if self.path.exists():  # else it was set aside before, and no new one could be made
            self.path.rename(aside)
        self._open()

    def reopen(self) -> None:
        """After somebody else moved the file; AuditFailed where a new one cannot be made."""
        try:
            there = self.path.stat() if self.path.exists() else None
            mine = os.fstat(self._file)
            if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
                self._open()
        except OSError as error:
            raise AuditFailed(f"the audit log cannot be opened anew ({error.strerror}).", "Make room for it.") from None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
