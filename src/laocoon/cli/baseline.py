"""Accepted findings: who answers for them, why, and until when. An acceptance holds for one file's bytes only."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laocoon.core.errors import InputError
from laocoon.files.wording import first_line, printable

LARGEST = 2**20
FORM = 'Each entry of "accepted" has fingerprint, owner, reason and expires (a date, as 2027-01-31).'
_FINGERPRINT = re.compile(r"^[0-9a-f]{32}$")


@dataclass(frozen=True)
class Accepted:
    """One accepted finding."""

    fingerprint: str
    owner: str
    reason: str
    expires: datetime.date

    def __str__(self) -> str:
        return f"{self.owner}, until {self.expires.isoformat()}: {self.reason}"


@dataclass(frozen=True)
class Baseline:
    """What holds today, and what does not any more."""

    valid: tuple[Accepted, ...] = ()
    expired: tuple[Accepted, ...] = ()

    def justifications(self) -> dict[str, str]:
        return {a.fingerprint: str(a) for a in self.valid}


def load_baseline(path: Path, today: datetime.date | None = None) -> Baseline:
    """A baseline from TOML or JSON. Raises InputError for an entry that nobody answers for."""
    shown = printable(path.name)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError(f"the baseline {shown} has more than {LARGEST} bytes.", FORM)
        text = data.decode("utf-8")
        content: Any = (
            json.loads(text) if path.suffix.lower() == ".json" or text.lstrip().startswith("{") else tomllib.loads(text)
        )
    except OSError as error:
        raise InputError(
            f"the baseline {printable(path)} cannot be read ({error.strerror}).", "Check the path."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the baseline {shown} is neither TOML nor JSON ({first_line(error, 120)}).", FORM) from None
    entries = content.get("accepted") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not set(content) <= {"accepted"}:
        raise InputError(f'the baseline {shown} has no list "accepted", or more than that.', FORM)
    accepted = [_entry(entry, k, shown) for k, entry in enumerate(entries, 1)]
    now = today or datetime.date.today()
    return Baseline(tuple(a for a in accepted if a.expires >= now), tuple(a for a in accepted if a.expires < now))


def _entry(entry: Any, place: int, shown: str) -> Accepted:
    where = f"entry {place} of the baseline {shown}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {type(entry).__name__}.", FORM)
    unknown = sorted(set(map(str, entry)) - {"fingerprint", "owner", "reason", "expires"})
    if unknown:
        raise InputError(f"{where} has an unknown field {printable(unknown[0], 60)!r}.", FORM)
    texts = {}
    for name in ("fingerprint", "owner", "reason"):
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where} has no {name}.", FORM)
        texts[name] = value.strip()
    if not _FINGERPRINT.match(texts["fingerprint"]):
        raise InputError(
            f"{where} has the fingerprint {printable(texts['fingerprint'], 60)!r}.",
            "Copy the 32 hexadecimal digits from a report.",
        )
    expires = entry.get("expires")
    if isinstance(expires, datetime.datetime):
        expires = expires.date()
    if isinstance(expires, str):
        try:
            expires = datetime.date.fromisoformat(expires)
        except ValueError:
            raise InputError(f"{where} expires {printable(expires, 40)!r}.", "Write a date as 2027-01-31.") from None
    if not isinstance(expires, datetime.date):
        raise InputError(f"{where} has no expires.", FORM)
    return Accepted(texts["fingerprint"], printable(texts["owner"], 200), printable(texts["reason"], 500), expires)
