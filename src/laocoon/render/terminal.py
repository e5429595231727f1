"""A report in a terminal: two lines that answer, then what a reader of that answer must know."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from laocoon.core.report import ScanReport, Verdict
from laocoon.files.wording import printable
from laocoon.render.alarms import alarms, proven_by_the_file
from laocoon.render.sentences import coloured, sentences
from laocoon.render.words import amount, duration, number, p_sentence, percent, pooled, shorter

STYLES = {Verdict.SUSPICIOUS: "bold red", Verdict.NO_EVIDENCE: "bold green", Verdict.INCONCLUSIVE: "bold yellow"}
WIDEST = 120
MOST_TEXTS = 3
IN_BASELINE = "in the baseline"


def show(
    report: ScanReport,
    console: Console,
    *,
    written: Sequence[str] = (),
    justifications: Mapping[str, str] | None = None,
) -> None:
    """Print a report. `written`: files with the evidence; `justifications`: of accepted alarms, by fingerprint."""
    line = Text(report.verdict.value, STYLES[report.verdict])
    line.append(f"  {printable(report.reason, 600)}", "default")
    if report.p_value is not None or report.calibration is not None:
        line.append(f"   {p_sentence(report)}", "dim")
    _print(console, line)
    _print(console, Text(" · ".join(_facts(report, written)), "dim"))
    for entry in _accepted(report, justifications or {}):
        _print(console, Text(entry))
    if report.verdict is Verdict.SUSPICIOUS:
        for sentence in () if proven_by_the_file(report) else sentences(report, 0)[:MOST_TEXTS]:
            _print(console, coloured(sentence))
        for alarm in alarms(report):
            if alarm.fingerprint not in report.accepted:
                _print(
                    console,
                    Text(f"fingerprint {alarm.fingerprint}  {printable(alarm.rule)} · {printable(alarm.where)}", "dim"),
                )
        return
    _power(report, console)
    if report.verdict is Verdict.NO_EVIDENCE and report.misses:
        _print(console, Text("known to be missed:"))
        for method, misses in report.misses.items():
            _wrapped(console, f"{printable(method)}: {printable(misses, 400)}")


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _wrapped(console: Console, text: str) -> None:
    width = min(console.width, WIDEST) - 2
    _print(console, Text(textwrap.indent(textwrap.fill(text, width, subsequent_indent="  "), "  "), "dim"))


def _facts(report: ScanReport, written: Sequence[str]) -> list[str]:
    examined = f"{len(report.examined)} method{'s' * (len(report.examined) != 1)} examined"
    if report.skipped:
        examined += f", {len(report.skipped)} skipped ({shorter(report.skipped)})"
    files = ["evidence: " + ", ".join(printable(w, 200) for w in written)] if written else []
    return [*files, examined, f"seed {report.seed}", f"{amount(report.spent)} passes", duration(report.seconds)]


def _accepted(report: ScanReport, justifications: Mapping[str, str]) -> list[str]:
    return [
        f"accepted: {printable(a.message, 300)} ({printable(justifications.get(a.fingerprint, IN_BASELINE), 300)})"
        for a in alarms(report)
        if a.fingerprint in report.accepted
    ]


def _power(report: ScanReport, console: Console) -> None:
    total = pooled(report.power)
    if total is None:
        _print(console, Text("power: not known for this scan; silence says little"))
        return
    kinds = ", ".join(f"{printable(p.kind, 40)} {p.found} of {p.tried}" for p in report.power)
    _print(
        console,
        Text(
            f"power: {total.found} of {total.tried} known backdoors of the core kinds are found at alpha "
            f"{number(report.alpha, 2)}, {percent(total.low)} to {percent(total.high)} ({total.source})"
        ),
    )
    _wrapped(console, f"by kind: {kinds}")
