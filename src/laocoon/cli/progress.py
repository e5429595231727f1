"""The bar while a scan runs: which method, what it has found so far, how long is left. On standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from laocoon.core.context import Progress as Callback
from laocoon.files.wording import printable


@contextmanager
def shown(console: Console) -> Iterator[Callback]:
    """A progress callback for `scan`; draws nothing where nobody watches."""
    if not console.is_terminal:
        yield _silent
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold"),
        BarColumn(24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True, expand=False) as bar:
        task = bar.add_task("starting", total=1.0, note="")

        def callback(method: str, share: float, note: str) -> None:
            name = method.replace("_", " ") or "putting together"
            if note:
                bar.update(task, note=printable(note, max(20, console.width - 70)))
            # A finding on the way comes with a negative share: how far the method is, is not known then.
            bar.update(task, description=name, completed=None if share < 0 else min(1.0, share))

        yield callback


def _silent(method: str, share: float, note: str) -> None:
    pass
