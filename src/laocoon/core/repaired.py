"""What a repair says: what was tried, what was chosen, and what shows that the backdoor is gone, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from typing import Any

from laocoon.core.report import _plain


class Status(str, Enum):
    REMOVED = "removed"
    REDUCED = "reduced"
    NOT_REMOVED = "not removed"
    NOTHING = "nothing to remove"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Rate:
    """A share of samples with its 95 % interval."""

    hits: int
    tried: int
    value: float  # NaN where nothing was tried
    low: float
    high: float


@dataclass(frozen=True)
class Residue:
    """What is left of one recovered trigger on a model, and what a new search towards the same goal finds there."""

    success: Rate  # of the trigger as it was recovered
    searched_size: float = math.nan  # of the smallest trigger of the same family that a new search finds
    searched_success: float = math.nan  # of that, on the samples that it was fitted on
    natural_size: float = math.nan  # median of the same search towards other classes

    @property
    def ease(self) -> float:
        """How much smaller than natural the newly searched trigger is, from 0 (not at all) to 1."""
        if not (math.isfinite(self.searched_size) and self.natural_size > 0):
            return 0.0
        return min(1.0, max(0.0, 1 - self.searched_size / self.natural_size))


@dataclass(frozen=True)
class Drop:
    """Clean accuracy lost, as a share, with the 95 % interval of the paired difference."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """One repair of the portfolio, judged without an oracle. `score`: the lower the better; None where inadmissible."""

    repair: str
    stage: int
    after: str  # the repair whose result it started from; empty: the model as it came
    params: Mapping[str, Any]
    reason: str  # empty, or why there is no result or why it is not admissible
    accuracy: Rate | None
    drop: Drop | None
    residues: tuple[Residue, ...]
    score: float | None
    spent: float
    seconds: float
    chosen: bool = False


@dataclass(frozen=True)
class TriggerChange:
    """A recovered trigger before and after, on samples that neither search, repair nor choice has seen."""

    goal: str
    target_classes: tuple[int, ...]
    family: str
    method: str
    size: float
    unit: str
    before: Residue
    after: Residue
    control_before: Rate  # a meaningless trigger of the same family and size
    control_after: Rate
    shown: str = ""  # in words, where its family has any: the tokens, the columns with their values


@dataclass(frozen=True)
class Reactivation:
    """How easily a few poisoned samples bring the backdoor back, against planting a meaningless trigger instead."""

    goal: str
    shots: int  # poisoned samples
    success: Rate
    control: Rate  # the same with a meaningless trigger of the same family and size

    @property
    def easier(self) -> bool:
        """Certainly easier: the intervals do not touch."""
        return self.success.low > self.control.high


@dataclass(frozen=True)
class Scanned:
    """The answer of a scan, before or after."""

    verdict: str
    reason: str
    p_value: float | None
    score: float
    alpha: float
    target_classes: tuple[int, ...]
    method: str = ""  # which recovered the trigger that the verdict rests on; empty where there is none


@dataclass(frozen=True)
class Check:
    """One condition of the status. None: could not be judged."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class RepairReport:
    """The answer of a repair. `to_dict` is the public JSON; networks, triggers and pictures stay out of it."""

    status: Status
    reason: str
    checks: tuple[Check, ...]  # the rule of the status, condition by condition
    repairs: tuple[str, ...]  # what was applied, in this order; empty: the model is as it came
    scan_before: Scanned
    scan_after: Scanned | None
    triggers: tuple[TriggerChange, ...]
    reactivations: tuple[Reactivation, ...]
    accuracy_before: Rate
    accuracy_after: Rate
    drop: Drop
    max_drop: float
    trials: tuple[Trial, ...]
    misses: Mapping[str, str]  # repair -> what it is known to miss, of those applied
    subject: Mapping[str, Any]
    samples: Mapping[str, int]  # how many to fit, to choose and to prove with
    notes: tuple[str, ...]
    budget: str
    spent: float
    seconds: float
    seed: int
    version: str
    command: str = ""
    written: Mapping[str, Any] = field(default_factory=dict)  # path, format, sha256, notes
    mended: Any = field(default=None, repr=False, compare=False)  # the repaired Subject; the one given if unchanged
    candidates: tuple[Any, ...] = field(default=(), repr=False, compare=False)  # Candidate, the order of `triggers`
    found_after: tuple[Any, ...] = field(default=(), repr=False, compare=False)  # newly searched, same order, or None
    pictures: Any = field(default=None, repr=False, compare=False)  # a few inputs, [n, …]

    @property
    def exit_code(self) -> int:
        """0 removed or nothing to remove, 1 reduced or not removed, 3 inconclusive (2 is for usage and failures)."""
        return {Status.REMOVED: 0, Status.NOTHING: 0, Status.INCONCLUSIVE: 3}.get(self.status, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; non-finite numbers become None."""
        hidden = ("mended", "candidates", "found_after", "pictures")
        slim = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in hidden}
        return {"schema": "laocoon-repair/1", **_plain(slim), "exit_code": self.exit_code}

    def canonical(self) -> dict[str, Any]:
        """Without times, the command line and where it was written: two runs with one seed agree on this."""
        data = self.to_dict()
        for key in ("seconds", "command", "written"):
            data.pop(key)
        for trial in data["trials"]:
            trial.pop("seconds")
        return data

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(t.goal)}</td><td>{escape(t.family)}</td><td>{t.before.success.value:.0%}</td>"
                       f"<td>{t.after.success.value:.0%}</td></tr>" for t in self.triggers)
        table = ("<table><tr><th>goal</th><th>trigger family</th><th>success before</th><th>after</th></tr>"
                 f"{rows}</table>" if rows else "")
        return f"<div><b>{escape(self.status.value)}</b> {escape(self.reason)}{table}</div>"
