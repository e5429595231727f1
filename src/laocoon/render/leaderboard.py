"""A leaderboard as Markdown and as a self-contained HTML page. What stands in it, the caller decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from laocoon.files.wording import printable
from laocoon.render.words import number

STYLE = """
:root { color-scheme: light dark; --paper: #f6f4ef; --card: #fffefb; --ink: #1d1b18; --soft: #6a655c; --line: #e2ddd2;
  --bar: #3d6a94; --back: #e6edf3; }
@media (prefers-color-scheme: dark) { :root { --paper: #151412; --card: #1e1c19; --ink: #edeae3; --soft: #a19a8d;
  --line: #36322c; --bar: #8db8e0; --back: #2c3640; } }
body { margin: 0 auto; padding: 28px 24px; max-width: 1160px; background: var(--paper); color: var(--ink);
  font: 14.5px/1.5 ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 22px; } p { color: var(--soft); max-width: 60em; }
.frame { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; } th, td { padding: 9px 12px; text-align: left; vertical-align: top; }
thead th { font-size: 13px; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; } td small { display: block; color: var(--soft); white-space: nowrap; }
.bar { display: block; position: relative; height: 6px; width: 88px; border-radius: 3px; background: var(--back);
  margin: 3px 0 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.bar i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 3px; background: var(--bar); }
.bar b { position: absolute; top: 1.5px; height: 3px; background: var(--ink); opacity: .55; border-radius: 2px; }
"""


@dataclass(frozen=True)
class Cell:
    """A figure; `bounded`: it lives in [0, 1] and gets a bar."""

    value: float | None
    low: float | None = None
    high: float | None = None
    bounded: bool = True


@dataclass(frozen=True)
class Row:
    """Words come first, figures after; as many of each as the board has columns."""

    words: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Board:
    """Rows in the order in which they are shown."""

    title: str
    note: str
    words: tuple[str, ...]  # heads of the columns of words
    figures: tuple[str, ...]  # heads of the columns of figures
    rows: tuple[Row, ...]


def _figures(cell: Cell) -> tuple[str, str]:
    if cell.value is None:
        return "–", ""
    show = (lambda v: f"{v:.2f}") if cell.bounded else number
    both = cell.low is not None and cell.high is not None
    return show(cell.value), f"[{show(cell.low)}, {show(cell.high)}]" if both else ""


def to_markdown(board: Board) -> str:
    """Title, note and table."""
    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(parts) + " |"

    safe = [line([_bare(w) for w in (*board.words, *board.figures)]),
            "|" + "-|" * len(board.words) + "-:|" * len(board.figures)]
    for row in board.rows:
        safe.append(line([*(_bare(w) for w in row.words), *(" ".join(f for f in _figures(c) if f) for c in row.cells)]))
    return "\n".join([f"# {_bare(board.title)}", "", _bare(board.note, 2000), "", *safe, ""])


def _bare(text: str, most: int = 120) -> str:
    """Nothing in it that Markdown would take for a cell's end or for HTML."""
    return printable(text, most).replace("|", "\\|").replace("<", "&lt;")


def to_html(board: Board) -> str:
    """The page: no script, nothing fetched."""
    heads = "".join(f"<th scope=col>{_words(w)}</th>" for w in (*board.words, *board.figures))
    rows = "".join(f"<tr>{_heads(row)}{''.join(_cell(c) for c in row.cells)}</tr>" for row in board.rows)
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{_words(board.title)}</title>"
            f'<meta name=viewport content="width=device-width"><style>{STYLE}</style>'
            f"<h1>{_words(board.title)}</h1><p>{_words(board.note, 2000)}</p>"
            f"<div class=frame><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></html>\n")


def _words(text: str, most: int = 120) -> str:
    return str(escape(printable(text, most)))


def _heads(row: Row) -> str:
    first, *rest = row.words
    return f"<th scope=row>{_words(first)}</th>" + "".join(f"<td>{_words(w)}</td>" for w in rest)


def _cell(cell: Cell) -> str:
    value, interval = _figures(cell)
    bar = ""
    if cell.bounded and cell.value is not None:
        bar = f'<span class=bar><i style="width:{100 * min(1.0, max(0.0, cell.value)):.1f}%"></i>'
        if cell.low is not None and cell.high is not None:
            low, high = (min(1.0, max(0.0, v)) for v in (cell.low, cell.high))
            bar += f'<b style="left:{100 * low:.1f}%;width:{max(1.0, 100 * (high - low)):.1f}%"></b>'
        bar += "</span>"
    return f"<td>{value}{bar}<small>{interval}</small></td>"
