"""A modality as plain data, for files that are read again: a guard's folder, a model that `laocoon train` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laocoon.core.errors import BrokenFile
from laocoon.core.subject import Modality
from laocoon.files.wording import first_line
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text

MOST_TOKENS, LONGEST, MOST_COLUMNS = 2**20, 4096, 4096


def written(modality: Modality, *, words: bool) -> dict[str, Any]:
    """What a modality is. words: with the vocabulary; else only how many tokens there are."""
    if isinstance(modality, Text):
        known: dict[str, Any] = {"tokens": len(modality.vocabulary)}
        if words:
            known = {"vocabulary": list(modality.vocabulary),
                     "tokenizer": None if modality.tokenizer is None else modality.tokenizer.to_str()}
        return {"name": modality.name, "length": modality.length, "special": list(modality.special), **known}
    if isinstance(modality, Tabular):
        return {"name": modality.name, "columns": list(modality.columns), "low": list(modality.low),
                "high": list(modality.high), "kinds": list(modality.kinds), "fixed": list(modality.fixed),
                "allowed": [list(a) for a in modality.allowed], "words": [list(w) for w in modality.words]}
    return {"name": modality.name}


def read(told: Mapping[str, Any]) -> Modality:
    """What `written` wrote; BrokenFile where it is not that."""
    try:
        if told["name"] == "text":
            return _text(told)
        if told["name"] == "tabular":
            return _table(told)
        if told["name"] == "image":
            return Image()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenFile(f"what kind of inputs the file speaks of cannot be read ({first_line(error, 80)}).",
                         "It is damaged.") from None
    raise BrokenFile(f"the file speaks of inputs of the kind {str(told['name'])[:40]!r}.", "It is damaged.")


def _text(told: Mapping[str, Any]) -> Text:
    length, count = int(told["length"]), int(told["tokens"]) if "tokens" in told else len(told["vocabulary"])
    if not (1 <= length <= LONGEST and 1 <= count <= MOST_TOKENS):
        raise ValueError(f"{count} tokens, texts of {length}")
    words = tuple(map(str, told["vocabulary"])) if "vocabulary" in told else tuple(f"token {i}" for i in range(count))
    special = tuple(int(i) for i in told["special"])
    tokenizer = None
    if told.get("tokenizer") is not None:
        from laocoon.files.text_tokenizer import parsed

        tokenizer = parsed(str(told["tokenizer"]))
    return Text(words, length, special, tokenizer)


def _table(told: Mapping[str, Any]) -> Tabular:
    numbers = lambda key: tuple(float(v) for v in told[key])  # noqa: E731
    columns = tuple(map(str, told["columns"]))
    if not 1 <= len(columns) <= MOST_COLUMNS:
        raise ValueError(f"{len(columns)} columns")
    return Tabular(columns, numbers("low"), numbers("high"), tuple(map(str, told["kinds"])),
                   tuple(tuple(float(v) for v in a) for a in told["allowed"]),
                   tuple(tuple(map(str, w)) for w in told["words"]), tuple(map(str, told["fixed"])))
