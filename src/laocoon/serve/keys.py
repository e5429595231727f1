"""Who may ask. Secrets are held as digests, compared in constant time, and appear in no log."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from laocoon.core.errors import InputError
from laocoon.files.wording import printable

VARIABLE = "LAOCOON_GUARD_KEYS"
SHORTEST = 16  # characters of a secret
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class Key:
    """`name` is what the audit log says; it is no secret."""

    name: str
    digest: bytes = field(repr=False)
    admin: bool = False


@dataclass(frozen=True)
class Keys:
    """No keys at all: everybody may ask, under the name `anonymous`, and nobody may reload."""

    known: tuple[Key, ...]

    def holder(self, authorization: str, api_key: str) -> Key | None:
        """Whose secret it is, given the headers `Authorization: Bearer …` and `X-API-Key`.

        Every key is compared, also after one has matched: how long it takes says nothing.
        """
        if not self.known:
            return Key("anonymous", b"")
        scheme, _, token = authorization.partition(" ")
        secret = token.strip() if scheme.lower() == "bearer" else api_key.strip()
        digest = _digest(secret)
        found = None
        for key in self.known:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path | None, *, anybody: bool) -> Keys:
    """From a file, else from the environment variable (the same lines, or separated by `;`).

    InputError where there are none, unless `anybody` may ask.
    """
    if path is not None:
        try:
            text, place = path.read_text("utf-8"), printable(path)
        except (OSError, UnicodeDecodeError):
            raise InputError(f"the keys in {printable(path)} cannot be read.", "Check path and rights.") from None
    else:
        text, place = os.environ.get(VARIABLE, "").replace(";", "\n"), VARIABLE
    known: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        # A message must not repeat the line: it holds a secret.
        if len(words) not in (2, 3) or not _NAME.fullmatch(words[0]) or words[2:] not in ([], ["admin"]):
            raise InputError(f"line {number} of {place} is not `NAME SECRET` or `NAME SECRET admin`.", "Correct it.")
        if len(words[1]) < SHORTEST:
            raise InputError(f"the secret of {words[0]} in {place} is short.", f"Use {SHORTEST} characters or more.")
        if words[0] in known:
            raise InputError(f"{words[0]} stands twice in {place}.", "Give each key its own name.")
        known[words[0]] = Key(words[0], _digest(words[1]), words[2:] == ["admin"])
    if not known and not anybody:
        raise InputError("there are no API keys.", f"Pass --keys FILE, set {VARIABLE}, or say --open to do without.")
    if known and anybody:
        raise InputError(f"--open was said, but {place} holds keys.", "Leave one of them out.")
    return Keys(tuple(known.values()))
