"""What the card of every method must say, whatever its contract."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


class NotTested(Exception):
    """The promise says nothing about this method on these twins."""


def card_is_complete(method: Any, checks: Sequence[Callable[..., None]]) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults.

    checks: those of the method's contract, which alone can be known to fail.
    """
    card = type(method).card
    for field in ("name", "paper", "url", "misses", "summary"):
        assert str(getattr(card, field)).strip(), f"the card of {card.name!r} has an empty {field!r}."
    assert card.url.startswith("https://"), f"{card.name}: {card.url!r} is no https address."
    assert card.modalities, f"{card.name} names no modality."
    assert is_dataclass(method), f"{card.name} is not a dataclass: its parameters could not be reported."
    known = {f.name for f in fields(method)}
    assert set(card.quick) <= known, f"{card.name}: quick names {set(card.quick) - known}, which are no parameters."
    names = {check.__name__ for check in checks}
    failing = {name.split("/")[0] for name in card.fails}
    assert failing <= names, f"{card.name}: fails names {failing - names}, which are no checks."
    assert method == copy.deepcopy(method), f"{card.name} does not equal its own copy: is it frozen?"
