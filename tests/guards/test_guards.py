"""What is particular to each guard; what all promise is in tests/contract/test_guard_contract.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, InputError, NotApplicable
from laocoon.core.methods import Guard
from laocoon.core.subject import Subject
from laocoon.guards.beatrix import Beatrix, gram_statistics, grams
from laocoon.guards.ibd_psc import IbdPsc
from laocoon.guards.mahalanobis import Mahalanobis
from laocoon.guards.scale_up import ScaleUp
from laocoon.guards.sentinet import SentiNet
from laocoon.guards.strip import Strip
from laocoon.guards.teco import Teco, transitions
from laocoon.guards.ted import Ted, adapted_rank, thickness
from laocoon.modalities.image import Image
from laocoon.recipes.class_distances import neighbours
from laocoon.recipes.ranking import auroc
from laocoon.testing.twins import Twins, twins

ALL = (Mahalanobis(), Ted(), Beatrix(), ScaleUp(), Teco(), Strip(), IbdPsc(), SentiNet())


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("image")


def told_apart(guard: Guard, pair: Twins) -> float:
    watch = guard.fit(pair.planted, Context())
    trigger, test = pair.implant.trigger, pair.plan.test
    stamped = trigger.stamp(test.inputs[trigger.goal.applies(test.labels)][:150])
    return auroc(watch.check(stamped).scores.tolist(), watch.check(test.inputs[:150]).scores.tolist())


@pytest.mark.parametrize("guard", [Mahalanobis(), Ted(), Beatrix(), Strip(), Teco(), SentiNet()],
                         ids=lambda g: g.card.name)
def test_a_patch_on_digits_is_seen(guard: Guard, pair: Twins) -> None:
    assert told_apart(guard, pair) > 0.9


@pytest.mark.parametrize("guard", ALL, ids=lambda g: g.card.name)
def test_too_few_samples_and_too_little_budget_are_said(guard: Guard, pair: Twins) -> None:
    given = pair.planted.fit
    assert given is not None
    few = replace(pair.planted, fit=Samples(given.inputs[:3], given.labels[:3]))
    with pytest.raises(NotApplicable, match="8 clean samples"):
        guard.fit(few, Context())
    with pytest.raises(BudgetSpent):
        guard.fit(pair.planted, Context(budget=2))


@pytest.mark.parametrize("guard", [Mahalanobis(), Ted(), Beatrix()], ids=lambda g: g.card.name)
def test_layers_are_read_in_one_pass(guard: Guard, pair: Twins) -> None:
    assert guard.fit(pair.planted, Context()).passes == 1


@pytest.mark.parametrize("guard", [Mahalanobis(), Ted(), Beatrix()], ids=lambda g: g.card.name)
@pytest.mark.parametrize("kind", ["dense", "transformer", "shared layer"])
def test_any_architecture_will_do(guard: Guard, kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = {"dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4)),
                  "transformer": Tokens, "shared layer": Shared}[kind]()
    rng = torch.Generator().manual_seed(1)
    clean = Samples(torch.rand(60, 1, 8, 8, generator=rng) * 0.5, torch.arange(60) % 4)
    watch = guard.fit(ModelCase(Subject(module, Image(), 4, (1, 8, 8)), clean), Context())
    usual = watch.check(torch.rand(50, 1, 8, 8, generator=rng) * 0.5).scores
    odd = watch.check(torch.rand(50, 1, 8, 8, generator=rng).round()).scores
    assert auroc(odd.tolist(), usual.tolist()) > 0.8


class Tokens(nn.Module):
    """Four patches of 4 × 4 px, attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Linear(16, 12)
        self.mix = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.0)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(x), 4, 16)
        return self.head(self.mix(self.cut(patches)).mean(1))


