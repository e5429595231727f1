"""Results as pictures: figures beside what was expected, defences, a radar of the criteria."""

from __future__ import annotations

from laocoon.core.errors import InputError
from laocoon.lab.criteria.axes import picture
from laocoon.lab.tables import Results, most_striking
from laocoon.render.spans import Bar, spans

PICTURES = ("success", "accuracy", "defences", "criteria")


def drawn(results: Results, of: str = "success") -> str:
    """One of PICTURES as SVG."""
    if of == "criteria":
        cards = most_striking(results)
        if not cards:
            raise InputError("no trial of this plan has a scorecard.", "Add `criteria` to the plan and run it.")
        return picture(cards, "Attacks on the five criteria")
    if of == "defences":
        bars = [Bar(f"{d.data} {d.architecture}: {d.defence}", d.attack, d.auroc.value, d.auroc.low, d.auroc.high)
                for d in sorted(results.defences, key=lambda d: (d.data, d.architecture, d.defence))
                if d.auroc.value is not None]
        return _some(bars, "Defences: AUROC, planted against clean")
    name = {"success": "success", "accuracy": "accuracy_difference"}[of]
    found = []
    for a in sorted(results.attacks, key=lambda a: (a.data, a.architecture)):
        figure = a.measured[name]
        if figure.value is not None:
            found.append(Bar(a.subject, a.attack, figure.value, figure.low, figure.high, a.expected.get(name)))
    if of == "accuracy":
        return _some(found, "Clean accuracy − that of the clean twin", -0.1, 0.1)
    return _some(found, "Attack success rate")


def _some(bars: list[Bar], title: str, low: float = 0.0, high: float = 1.0) -> str:
    if not bars:
        raise InputError("there is nothing to draw: no trial of this kind has ended.", "Run the plan first.")
    return spans(bars, title, low=low, high=high)
