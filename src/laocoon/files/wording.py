"""Text from a file, made fit for one line of a message."""

from __future__ import annotations

import re
import unicodedata


def printable(text: object, limit: int = 160) -> str:
    """One line without control characters or terminal escapes, at most `limit` characters."""
    plain = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", str(text))  # a library's colours: whole, not their first byte
    clean = re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "�" for c in plain)).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def visible(text: object) -> str:
    """The text with everything that a reader would not see named: zero-width, control and odd blank characters."""
    return "".join(c if c in " \n\t" or (c.isprintable() and not c.isspace() and not _hidden(c))
                   else f"⟨U+{ord(c):04X}⟩" for c in str(text))


def _hidden(c: str) -> bool:
    """Marks that join what stands before them, or fill no space: selectors, fillers, soft hyphens."""
    return unicodedata.category(c) in ("Cf", "Cc", "Cs", "Co") or c in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" \
        or "\ufe00" <= c <= "\ufe0f"


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message that says something."""
    for line in str(error).splitlines():
        if line.strip():
            return printable(line, limit)
    return type(error).__name__
