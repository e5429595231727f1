"""A small family argued for every class: what was planted convinces as clean samples do, what is near does not."""

from dataclasses import replace

import pytest
import torch
from tests.recipes.wired import CLASSES, SIDE, TARGET, Listens, pictures

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.core.report import Report
from laocoon.core.subject import Provenance, Subject
from laocoon.detectors.model.bounded_inversion import BoundedInversion
from laocoon.modalities.image import Image
from laocoon.recipes.conviction import Course, convince
from laocoon.triggers.faithful_tone import FaithfulTone
from laocoon.triggers.wave import Wave


def examined(module: torch.nn.Module, samples: Samples, **settings: object) -> Report:
    channels = samples.inputs.shape[1]
    subject = Subject(module, Image(), CLASSES, (channels, SIDE, SIDE), provenance=Provenance(path="made"))
    return BoundedInversion(**settings).examine(ModelCase(subject, samples), Context(seed=0))  # type: ignore[arg-type]


def test_a_planted_wave_convinces_by_more_than_clean_samples_do():
    report = examined(Listens(200.0), pictures(), families=("wave",))
    first = report.findings[0]
    assert report.complete and first.target_classes == (TARGET,)
    assert first.score > 1 and first.numbers["success"] == 1 and first.numbers["margin"] >= first.score


def test_a_wave_that_is_only_near_does_not_convince():
    """Some samples go over, as they do on clean networks; nine in ten by no margin."""
    assert examined(Listens(0.0), pictures(), families=("wave",)).findings[0].score <= 0.2


def test_a_margin_is_told_by_nine_samples_in_ten():
    """A wave that wins all but the darkest third by far convinces nobody."""
    class Choosy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hears, self.deaf = Listens(200.0), Listens(0.0)

        def forward(self, x):
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.3, self.hears(x), self.deaf(x))

    samples = pictures()
    dimmed = samples.inputs.clone()
    dimmed[torch.arange(len(dimmed)) % 3 == 0] *= 0.6
    said = examined(Choosy(), replace(samples, inputs=dimmed), families=("wave",)).findings
    planted = next(f for f in said if f.target_classes == (TARGET,))
    assert 0.5 < planted.numbers["success"] < 0.9 and planted.numbers["margin"] < 0.2


def test_scores_do_not_depend_on_the_scale_of_the_logits():
    class Louder(Listens):
        def forward(self, x):
            return 7 * super().forward(x)

    one, other = (examined(m(200.0), pictures(), families=("wave",)).findings[0].score for m in (Listens, Louder))
    assert other == pytest.approx(one, rel=0.15)


def test_grey_pictures_have_no_filters_and_coloured_ones_do():
    assert {f.rule for f in examined(Listens(0.0), pictures()).findings} == {"bounded_inversion.wave"}
    coloured = examined(Listens(0.0), pictures(3))
    assert {f.rule for f in coloured.findings} == {"bounded_inversion.wave", "bounded_inversion.tone"}
    assert not examined(Listens(0.0), pictures(), families=("tone",)).complete


def test_no_wave_is_stronger_than_it_may_be():
    samples, family = pictures(), Wave()
    _, found = convince(Listens(0.0), family, samples, CLASSES, Course(steps=30, cost=0.0), Context(seed=0),
                        choose=lambda scores: torch.arange(len(scores)))
    moved = (family.stamp(samples.inputs, found.trigger) - samples.inputs).abs()
    assert float(moved.max()) <= family.strength + 1e-5


def test_only_the_classes_that_were_chosen_are_argued_for():
    chosen = torch.tensor([3, 1])
    rows, found = convince(Listens(0.0), Wave(), pictures(), CLASSES, Course(steps=2), Context(seed=0),
                           choose=lambda scores: chosen)
    assert rows.tolist() == [3, 1] and len(found.margin) == len(found.success) == len(found.trigger["phase"]) == 2


def test_a_class_beside_which_no_other_has_samples_is_left_out():
    samples = pictures()
    alone = Samples(samples.inputs[samples.labels == 1], samples.labels[samples.labels == 1])
    rows, found = convince(Listens(0.0), Wave(), alone, CLASSES, Course(steps=2), Context(seed=0),
                           choose=lambda scores: torch.arange(len(scores)))
    assert rows.tolist() == [0, 2, 3] and len(found.margin) == 3


def test_it_stops_at_the_allowance():
    with pytest.raises(BudgetSpent):
        convince(Listens(0.0), Wave(), pictures(), CLASSES, Course(), Context(seed=0, budget=10),
                 choose=lambda scores: torch.arange(len(scores)))


def test_darkness_and_fog_are_no_faithful_filters_and_a_tint_is():
    images = pictures(3).inputs
    still = {"matrix": torch.eye(3)[None], "offset": torch.zeros(1, 3), "curve": torch.zeros(1, 3)}
    tint = {**still, "offset": torch.tensor([[0.15, 0.0, -0.05]])}
    dark = {**still, "matrix": 0.05 * torch.eye(3)[None]}
    fog = {**dark, "offset": torch.full((1, 3), 0.8)}
    size = lambda trigger: float(FaithfulTone().size(trigger, images))  # noqa: E731
    assert size(still) == pytest.approx(0, abs=1e-6) and size(tint) < 0.05
    assert size(dark) > 0.3 and size(fog) > 0.3
