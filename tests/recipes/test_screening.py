"""Where the search of a whole-image family starts, on a network whose backdoor is known by construction."""

import pytest
import torch
from tests.recipes.wired import SIDE, TARGET, Listens, pictures

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.core.subject import Provenance, Subject
from laocoon.detectors.model.bounded_inversion import FAMILIES as BOUNDED
from laocoon.detectors.model.whole_image_inversion import FAMILIES, WholeImageInversion
from laocoon.modalities.image import Image
from laocoon.recipes.inversion import Search, invert
from laocoon.recipes.screening import LOST, SURE, screened
from laocoon.recipes.smallest import contenders
from laocoon.triggers.cosines import analysed, drawn
from laocoon.triggers.spectral import Spectral


@pytest.fixture(scope="module")
def samples() -> Samples:
    return pictures()


def test_the_best_example_of_the_planted_class_is_its_wave(samples):
    first = screened(Listens(100.0), Spectral(), samples, 4, Context(seed=0))
    assert int(first.score.argmax()) == TARGET and float(first.score[TARGET]) == pytest.approx(SURE)
    assert float(first.score.min()) >= LOST
    stamped = Spectral().stamp(samples.inputs, first.start)[TARGET]
    assert (Listens(100.0)(stamped).argmax(1) == TARGET).all()


def test_a_search_from_nothing_misses_the_wave_and_a_screened_one_finds_it(samples):
    everything, search = torch.arange(4)[:, None].expand(4, 4), Search(steps=40, batch=16)
    blind = invert(Listens(100.0), Spectral(), everything, samples, search, Context(seed=0))
    first = screened(Listens(100.0), Spectral(), samples, 4, Context(seed=0))
    start = {k: v.detach() for k, v in first.start.items()}
    shown = invert(Listens(100.0), Spectral(), everything, samples, search, Context(seed=0), start=start)
    assert float(shown.size[TARGET]) < 0.7 * float(blind.effective[TARGET])
    assert float(shown.success[TARGET]) >= 0.9


def test_the_detector_names_the_class_first(samples):
    subject = Subject(Listens(100.0), Image(), 4, (1, SIDE, SIDE), provenance=Provenance(path="waved"))
    report = WholeImageInversion(families=("spectral",), steps=40).examine(ModelCase(subject, samples), Context(seed=0))
    assert report.complete
    assert report.findings[0].target_classes == (TARGET,) and report.findings[0].score > 0.5


def test_above_the_most_half_of_the_classes_are_the_promising_ones():
    order = torch.arange(40).flip(0)  # the last is the most promising
    arms = contenders(order, 6, torch.Generator().manual_seed(0))
    assert len(arms) == 6 == len(set(arms.tolist())) and {37, 38, 39} <= set(arms.tolist())
    assert not torch.equal(arms, contenders(order, 6, torch.Generator().manual_seed(1)))
    assert contenders(order[-5:], 6, torch.Generator()).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("family", [*FAMILIES.values(), *BOUNDED.values()], ids=[*FAMILIES, *(f"bounded {b}" for b in BOUNDED)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20)])
def test_examples_are_strong_different_and_images(family, shape):
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    examples = family.variety(images, rng=torch.Generator().manual_seed(1))
    count = len(next(iter(examples.values())))
    assert count >= 20
    stamped = family.stamp(images, examples)
    assert stamped.shape == (count, *images.shape)
    assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
    moved = (stamped - images).pow(2).mean((1, 2, 3, 4)).sqrt()
    assert float(moved.median()) > 0.03
    assert float(torch.pdist(stamped[:200].flatten(1)).median()) > 0.5 * float(moved.median())


def test_screening_costs_forward_passes_and_stops_at_the_allowance(samples):
    ctx = Context(seed=0)
    screened(Listens(100.0), Spectral(), samples, 4, ctx)
    examples = len(Spectral().variety(samples.inputs, rng=ctx.rng)["amplitude"])
    assert ctx.spent == pytest.approx(examples * 16 / 3, rel=0.01)
    with pytest.raises(BudgetSpent):
        screened(Listens(100.0), Spectral(), samples, 4, Context(seed=0, budget=10))


def test_a_picture_of_low_frequencies_is_drawn_again_from_its_amplitudes():
    amplitude = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    picture = drawn(amplitude, 12, 9)
    assert torch.allclose(analysed(picture, 5, 4), amplitude, atol=1e-5)
    assert torch.allclose(drawn(analysed(picture, 12, 9), 12, 9), picture, atol=1e-5)
