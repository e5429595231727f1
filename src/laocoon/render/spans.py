"""A picture of figures with intervals, one line each, beside the range that was expected. SVG, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import escape

from laocoon.files.wording import printable

LEFT, PLOT, RIGHT, TOP, STEP = 270, 420, 170, 74, 30
STYLE = """
text { font: 13px/1.3 ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif;
  fill: #1d1b18; }
.paper { fill: #fffefb; } .grid { stroke: #e2ddd2; } .soft { fill: #6a655c; font-size: 12px; }
.title { font-size: 17px; font-weight: 650; } .group { font-weight: 600; }
.wanted { fill: #0072b2; fill-opacity: .16; } .bar { stroke: #1d1b18; stroke-width: 2; stroke-linecap: round; }
.dot { fill: #1d1b18; } .off { fill: #d55e00; } .bar.off { stroke: #d55e00; }
@media (prefers-color-scheme: dark) { text { fill: #edeae3; } .paper { fill: #1e1c19; } .grid { stroke: #36322c; }
  .soft { fill: #a19a8d; } .wanted { fill: #8db8e0; } .bar { stroke: #edeae3; } .dot { fill: #edeae3; }
  .off { fill: #ff9d5c; } .bar.off { stroke: #ff9d5c; } }
"""


@dataclass(frozen=True)
class Bar:
    """A figure, its interval and what was expected; `group` is said once for neighbours that share it."""

    group: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    wanted: tuple[float, float] | None = None


def spans(bars: Sequence[Bar], title: str, *, low: float = 0.0, high: float = 1.0) -> str:
    """The picture as an SVG document, from `low` to `high`; a value outside of what was expected has its own colour."""
    rows = len(bars) + len({b.group for b in bars})
    width, height = LEFT + PLOT + RIGHT, TOP + STEP * max(1, rows) + 46

    def x(value: float) -> float:
        return LEFT + PLOT * (min(high, max(low, value)) - low) / (high - low)

    body = [f'<rect class="paper" width="{width}" height="{height}" rx="12"/>',
            f'<text class="title" x="24" y="36">{_text(title, 90)}</text>']
    bottom = TOP + STEP * max(1, rows)
    for i in range(5):
        value = low + (high - low) * i / 4
        body.append(f'<line class="grid" x1="{x(value):.1f}" y1="{TOP - 12}" x2="{x(value):.1f}" y2="{bottom}"/>'
                    f'<text class="soft" x="{x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    y, before = TOP, ""
    for bar in bars:
        if bar.group != before:
            body.append(f'<text class="group" x="24" y="{y + 5}">{_text(bar.group, 60)}</text>')
            before, y = bar.group, y + STEP
        body += _drawn(bar, y, x)
        y += STEP
    body.append(f'<rect class="wanted" x="24" y="{bottom + 8}" width="16" height="12"/>'
                f'<text class="soft" x="46" y="{bottom + 18}">expected beforehand</text>')
    said = "; ".join(f"{b.group} {b.name}: {_figure(b)}" for b in bars)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}" '
            f'height="{height}"><title>{_text(title, 200)}</title><desc>{_text(said, 8000)}</desc>'
            f"<style>{STYLE}</style>{''.join(body)}</svg>\n")


def _drawn(bar: Bar, y: float, x: Callable[[float], float]) -> list[str]:
    off = bar.wanted is not None and not bar.wanted[0] <= bar.value <= bar.wanted[1]
    kind = " off" if off else ""
    found = [f'<text x="40" y="{y + 5}">{_text(bar.name, 30)}</text>']
    if bar.wanted is not None:
        start, end = x(bar.wanted[0]), x(bar.wanted[1])
        found.append(f'<rect class="wanted" x="{start:.1f}" y="{y - 9}" width="{max(2.0, end - start):.1f}" '
                     'height="18"/>')
    if bar.low is not None and bar.high is not None:
        found.append(f'<line class="bar{kind}" x1="{x(bar.low):.1f}" y1="{y}" x2="{x(bar.high):.1f}" y2="{y}"/>')
    found.append(f'<circle class="dot{kind}" cx="{x(bar.value):.1f}" cy="{y}" r="4.5"/>'
                 f'<text class="soft" x="{LEFT + PLOT + 18}" y="{y + 4}">{_figure(bar)}</text>')
    return found


def _figure(bar: Bar) -> str:
    if bar.low is None or bar.high is None:
        return f"{bar.value:.2f}"
    return f"{bar.value:.2f} [{bar.low:.2f}, {bar.high:.2f}]"


def _text(text: str, most: int) -> str:
    return str(escape(printable(text, most)))
