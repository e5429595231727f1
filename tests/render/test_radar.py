"""The radar: well-formed, to scale, nothing invented where nothing was measured."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from laocoon.render.radar import CENTRE, RADIUS, Axis, Series, radar

NAMES = ("a", "b", "c", "d", "e")
SVG = "{http://www.w3.org/2000/svg}"


def series(*values: float | None, name: str = "one") -> Series:
    return Series(name, tuple(Axis(n, v) for n, v in zip(NAMES, values, strict=True)))


def dots(text: str) -> list[float]:
    """Distance of each value from the centre, in units of the radius."""
    found = ElementTree.fromstring(text).iter(f"{SVG}circle")
    return [math.dist(CENTRE, (float(c.get("cx", 0)), float(c.get("cy", 0)))) / RADIUS for c in found]


def test_values_are_to_scale() -> None:
    assert dots(radar([series(0, 0.25, 0.5, 0.75, 1)])) == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=2e-3)


def test_what_is_missing_is_neither_zero_nor_crossed() -> None:
    text = radar([series(1, None, 1, 1, 1)])
    tree = ElementTree.fromstring(text)
    assert len(dots(text)) == 4 and len(list(tree.iter(f"{SVG}polyline"))) == 3
    assert "b not measured" in text and "not measured" in [t.text for t in tree.iter(f"{SVG}text")]
    assert len(list(tree.iter(f"{SVG}polygon"))) == 4, "rings only: an area would claim the axis"
    assert dots(radar([series(None, None, None, None, None)])) == []


def test_names_are_not_markup() -> None:
    text = radar([series(1, 1, 1, 1, 1, name="<script>x</script>"), series(0, 0, 0, 0, 0)], "a & <b>")
    ElementTree.fromstring(text)
    assert "<script" not in text and "<b>" not in text


def test_pictures_are_of_comparable_things() -> None:
    with pytest.raises(ValueError, match="0"):
        radar([])
    with pytest.raises(ValueError, match="2"):
        radar([series(1, 1, 1, 1, 1), Series("other", (Axis("z", 1.0),))])
