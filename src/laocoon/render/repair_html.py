"""The report of a repair for a person who decides: before and after, in one self-contained page without scripts.

Everything that came from a model, its file or its data is escaped by the template engine; a content security policy
forbids scripts and whatever is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from laocoon.core.repaired import Rate, RepairReport, Status, Trial, TriggerChange
from laocoon.files.wording import printable
from laocoon.render.html import Bar, Tile
from laocoon.render.pictures import Exhibit, exhibits
from laocoon.render.repair_terminal import points
from laocoon.render.words import amount, duration, number, percent

_LOOKS = {Status.REMOVED: ("NO_EVIDENCE", "✓"), Status.NOTHING: ("NO_EVIDENCE", "○"),
          Status.REDUCED: ("INCONCLUSIVE", "–"), Status.INCONCLUSIVE: ("INCONCLUSIVE", "?"),
          Status.NOT_REMOVED: ("SUSPICIOUS", "!")}
_MEANS = {
    Status.REMOVED: "Every condition below holds for the repaired copy. It was judged by the triggers that the scan "
    "recovered, not by the attacker’s own: read what the repair is known to miss.",
    Status.REDUCED: "The recovered trigger lost most of its power, but not every condition below holds. Do not deploy "
    "the repaired copy where a backdoor would matter.",
    Status.NOT_REMOVED: "The backdoor is still there, or clean accuracy was lost in removing it. Do not deploy the "
    "model.",
    Status.NOTHING: "The scan found nothing that could be removed. That is not “clean”: read its report.",
    Status.INCONCLUSIVE: "Nothing can be shown here. This says neither that the model is safe nor that it is not.",
}
_STATE = {True: "holds", False: "does not hold", None: "could not be judged"}


@dataclass(frozen=True)
class Changed:
    """A trigger before and after, with pictures."""

    title: str
    change: TriggerChange
    before: Exhibit | None
    after: Exhibit | None  # of the trigger that a new search found on the result
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Row:
    """One trial of the portfolio."""

    name: str
    chosen: bool
    success: str
    search: str
    accuracy: str
    drop: str
    score: str
    reason: str
    seconds: str


def to_html(report: RepairReport) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "one_line": printable}
    template = environment.from_string(_asset("repair.html.j2"))
    look, icon = _LOOKS[report.status]
    return template.render(
        report=report, css=Markup(_asset("report.css")), look=look, icon=icon, status=report.status.value,
        title=printable(report.subject.get("path") or "model", 90), means=_MEANS[report.status],
        headline=printable(report.reason[:1].upper() + report.reason[1:], 900),
        tiles=_tiles(report), triggers=_triggers(report), rows=[_row(t) for t in report.trials],
        checks=[(c, _STATE[c.passed]) for c in report.checks],
        reactivations=[(r, (_bar("the recovered trigger", r.success, "hot"),
                            _bar("a meaningless trigger", r.control, "calm"))) for r in report.reactivations],
        accuracies=(_bar("before", report.accuracy_before, "calm"), _bar("after", report.accuracy_after, "calm")),
        lost=points(report.drop.value), lost_low=points(report.drop.low), lost_high=points(report.drop.high),
        allowed=points(report.max_drop), facts=_facts(report), spent=amount(report.spent),
        notes=[printable(n, 400) for n in (*report.notes, *report.written.get("notes", ()),
                                           *(report.subject.get("notes") or ()))],
        seconds=duration(report.seconds))


def _asset(name: str) -> str:
    return (files("laocoon.render") / name).read_text(encoding="utf-8")


def _bar(label: str, rate: Rate, kind: str = "") -> Bar:
    known = rate.tried > 0
    return Bar(label, rate.value if known else None, percent(rate.value), rate.low if known else None,
               rate.high if known else None, kind)


def _tiles(report: RepairReport) -> list[Tile]:
    tiles = []
    if report.triggers:
        t = max(report.triggers, key=lambda c: c.after.success.high)
        tiles.append(Tile(f"{percent(t.before.success.value)} → {percent(t.after.success.value)}",
                          "success of the recovered trigger",
                          f"at most {percent(t.after.success.high)} (95 %)"))
    tiles.append(Tile(f"{percent(report.accuracy_before.value)} → {percent(report.accuracy_after.value)}",
                      "clean accuracy", f"{points(report.max_drop)} points may be lost"))
    if report.scan_after is not None:
        tiles.append(Tile(f"{number(report.scan_before.p_value, 2)} → {number(report.scan_after.p_value, 2)}",
                          "p-value of the scan", f"alpha {report.scan_after.alpha:g}"))
    tiles += [Tile(str(len(report.trials)), "repairs tried", ", then ".join(report.repairs) or "none applied"),
              Tile(duration(report.seconds), "taken", f"{amount(report.spent)} passes")]
    return tiles


def _triggers(report: RepairReport) -> list[Changed]:
    before = exhibits(report.candidates, report.pictures)
    after = exhibits(report.found_after, report.pictures)
    found = []
    for i, change in enumerate(report.triggers):
        bars = (_bar("before", change.before.success, "hot"), _bar("after", change.after.success, "hot"),
                _bar("meaningless, before", change.control_before, "calm"),
                _bar("meaningless, after", change.control_after, "calm"))
        found.append(Changed(printable(change.goal[:1].upper() + change.goal[1:], 160), change,
                             before[i] if i < len(before) else None, after[i] if i < len(after) else None, bars))
    return found


def _row(trial: Trial) -> Row:
    worst = max((r.success.value for r in trial.residues if r.success.tried), default=math.nan)
    searched = [r for r in trial.residues if math.isfinite(r.searched_size)]
    least = max(searched, key=lambda r: r.ease, default=None)
    return Row(
        printable(f"{trial.repair} after {trial.after}" if trial.after else trial.repair, 80), trial.chosen,
        percent(worst), f"{number(least.searched_size)} / {number(least.natural_size)}" if least else "–",
        percent(trial.accuracy.value) if trial.accuracy else "–", points(trial.drop.value) if trial.drop else "–",
        number(trial.score, 2), printable(trial.reason, 300), duration(trial.seconds))


def _facts(report: RepairReport) -> list[tuple[str, str]]:
    s: Mapping[str, Any] = report.subject
    w: Mapping[str, Any] = report.written
    parts = report.samples
    pairs: list[tuple[str, object]] = [
        ("model", s.get("path")), ("format", s.get("format")), ("sha256 before", s.get("sha256")),
        ("written to", w.get("path")), ("as", w.get("format")), ("sha256 after", w.get("sha256")),
        ("data", s.get("data")),
        ("clean samples", f"{s.get('samples')} ({parts.get('fit')} to mend with, {parts.get('choose')} to choose by, "
                          f"{parts.get('prove')} to prove with)"),
        ("scan before", f"{report.scan_before.verdict}: {report.scan_before.reason}"),
        ("scan after", f"{report.scan_after.verdict}: {report.scan_after.reason}" if report.scan_after else None),
        ("budget of the scans", report.budget), ("seed", report.seed), ("laocoon", report.version),
    ]
    return [(name, printable(value, 500)) for name, value in pairs if value not in (None, "")]
