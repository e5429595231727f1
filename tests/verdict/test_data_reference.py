"""The references that speak for a set's samples, and scales that poison does not move."""

from __future__ import annotations

import torch

from laocoon.core.repaired import Drop
from laocoon.recipes import score_tails
from laocoon.verdict.data_reference import NEAREST, DataReference, DataRow
from laocoon.verdict.data_statistics import CURVE, DEFAULT, available, chosen
from laocoon.verdict.portfolio import likely


def reference() -> DataReference:
    """Half of the sets have ten classes and short tails, half forty and long ones."""
    def row(i: int) -> DataRow:
        wide = float(i % 2)
        return DataRow(str(i), "made up", "clean", {"known.classes": 2 + wide, "known.grey": 0.0,
                                                    **{f"m.{level}": 1 + 9 * wide for level in CURVE}})

    return DataReference(tuple(row(i) for i in range(4 * NEAREST)), (), (), {}, {}, "")


def test_the_references_most_like_a_set_speak_for_its_samples() -> None:
    whole = reference()
    assert len(whole.tails("m")) == 4 * NEAREST and not whole.tails("other")
    near = whole.tails("m", {"known.classes": 2.0, "known.grey": 0.0, "m.tail": 99.0})
    assert len(near) == NEAREST and all(t.values == (1.0,) * len(CURVE) for t in near)
    far = whole.tails("m", {"known.classes": 3.0, "known.grey": 0.0})
    assert all(t.values == (10.0,) * len(CURVE) for t in far)


def test_a_unit_of_its_own_keeps_tiny_scores_tiny() -> None:
    scores = torch.cat([torch.zeros(950), torch.full((50,), 1e-3)])
    assert float(score_tails.standardised(scores).max()) > 100
    assert float(score_tails.standardised(scores, None, 0.05).max()) < 0.1
    assert score_tails.height(scores) > 9e-4


def test_the_usual_methods_are_installed_and_all_are_more() -> None:
    assert set(DEFAULT) <= set(available())
    assert {m.card.name for m in chosen()} == set(DEFAULT)
    able = {n for n, m in available().items() if "image" in m.card.modalities}
    assert {m.card.name for m in chosen(["all"])} == able > set(DEFAULT)
    assert "flare" not in {m.card.name for m in chosen(["-flare"])}


def test_what_few_samples_cannot_tell_is_drawn_towards_none() -> None:
    few, many = likely(Drop(0.08, 0.0, 0.16)), likely(Drop(0.08, 0.07, 0.09))
    assert 0 < few < 0.04 < 0.075 < many <= 0.08
