"""Parameters of a method from the command line: `--set name=value,name=value`, checked against its fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from laocoon.core.errors import InputError
from laocoon.files.wording import printable

M = TypeVar("M")


def chosen(methods: Sequence[type[M]], name: str, told: Sequence[str] | None) -> M:
    """The method of that name under these parameters. InputError names what does not fit."""
    known = {m.card.name: m for m in methods}  # type: ignore[attr-defined]
    if name not in known:
        raise InputError(f"there is no method {printable(name, 40)!r}.", f"Known: {', '.join(sorted(known))}.")
    kinds = {f.name: f.type for f in fields(known[name])}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in told or ():
        key, equals, text = (p.strip() for p in part.partition("="))
        if not equals or key not in kinds:
            raise InputError(f"--set {printable(part, 60)} is no parameter of {name}.",
                             f"It has {', '.join(kinds)}; write name=value.")
        values[key] = _value(key, str(kinds[key]), text)
    return known[name](**values)


def _value(key: str, kind: str, text: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            return int(text)
        if kind == "float":
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (KeyError, ValueError):
        raise InputError(f"--set {key}={printable(text, 40)} is no {kind}.", f"{key} is a {kind}.") from None
    return text


def checked_device(name: str) -> Any:
    """A device that is there."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {printable(name, 40)} is not there.", "Use cpu, cuda or cuda:N.") from None
    return device
