"""What a search says: how much smaller a class's trigger is than the median class's."""

import math

import pytest
import torch

from laocoon.core.report import Finding
from laocoon.recipes.inversion import Recovered
from laocoon.recipes.smallest import smallest
from laocoon.triggers.additive import Additive


@pytest.mark.parametrize(("sizes", "margins"), [
    ((2.0, 8.0), (math.log(2), -math.log(2))),  # the median of two lies between them
    ((8.0, 2.0, 4.0), (-math.log(2), math.log(2), 0.0)),
    ((9.0, 2.0, 4.0, 8.0), (math.log(4 / 9), math.log(2), 0.0, -math.log(2)))])  # torch's lower median of four
def test_the_margin_is_that_to_the_median_class(sizes, margins):
    size = torch.tensor(sizes)
    found = Recovered({"pattern": torch.zeros(len(sizes), 1, 4, 4)}, size, torch.ones(len(sizes)), size)
    said = list(smallest("m", Additive(), torch.arange(len(sizes)), found, len(sizes), 0))
    scores = {f.target_classes[0]: f.score for f in said if isinstance(f, Finding)}
    assert [scores[c] for c in range(len(sizes))] == pytest.approx(margins)
    middle = size.log().mean().exp() if len(sizes) == 2 else size.median()
    assert f"needs {float(middle):.3g}" in said[0].explanation
