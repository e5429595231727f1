"""Text from a file, made fit for one line of a message."""

from __future__ import annotations

import re


def printable(text: object, limit: int = 160) -> str:
    """One line without control characters or terminal escapes, at most `limit` characters."""
    clean = re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "�" for c in str(text))).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message that says something."""
    for line in str(error).splitlines():
        if line.strip():
            return printable(line, limit)
    return type(error).__name__
