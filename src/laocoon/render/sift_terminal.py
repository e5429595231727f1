"""A sift or a trace in a terminal: two lines that answer, then what a reader of that answer must know."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from laocoon.core.report import Verdict
from laocoon.core.sift_report import SiftReport
from laocoon.files.wording import printable
from laocoon.render.terminal import STYLES, WIDEST
from laocoon.render.words import amount, duration, number, percent, pooled, shorter
from laocoon.verdict.trace import TraceReport

FIRST = 5  # samples that are named


def show(report: SiftReport, console: Console, *, written: Sequence[str] = ()) -> None:
    """Print a report. `written`: files with the evidence."""
    line = Text(report.verdict.value, STYLES[report.verdict])
    line.append(f"  {printable(report.reason, 700)}", "default")
    line.append(f"   {p_sentence(report)}", "dim")
    _print(console, line)
    _print(console, Text(" · ".join(_facts(report, written)), "dim"))
    counts = f"{report.kept} kept, {report.poison} flagged as poison, {report.mislabelled} probably mislabelled"
    _print(console, Text(f"samples: {counts} (false-discovery rate {number(report.fdr, 2)}: {report.null})"))
    for kind in ("poison", "mislabelled"):
        first = [s for s in report.suspects if s.kind == kind][:FIRST]
        if first:
            names = ", ".join(f"{printable(s.name, 80)} (class {s.label})" for s in first)
            _print(console, Text(f"  {kind}: {names}{' …' if len(first) == FIRST else ''}", "dim"))
    for note in (*report.model.get("notes", ()), *report.data.get("notes", ())):
        _print(console, Text(f"note: {printable(note, 300)}", "dim"))
    if report.verdict is Verdict.SUSPICIOUS:
        return
    total = pooled(report.power)
    if total is None:
        _print(console, Text("power: not known for this sift; silence says little"))
    else:
        _print(console, Text(f"power: {total.found} of {total.tried} poisoned reference sets are noticed at alpha "
                             f"{number(report.alpha, 2)}, {percent(total.low)} to {percent(total.high)}"))
    if report.verdict is Verdict.NO_EVIDENCE:
        _print(console, Text("known to be missed:"))
        for method, misses in report.misses.items():
            _wrapped(console, f"{printable(method)}: {printable(misses, 400)}")


def p_sentence(report: SiftReport) -> str:
    """p = 0.008, 1 of 121 (120 clean data sets of 4 sources), alpha 0.05."""
    c = report.calibration
    if report.p_value is None or c is None:
        return f"no p-value, alpha {report.alpha:g}"
    return (f"p = {number(report.p_value, 2)}, {c.rank} of {c.references + 1} ({c.references} clean "
            f"{printable(c.profile, 60)}), alpha {report.alpha:g}")


def show_trace(report: TraceReport, console: Console, *, written: Sequence[str] = ()) -> None:
    """Print where an input that fired comes from."""
    found = len(report.sources)
    head = f"{found} TRAINING SAMPLES" if found else "NO SOURCE FOUND"
    line = Text(head, "bold red" if found else "bold yellow")
    line.append(f"  {printable(report.reason, 600)}", "default")
    _print(console, line)
    files = ["written: " + ", ".join(printable(w, 200) for w in written)] if written else []
    _print(console, Text(" · ".join([*files, f"false-discovery rate {number(report.fdr, 2)}",
                                     f"{amount(report.spent)} passes", duration(report.seconds)]), "dim"))
    for source in report.sources[:FIRST]:
        _print(console, Text(f"  {printable(source.name, 100)}  similarity {source.similarity:.3f}  "
                             f"p = {number(source.p_value, 2)}  q = {number(source.q_value, 2)}"))


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _wrapped(console: Console, text: str) -> None:
    width = min(console.width, WIDEST) - 2
    _print(console, Text(textwrap.indent(textwrap.fill(text, width, subsequent_indent="  "), "  "), "dim"))


def _facts(report: SiftReport, written: Sequence[str]) -> list[str]:
    examined = f"{len(report.examined)} method{'s' * (len(report.examined) != 1)} examined"
    if report.skipped:
        examined += f", {len(report.skipped)} skipped ({shorter(report.skipped)})"
    files = ["written: " + ", ".join(printable(w, 200) for w in written)] if written else []
    return [*files, f"{report.data.get('samples')} samples", examined, f"seed {report.seed}",
            f"{amount(report.spent)} passes", duration(report.seconds)]
