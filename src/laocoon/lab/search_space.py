"""What a search may vary: a range for every parameter of an attack, read off its dataclass.

A field may declare its own, `field(default=…, metadata={"range": (low, high)})` or `{"choices": (…)}`; a user's range
goes before both. Otherwise it follows from type and default: a positive number may be a quarter to four times its
default, on a logarithmic scale (a share, with a default of at most 1, stays a share); a positive whole number half to
twice; a flag or a Literal any value that leaves the goal what it is, because another goal is another attack. Everything
else is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Attack, Plan
from laocoon.files.wording import printable
from laocoon.verdict.examination import Crash, attempted


@dataclass(frozen=True)
class Range:
    """From low to high, both included."""

    low: float
    high: float
    whole: bool = False
    log: bool = True

    def holds(self, value: Any) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high

    def worded(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.log else "")


@dataclass(frozen=True)
class Choice:
    values: tuple[str | int | float | bool, ...]

    def holds(self, value: Any) -> bool:
        return value in self.values

    def worded(self) -> str:
        return ", ".join(map(str, self.values))


Dimension = Range | Choice
Space = Mapping[str, Dimension]


def space_of(attack: Attack, plan: Plan, own: Space | None = None, fixed: frozenset[str] = frozenset()) -> Space:
    """Name -> what it may be, in field order; `own` goes before everything, and `fixed` stays as `attack` has it."""
    own, hints = own or {}, get_type_hints(type(attack))
    names = [f.name for f in fields(attack)]  # type: ignore[arg-type]
    for name in (*own, *sorted(fixed)):
        if name not in names:
            raise InputError(f"{attack.card.name} has no parameter {printable(name, 60)!r}.",
                             f"It has {', '.join(names) or 'none'}.")
    found: dict[str, Dimension] = {}
    for field in fields(attack):  # type: ignore[arg-type]
        name, value = field.name, getattr(attack, field.name)
        if name in fixed:
            continue
        dimension = own.get(name) or _declared(field.metadata, value) or _derived(attack, name, hints[name], plan)
        if dimension is not None:
            found[name] = _fitting(name, hints[name], dimension)
    if not found:
        raise InputError(f"{attack.card.name} has no parameter left to search.", "Fix fewer, or name a range.")
    return found


def range_from(text: str) -> tuple[str, Dimension]:
    """`name=low:high` or `name=a,b,c`, as typed."""
    name, equals, rest = text.partition("=")
    wrong = InputError(f"the range {printable(text, 80)!r} cannot be read.",
                       "Write rate=0.01:0.3 or pattern=noise,smooth.")
    if not equals or not name or not rest:
        raise wrong
    if ":" not in rest:
        return name, Choice(tuple(_value(word) for word in rest.split(",")))
    try:
        low, high = (float(v) for v in rest.split(":"))
    except ValueError:
        raise wrong from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise wrong
    return name, Range(low, high, log=low > 0)


def _value(word: str) -> str | int | float | bool:
    if word in ("true", "false"):
        return word == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _declared(metadata: Mapping[Any, Any], value: Any) -> Dimension | None:
    if "range" in metadata:
        low, high = metadata["range"]
        return Range(low, high, whole=isinstance(value, int), log=low > 0)
    return Choice(tuple(metadata["choices"])) if "choices" in metadata else None


def _derived(attack: Attack, name: str, hint: Any, plan: Plan) -> Dimension | None:
    value = getattr(attack, name)
    if hint is bool or get_origin(hint) is Literal:
        values = (False, True) if hint is bool else get_args(hint)
        goal = _goal(attack, plan)
        same = tuple(v for v in values if v == value or _goal(replace(attack, **{name: v}), plan) == goal)  # type: ignore[type-var]
        return Choice(same) if len(same) > 1 else None
    if hint is int and value > 0:
        return Range(max(1, value // 2), 2 * value, whole=True, log=value > 8)
    if hint is float and value > 0 and math.isfinite(value):
        return Range(value / 4, min(4 * value, 1.0) if value <= 1 else 4 * value)
    return None


def _goal(attack: Attack, plan: Plan) -> str:
    """In words; a crash is a goal of its own."""
    tried = attempted(lambda: attack.trigger(plan, Context()).goal.describe())
    return tried.reason if isinstance(tried, Crash) else tried


def _fitting(name: str, hint: Any, dimension: Dimension) -> Dimension:
    """The dimension in the field's own type, or a refusal."""
    wrong = InputError(f"{name} cannot be {dimension.worded()}: it is {getattr(hint, '__name__', hint)}.",
                       "Give values of its type.")
    if isinstance(dimension, Range):
        if hint is int:
            if not (float(dimension.low).is_integer() and float(dimension.high).is_integer()):
                raise wrong
            return replace(dimension, whole=True)
        if hint is not float:
            raise wrong
        return replace(dimension, whole=False)
    allowed = get_args(hint) if get_origin(hint) is Literal else None
    for value in dimension.values:
        kinds: tuple[type, ...] = (int, float) if hint is float else (hint,) if isinstance(hint, type) else ()
        fits = value in allowed if allowed is not None else (
            isinstance(value, kinds) and (hint is bool or not isinstance(value, bool)))
        if not fits:
            raise wrong
    return dimension
