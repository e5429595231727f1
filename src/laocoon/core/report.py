"""What a method says. JSON by construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from typing import Any


class Verdict(str, Enum):
    SUSPICIOUS = "SUSPICIOUS"
    NO_EVIDENCE = "NO_EVIDENCE"
    INCONCLUSIVE = "INCONCLUSIVE"


def noun(modality: str) -> str:
    """What samples of a modality are called."""
    return {"image": "images", "text": "texts", "tabular": "records"}.get(
        modality.removesuffix("_encoder"), "samples")


@dataclass(frozen=True)
class Finding:
    """One observation. `score`: higher is more suspicious, always, everywhere.

    `conclusive` findings need no reference models: a file that would run code, a trigger constant in a graph.
    """

    rule: str
    where: str  # a goal, a class, a layer, a file: what is meant, in words
    score: float
    explanation: str
    target_classes: tuple[int, ...] = ()
    conclusive: bool = False
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What one method found on one subject. Plain data: no tensor, no object."""

    method: str
    params: Mapping[str, Any]
    findings: tuple[Finding, ...]
    examined: tuple[str, ...]
    skipped: tuple[str, ...]
    reason: str  # empty, or why the method was skipped or stopped early
    subject: str
    seed: int
    spent: float
    seconds: float
    version: str
    complete: bool = True

    @property
    def score(self) -> float:
        """The largest finding's score; -inf when nothing was found."""
        return max((f.score for f in self.findings), default=-math.inf)

    def statistics(self) -> dict[str, float]:
        """Largest score per rule: what fusion sees."""
        best: dict[str, float] = {}
        for f in self.findings:
            best[f.rule] = max(best.get(f.rule, -math.inf), f.score)
        return best

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)  # type: ignore[no-any-return]

    def canonical(self) -> dict[str, Any]:
        """Without times: two runs with one seed agree on this."""
        data = self.to_dict()
        data.pop("seconds")
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Report:
        findings = tuple(
            Finding(**{**f, "target_classes": tuple(f["target_classes"])}) for f in data["findings"]
        )
        return Report(**{**data, "findings": findings, "examined": tuple(data["examined"]),
                         "skipped": tuple(data["skipped"])})


@dataclass(frozen=True)
class Evidence:
    """A verified candidate: the recovered trigger judged on samples it was not fitted on.

    All success rates are fractions with the number of samples behind them; `low`, `high` a 95 % interval.
    """

    goal: str
    target_classes: tuple[int, ...]
    family: str
    method: str
    size: float
    unit: str
    success: float
    low: float
    high: float
    samples: int
    natural_control: float  # success of the same search, at the same size, towards the other classes
    checks: Mapping[str, float] = field(default_factory=dict)  # shift, jpeg, background, unlearning …
    shown: str = ""  # the trigger in words, where it is no picture: tokens, columns with their values


@dataclass(frozen=True)
class Example:
    """A held-out text before and after the trigger, in pieces: what the trigger changed is marked."""

    evidence: int  # place among the report's evidence
    pieces: tuple[tuple[str, bool], ...]  # the text with the trigger; True: the trigger put it there
    before: int  # the class that the model answers without the trigger
    after: int
    label: int


@dataclass(frozen=True)
class Power:
    """How often this kind of backdoor would have been found: found of tried, with a 95 % interval."""

    kind: str
    found: int
    tried: int
    low: float
    high: float
    source: str  # "similar reference models" or "positive control"
    core: bool = True


@dataclass(frozen=True)
class Calibration:
    """What the p-value was computed from."""

    profile: str
    references: int
    rank: int  # references at least as suspicious, this model included
    widened: float = 1.0  # factor applied to p because the subject is unlike the references
    distance: float = 0.0
    digest: str = ""
    note: str = ""


