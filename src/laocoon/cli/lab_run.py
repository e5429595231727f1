"""`laocoon lab run | table | plot`: the trials of a plan, and what came out of them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from laocoon.cli.errors import INTERRUPTED, USAGE, note
from laocoon.core.errors import InputError
from laocoon.files.wording import printable

if TYPE_CHECKING:
    from laocoon.lab.runner import Lab, Progress
    from laocoon.lab.tables import Results

LAB = Path.home() / ".cache" / "laocoon" / "lab"
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.toml", help="Subjects, attacks, defences, seeds.",
                                          show_default=False)]
PlanName = Annotated[str | None, typer.Argument(metavar="[PLAN]", show_default=False,
                                                help="A plan's file or name; without it, every plan of the ledger.")]
Folder = Annotated[Path, typer.Option("--lab", help="Where the ledger and the artefacts are kept.")]
LedgerUrl = Annotated[str, typer.Option("--ledger", metavar="URL", envvar="LAOCOON_LEDGER",
                                        help="A database for a team; without it, SQLite in the lab's folder.")]
Artefacts = Annotated[str, typer.Option("--artefacts", metavar="URL", envvar="LAOCOON_ARTEFACTS",
                                        help="A folder or any fsspec location; without it, the lab's folder.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder with mnist/, gtsrb/, cifar10/ as Parquet.")]
Out = Annotated[Path | None, typer.Option(help="A file; standard output without it.")]
FORMATS = ("markdown", "csv", "json")
TABLES = ("attacks", "defences", "unfinished")


def run(
    plan: PlanFile,
    folder: Folder = LAB,
    ledger: LedgerUrl = "",
    artefacts: Artefacts = "",
    data_root: Root = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 runs the trials in this one.")] = 1,
    ray: Annotated[str, typer.Option(metavar="auto|ADDRESS", help="Run the trials on a Ray cluster instead.")] = "",
    retry: Annotated[bool, typer.Option(help="Run trials that failed before once more.")] = False,
) -> None:
    """Run what a plan's trials lack; interrupt, kill and start again at will.

    Every trial is written down as it ends. Several runs may share one ledger. Exit codes: 0 every trial has a result
    (or does not apply), 2 some failed.
    """
    import torch

    from laocoon.lab.plan import read
    from laocoon.lab.runner import run as started

    experiment = read(plan)
    torch.set_num_threads(1)
    try:
        with _shown(Console(), experiment.name) as watch:
            last = started(experiment, _lab(folder, ledger, artefacts, data_root), jobs=jobs, ray=ray, retry=retry,
                           watch=watch)
    except KeyboardInterrupt:
        note("interrupted; what ended is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    print(f"{experiment.name}: {_counts(last)}; `laocoon lab table {shlex.quote(str(plan))}` shows the results")
    if last.count("failed", "blocked"):
        failed = [e for e in last.entries if last.states[e.trial.digest] == "failed"]
        for entry in failed[:10]:
            note(f"{entry.title()}: {last.rows[entry.trial.digest].reason}")
        note("--retry runs what failed once more")
        raise typer.Exit(USAGE)


def table(
    plan: PlanName = None,
    folder: Folder = LAB,
    ledger: LedgerUrl = "",
    artefacts: Artefacts = "",
    form: Annotated[str, typer.Option("--format", help="markdown, csv or json.")] = "markdown",
    of: Annotated[str, typer.Option("--of", help="What a CSV holds: attacks, defences or unfinished.")] = "attacks",
    out: Out = None,
) -> None:
    """Leaderboards with intervals over seeds, what the papers report beside what was measured."""
    from laocoon.lab.tables import to_csv, to_json, to_markdown

    if form not in FORMATS:
        raise InputError(f"--format is {form!r}.", f"It is one of {', '.join(FORMATS)}.")
    if of not in TABLES:
        raise InputError(f"--of is {of!r}.", f"It is one of {', '.join(TABLES)}.")
    results, name = _results(plan, folder, ledger, artefacts)
    command = f"laocoon lab table {name}".strip()
    _written(to_markdown(results, command) if form == "markdown" else to_json(results) + "\n" if form == "json" else
             to_csv(results, of), out)


def plot(
    plan: PlanName = None,
    folder: Folder = LAB,
    ledger: LedgerUrl = "",
    artefacts: Artefacts = "",
    of: Annotated[str, typer.Option("--of", help="success, accuracy, defences or criteria.")] = "success",
    out: Out = None,
) -> None:
    """The results as a picture (SVG): success or clean accuracy beside what was expected, defences, the criteria."""
    from laocoon.lab.pictures import PICTURES, drawn

    if of not in PICTURES:
        raise InputError(f"--of is {of!r}.", f"It is one of {', '.join(PICTURES)}.")
    results, _ = _results(plan, folder, ledger, artefacts)
    _written(drawn(results, of), out)


def _lab(folder: Path, ledger: str, artefacts: str, data_root: Path | None = None) -> Lab:
    from laocoon.lab.runner import Lab

    return Lab(folder, ledger, artefacts, data_root)


def _results(plan: str | None, folder: Path, ledger_url: str, artefacts: str) -> tuple[Results, str]:
    from laocoon.lab.plan import read
    from laocoon.lab.tables import collect

    if not ledger_url and not (folder / "ledger.sqlite").exists():
        raise InputError(f"there is no ledger in {printable(folder)}.", "Run `laocoon lab run PLAN.toml` first.")
    name = read(Path(plan)).name if plan is not None and plan.endswith(".toml") else plan
    lab = _lab(folder, ledger_url, artefacts)
    ledger = lab.ledger()
    try:
        names = sorted({e.plan for e in ledger.entries()})
        if name is not None and name not in names:
            raise InputError(f"the ledger holds no plan {printable(name, 64)!r}.",
                             f"It holds {', '.join(names) or 'none'}; `laocoon lab run` adds one.")
        return collect(ledger, lab.store(), name), plan or ""
    finally:
        ledger.close()


def _written(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


@contextmanager
def _shown(console: Console, name: str) -> Iterator[Callable[[Progress], None]]:
    """A live table for who watches; a line for every trial that ends where nobody does."""
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_live(progress, name))


class _Lines:
    """A line for every trial that ends; what had ended before is only counted."""

    def __init__(self) -> None:
        self.told: set[str] | None = None

    def __call__(self, progress: Progress) -> None:
        ended = [e for e in progress.entries if e.trial.digest in progress.rows]
        if self.told is None:
            self.told = {e.trial.digest for e in ended}
            if ended:
                print(f"{len(ended)} of {progress.total} trials ended before", flush=True)
        for entry in ended:
            if entry.trial.digest not in self.told:
                self.told.add(entry.trial.digest)
                row = progress.rows[entry.trial.digest]
                said = _outcome(row.kind, row.result, row.reason)
                print(f"{row.status:8} {entry.title()}  {said}  {row.seconds:.1f} s", flush=True)


def _outcome(kind: str, result: dict[str, object], reason: str) -> str:
    if reason:
        return printable(reason, 160)
    judged, answer = result.get("judged"), result.get("answer")
    if isinstance(judged, dict):
        planted = judged["success"]["value"]
        accuracy = f"clean accuracy {judged['clean_accuracy']['value']:.3f}"
        return accuracy if planted is None else f"attack success {planted:.3f}, {accuracy}"
    if isinstance(answer, dict):
        return "no finding" if answer["score"] is None else f"score {answer['score']:.3g}"
    return kind


def _counts(progress: Progress) -> str:
    parts = [f"{progress.count(s)} {s}" for s in ("done", "skipped", "running", "waiting", "failed", "blocked")
             if progress.count(s)]
    return f"{', '.join(parts) or 'nothing'} of {progress.total} trials"


def _live(progress: Progress, name: str) -> Table:
    left = "" if progress.left is None or progress.settled else f", about {_time(progress.left)} left"
    found = Table(title=f"{printable(name, 60)}: {_counts(progress)}{left}", title_justify="left", expand=False)
    for head in ("trials", "done", "running", "waiting", "failed", "attack success so far"):
        found.add_column(head, justify="left" if head in ("trials", "attack success so far") else "right")
    success = progress.success()
    groups: dict[str, list[str]] = {}
    for entry in progress.entries:
        group = f"{entry.defence_label} ×" if entry.defence else entry.label or "clean twins"
        groups.setdefault(group, []).append(progress.states[entry.trial.digest])
    for group, states in groups.items():
        values = success.get(group, [])
        mean = f"{sum(values) / len(values):.3f} over {len(values)}" if values else ""
        found.add_row(printable(group, 40), str(sum(s in ("done", "skipped") for s in states)),
                      str(states.count("running") or ""), str(states.count("waiting") or ""),
                      str(sum(s in ("failed", "blocked") for s in states) or ""), mean)
    now = [printable(e.title(), 90) for e in progress.entries if e.trial.digest in progress.running]
    found.caption = "\n".join(now[:8]) or None
    return found


def _time(seconds: float) -> str:
    whole = time.gmtime(min(seconds, 86_399.0))
    if seconds >= 86_400:
        return f"{seconds / 86_400:.1f} days"
    return f"{whole.tm_hour} h {whole.tm_min:02} min" if whole.tm_hour else f"{whole.tm_min} min {whole.tm_sec:02} s"