class Shared(nn.Module):
    """One layer used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for _ in range(3):
            x = torch.relu(self.step(x))
        return self.head(x)


def test_ranks_count_who_lies_closer() -> None:
    # Clean samples on a line: class 0 at 0 and 1, class 1 at 10 and 12; the tube around each is one wide.
    distances = (torch.tensor([[0.0, 1.0, 10.0, 12.0]]) - torch.tensor([[0.4], [8.0], [11.0]])).abs()
    labels = torch.tensor([0, 0, 0])
    others = (torch.tensor([0, 0, 1, 1]) != labels[:, None])
    wide, narrow = torch.full((4,), 100.0), torch.full((4,), 1.0)
    assert adapted_rank(distances, others, wide).tolist() == [0.0, 1.0, 1.0]
    found = adapted_rank(distances, others, narrow)
    assert found[0] == 0 and found[1] == pytest.approx(1 + 1.945910149) and found[2] > found[1]


def test_the_tube_is_as_wide_as_the_class_is_sparse() -> None:
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [7.0], [9.0], [20.0]])
    tube = thickness(neighbours(x, torch.tensor([0, 0, 0, 1, 1, 1, 2]), 3))
    assert bool((tube[:3] < tube[3:6]).all())
    assert torch.isfinite(tube).all(), "a class of one has a tube as well"


def test_grams_are_outer_products() -> None:
    v = torch.randn(3, 4)
    for row, found in zip(v, grams(v), strict=True):
        whole = row[:, None] * row
        assert found.tolist() == pytest.approx([float(whole[i, j]) for i in range(4) for j in range(i, 4)])


def test_gram_statistics_are_medians_of_the_class() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 2
    found = gram_statistics(x, labels, 3, width=4)
    entries = grams(found.scaling(x) @ found.directions)
    assert torch.allclose(found.median[1], entries[labels == 1].median(0).values)
    assert torch.allclose(found.median[2], entries.median(0).values), "a class without samples is judged by all"


def test_transitions_are_the_severity_where_the_answer_first_changes() -> None:
    kept = torch.tensor([[True, True, False, True], [False, True, True, True]])
    assert torch.allclose(transitions(kept, (3, 1)), torch.tensor([[2 / 3, 1.0], [0.0, 1.0]]))


def test_labels_suffice_for_scale_up_and_the_published_teco(pair: Twins) -> None:
    module = pair.planted.subject.module
    bare = _Labels(module)
    subject = replace(pair.planted.subject, module=bare, capabilities=frozenset({Capability.QUERY}))
    for guard in (ScaleUp(labels_only=True), ScaleUp(labels_only=True, by_class=True), Teco(published=True)):
        watch = guard.fit(replace(pair.planted, subject=subject), Context())
        full = guard.fit(pair.planted, Context())
        inputs = pair.plan.test.inputs[:30]
        assert torch.allclose(watch.check(inputs).scores, full.check(inputs).scores, atol=1e-5)


class _Labels(nn.Module):
    """Nothing but the answer, as one-hot logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(self.inner(x).argmax(1), 10).float()


def test_ibd_psc_wants_batch_normalisation_and_changes_none(pair: Twins) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    subject = Subject(plain, Image(), 10, (1, 8, 8))
    with pytest.raises(NotApplicable, match="batch normalisation"):
        IbdPsc().fit(replace(pair.planted, subject=subject), Context())
    before = pair.planted.subject.fingerprint()
    watch = IbdPsc().fit(pair.planted, Context())
    watch.check(pair.plan.test.inputs[:4])
    assert pair.planted.subject.fingerprint() == before
    assert watch.passes <= 6


def test_settings_that_make_no_sense_are_refused(pair: Twins) -> None:
    for guard in (ScaleUp(scales=()), ScaleUp(scales=(0.0,)), Strip(overlays=0), SentiNet(overlays=0),
                  SentiNet(share=1.0)):
        with pytest.raises(InputError):
            guard.fit(pair.planted, Context())


def test_the_mask_of_a_fired_request_lies_on_the_trigger(pair: Twins) -> None:
    """The twins' trigger is a patch of 4 px in one place: the mask covers it far more often than its share."""
    watch = SentiNet(share=0.15).fit(pair.planted, Context())
    trigger, test = pair.implant.trigger, pair.plan.test
    rows = trigger.goal.applies(test.labels).nonzero().flatten()[:60]
    stamped = trigger.stamp(test.inputs[rows])
    place = ((stamped - test.inputs[rows]).abs().sum(1) > 0).float().mean(0) > 0.3
    masks = watch.masks(stamped)
    assert masks.shape == (len(rows), *stamped.shape[2:])
    assert float(masks[:, place].float().mean()) > 2 * 0.15