@dataclass(frozen=True)
class Certificate:
    """What was proven. `holds` is None where neither a proof nor a counter-example was found."""

    method: str
    statement: str  # in one sentence, with its numbers
    assumptions: tuple[str, ...]  # under which it is true
    inputs: str  # for which inputs it was proven
    holds: bool | None
    values: Mapping[str, Any] = field(default_factory=dict)  # figures, per input where there are some; JSON-able
    reason: str = ""  # why it does not hold, or could not be decided
    counterexample: Any = field(default=None, repr=False, compare=False)  # tensors by name; not in the JSON

    def to_dict(self) -> dict[str, Any]:
        slim = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "counterexample"}
        return {"schema": "laocoon-certificate/1", **_plain(slim)}


@dataclass(frozen=True)
class ScanReport:
    """The answer of a scan. `to_dict` is the public JSON; tensors (candidates, pictures) stay out of it."""

    verdict: Verdict
    reason: str  # one sentence; for INCONCLUSIVE the likely cause and the remedy
    p_value: float | None
    score: float
    alpha: float
    target_classes: tuple[int, ...]  # most suspected first
    findings: tuple[Finding, ...]  # most suspicious first
    evidence: tuple[Evidence, ...]
    power: tuple[Power, ...]
    calibration: Calibration | None
    class_scores: tuple[float, ...]  # per class, higher = more suspicious, same scale as `score`
    reports: tuple[Report, ...]
    examined: tuple[str, ...]
    skipped: Mapping[str, str]  # method -> reason
    misses: Mapping[str, str]  # method -> what it is known to miss
    subject: Mapping[str, Any]  # path, format, sha256, classes, input_shape, parameters, class_names, samples …
    budget: str
    spent: float
    seconds: float
    seed: int
    version: str
    command: str = ""
    accepted: tuple[str, ...] = ()  # fingerprints of findings accepted by a baseline
    examples: tuple[Example, ...] = ()  # of texts: a few held-out ones with the trigger in place
    candidates: tuple[Any, ...] = field(default=(), repr=False, compare=False)  # Candidate, same order as evidence
    pictures: Any = field(default=None, repr=False, compare=False)  # a few held-out inputs, [n, channels, h, w]

    @property
    def exit_code(self) -> int:
        """0 no evidence, 1 findings, 3 inconclusive (2 is for usage errors and failures)."""
        return {Verdict.NO_EVIDENCE: 0, Verdict.SUSPICIOUS: 1, Verdict.INCONCLUSIVE: 3}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; non-finite numbers become None."""
        slim = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in ("candidates", "pictures")}
        return {"schema": "laocoon-scan/1", **_plain(slim)}

    def canonical(self) -> dict[str, Any]:
        """Without times and the command line: two runs with one seed agree on this."""
        data = self.to_dict()
        for key in ("seconds", "command"):
            data.pop(key)
        for report in data["reports"]:
            report.pop("seconds")
        return data

    def _repr_html_(self) -> str:
        colour = {"SUSPICIOUS": "#b3261e", "NO_EVIDENCE": "#1b6e3c", "INCONCLUSIVE": "#8a5a00"}[self.verdict.value]
        rows = "".join(f"<tr><td>{escape(e.goal)}</td><td>{escape(e.family)}</td><td>{e.size:.3g} {escape(e.unit)}</td>"
                       f"<td>{e.success:.0%}</td><td>{e.natural_control:.0%}</td></tr>" for e in self.evidence)
        table = ("<table><tr><th>goal</th><th>trigger family</th><th>size</th><th>held-out success</th>"
                 f"<th>natural control</th></tr>{rows}</table>" if rows else "")
        return f"<div><b style='color:{colour}'>{self.verdict.value}</b> {escape(_headline(self))}{table}</div>"


def _headline(report: ScanReport) -> str:
    """One sentence for a person: what was found and how sure."""
    p = f"p = {report.p_value:.3g}" if report.p_value is not None else "no p-value"
    return f"{report.reason} ({p}, alpha {report.alpha:g})"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__dataclass_fields__"):
        return {f: _plain(getattr(value, f)) for f in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
