"""The report of a repair in a terminal: the status in one line, what shows it, what was tried."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from laocoon.core.repaired import Rate, RepairReport, Status, Trial
from laocoon.files.wording import printable
from laocoon.render.words import amount, duration, number, percent

STYLES = {Status.REMOVED: "bold green", Status.NOTHING: "bold green", Status.REDUCED: "bold yellow",
          Status.INCONCLUSIVE: "bold yellow", Status.NOT_REMOVED: "bold red"}
MARKS = {True: "✓", False: "✗", None: "?"}
WIDEST = 120


def show(report: RepairReport, console: Console, *, written: Sequence[str] = ()) -> None:
    """Print a report. `written`: files with the evidence."""
    line = Text(report.status.value.upper(), STYLES[report.status])
    line.append(f"  {printable(report.reason, 900)}", "default")
    _print(console, line)
    _print(console, Text(" · ".join(_facts(report, written)), "dim"))
    for check in report.checks:
        _print(console, Text(f"  {MARKS[check.passed]} {printable(check.said, 400)}"))
    for again in report.reactivations:
        _print(console, Text(f"  re-activation with {again.shots} poisoned samples ({printable(again.goal, 80)}): "
                             f"{rated(again.success)}; a meaningless trigger {rated(again.control)}", "dim"))
    if report.trials:
        _print(console, Text("tried:"))
        for trial in report.trials:
            mark, style = ("→", "default") if trial.chosen else (" ", "dim")
            _print(console, Text(f"  {mark} {_tried(trial)}", style))
    if report.misses:
        _print(console, Text("known to be missed:"))
        for repair, misses in report.misses.items():
            _wrapped(console, f"{printable(repair)}: {printable(misses, 400)}")
    for text in report.notes:
        _wrapped(console, f"note: {printable(text, 400)}")


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _wrapped(console: Console, text: str) -> None:
    width = min(console.width, WIDEST) - 2
    _print(console, Text(textwrap.indent(textwrap.fill(text, width, subsequent_indent="  "), "  "), "dim"))


def rated(rate: Rate) -> str:
    """98 % [95, 99]"""
    if not rate.tried:
        return "–"
    return f"{percent(rate.value)} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def points(drop: float) -> str:
    """Accuracy lost, in points."""
    shown = f"{100 * drop:.1f}"
    return "0.0" if shown == "-0.0" else shown


def _facts(report: RepairReport, written: Sequence[str]) -> list[str]:
    made = report.written
    out = [f"written: {printable(made['path'], 200)} ({made['format']})"] if made else ["nothing was written"]
    out += [f"{printable(n, 200)}" for n in made.get("notes", ())] if made else []
    applied = [f"by {', then '.join(printable(r, 60) for r in report.repairs)}"] if report.repairs else []
    p = [f"p {number(report.scan_before.p_value, 2)} → "
         f"{number(report.scan_after.p_value, 2)}"] if report.scan_after is not None else []
    files = ["evidence: " + ", ".join(printable(w, 200) for w in written)] if written else []
    return [*out, *applied, *p, *files, f"seed {report.seed}", f"{amount(report.spent)} passes",
            duration(report.seconds)]


def _tried(trial: Trial) -> str:
    name = printable(f"{trial.repair} after {trial.after}" if trial.after else trial.repair, 80)
    if trial.accuracy is None or trial.drop is None:
        return f"{name}: {printable(trial.reason, 200)}"
    worst = max((r.success.value for r in trial.residues if r.success.tried), default=None)
    said = f"{name}: trigger {percent(worst)}, accuracy {percent(trial.accuracy.value)} (−{points(trial.drop.value)})"
    return f"{said}; {printable(trial.reason, 200)}" if trial.reason else f"{said}; score {number(trial.score, 2)}"
