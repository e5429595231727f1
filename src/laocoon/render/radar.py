"""A radar picture: a few subjects on axes from 0 (centre) to 1 (rim), with intervals. SVG, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from laocoon.files.wording import printable

SIZE, RADIUS = 560, 168
CENTRE = (SIZE / 2, 272.0)
# Colours that people with any kind of colour vision tell apart (Okabe and Ito), a dash pattern each for print.
LOOKS = (("#0072b2", ""), ("#d55e00", "7 4"), ("#009e73", "2 3"), ("#cc79a7", "9 3 2 3"), ("#b8860b", "4 2"))
STYLE = """
text { font: 14px/1.3 ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif;
  fill: #1d1b18; }
.paper { fill: #fffefb; } .ring { fill: none; stroke: #d5cfc2; } .axis { stroke: #b3ab9b; }
.missing { stroke-dasharray: 3 4; } .soft { fill: #6a655c; font-size: 12px; }
.title { font-size: 17px; font-weight: 650; }
.name { font-weight: 600; } .halo { stroke: #fffefb; stroke-width: 3px; paint-order: stroke; }
@media (prefers-color-scheme: dark) { text { fill: #edeae3; } .paper { fill: #1e1c19; } .ring { stroke: #36322c; }
  .axis { stroke: #5a544a; } .soft { fill: #a19a8d; } .halo { stroke: #1e1c19; } }
"""


@dataclass(frozen=True)
class Axis:
    """One figure in [0, 1], the rim being best for the one whose picture it is; None: not measured."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One subject. All series of a picture have the same axes, in the same order."""

    name: str
    axes: tuple[Axis, ...]


def radar(series: Sequence[Series], title: str = "") -> str:
    """The picture as an SVG document: polygon through the values, a bar along each axis for its interval."""
    if not series or len(series) > len(LOOKS) or len({tuple(a.name for a in s.axes) for s in series}) != 1:
        raise ValueError(f"a radar shows 1 to {len(LOOKS)} series with the same axes, not {len(series)}.")
    names = [a.name for a in series[0].axes]
    height = 488 + 22 * (len(series) if len(series) > 1 else 0)
    body = [f'<rect class="paper" width="{SIZE}" height="{height}" rx="12"/>']
    if title:
        body.append(f'<text class="title" x="{SIZE / 2}" y="34" text-anchor="middle">{_text(title, 60)}</text>')
    body += _grid(names, [all(s.axes[i].value is None for s in series) for i in range(len(names))])
    for number, one in enumerate(series):
        body += _polygon(one, LOOKS[number], number - (len(series) - 1) / 2)
    body += _labels(names, series)
    if len(series) > 1:
        body += _legend(series)
    said = "; ".join(f"{s.name}: " + ", ".join(f"{a.name} {_figure(a)}" for a in s.axes) for s in series)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {height}" role="img" width="{SIZE}" '
            f'height="{height}"><title>{_text(title or "Radar", 200)}</title><desc>{_text(said, 2000)}</desc>'
            f"<style>{STYLE}</style>{''.join(body)}</svg>\n")


def _text(text: str, most: int) -> str:
    return str(escape(printable(text, most)))


def _figure(axis: Axis) -> str:
    return "not measured" if axis.value is None else f"{axis.value:.2f}"


def _point(place: float, share: float, count: int, aside: float = 0.0) -> tuple[float, float]:
    """On the axis number `place`, `share` of the way out, `aside` pixels off the axis."""
    angle = 2 * math.pi * place / count - math.pi / 2
    x, y = math.cos(angle), math.sin(angle)
    return CENTRE[0] + RADIUS * share * x - aside * y, CENTRE[1] + RADIUS * share * y + aside * x


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _grid(names: Sequence[str], missing: Sequence[bool]) -> list[str]:
    n = len(names)
    found = [f'<polygon class="ring" points="{_path([_point(i, share, n) for i in range(n)])}"/>'
             for share in (0.25, 0.5, 0.75, 1.0)]
    for i in range(n):
        (x, y), dashed = _point(i, 1, n), " missing" if missing[i] else ""
        found.append(f'<line class="axis{dashed}" x1="{CENTRE[0]}" y1="{CENTRE[1]}" x2="{x:.1f}" y2="{y:.1f}"/>')
    for share in (0.5, 1.0):
        x, y = _point(0, share, n)
        found.append(f'<text class="soft" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
    return found


def _polygon(series: Series, look: tuple[str, str], rank: float) -> list[str]:
    colour, dashes = look
    n = len(series.axes)
    known = [(i, a) for i, a in enumerate(series.axes) if a.value is not None]
    points = {i: _point(i, a.value or 0.0, n) for i, a in known}
    found = []
    if len(points) == n:
        found.append(f'<polygon points="{_path(list(points.values()))}" fill="{colour}" fill-opacity="0.14" '
                     'stroke="none"/>')
    for i in points:  # side by side, so that no line crosses an axis that was not measured
        if (i + 1) % n in points:
            found.append(f'<polyline points="{_path([points[i], points[(i + 1) % n]])}" fill="none" '
                         f'stroke="{colour}" stroke-width="2" stroke-linecap="round" stroke-dasharray="{dashes}"/>')
    for i, axis in known:
        x, y = points[i]
        if axis.low is not None and axis.high is not None:
            (x1, y1), (x2, y2) = (_point(i, v, n, 4 * rank) for v in (axis.low, axis.high))
            found.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                         f'stroke-width="5" stroke-opacity="0.4" stroke-linecap="round"/>')
        found.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    return found


def _labels(names: Sequence[str], series: Sequence[Series]) -> list[str]:
    found = []
    for i, name in enumerate(names):
        x, y = _point(i, 1.1, len(names))
        anchor = "middle" if abs(x - CENTRE[0]) < 20 else "start" if x > CENTRE[0] else "end"
        lower = y > CENTRE[1] + RADIUS / 2
        y = y + (14 if lower else -14 if anchor == "middle" else 0)
        found.append(f'<text class="name halo" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(name, 30)}</text>')
        if len(series) == 1:
            axis = series[0].axes[i]
            span = f" [{axis.low:.2f}, {axis.high:.2f}]" if axis.low is not None and axis.high is not None else ""
            found.append(f'<text class="soft halo" x="{x:.1f}" y="{y + 17:.1f}" text-anchor="{anchor}">'
                         f"{_figure(axis)}{span}</text>")
    return found


def _legend(series: Sequence[Series]) -> list[str]:
    found = []
    for number, one in enumerate(series):
        y, (colour, dashes) = 496 + 22 * number, LOOKS[number]
        found.append(f'<line x1="150" y1="{y - 5}" x2="186" y2="{y - 5}" stroke="{colour}" stroke-width="2.5" '
                     f'stroke-dasharray="{dashes}"/><text x="196" y="{y}">{_text(one.name, 50)}</text>')
    return found
