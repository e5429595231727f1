"""What data detectors see and do not see, on digits; and their statistics against slow references."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from laocoon.attacks.badnets import BadNets
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import DataDetector
from laocoon.core.subject import Subject
from laocoon.detectors.data.beatrix import Beatrix
from laocoon.detectors.data.confusion_training import ConfusionTraining
from laocoon.detectors.data.flare import Flare
from laocoon.detectors.data.frequency import Frequency, with_triggers
from laocoon.detectors.data.influence import Influence
from laocoon.detectors.data.scan_em import ScanEm, divide
from laocoon.detectors.data.spectre import quantum_entropy
from laocoon.detectors.data.strip_filter import StripFilter
from laocoon.recipes.fit import fit
from laocoon.recipes.ranking import auroc
from laocoon.testing.data_checks import case_of
from laocoon.testing.twins import twins


def area(scores: Tensor | None, wanted: Tensor) -> float:
    assert scores is not None
    return auroc(scores[wanted].tolist(), scores[~wanted].tolist())


def found_at_one_percent(scores: Tensor | None, wanted: Tensor) -> float:
    assert scores is not None
    return float((scores[wanted] > scores[~wanted].quantile(0.99)).float().mean())


def truth() -> Tensor:
    wanted = torch.zeros(len(case_of(twins("image")).suspects), dtype=torch.bool)
    wanted[twins("image").implant.poisoned] = True
    return wanted


@cache
def all_to_all(norm: bool) -> tuple[DataCase, Tensor]:
    """15 % of digits with a patch and the next label, and a network, with or without batch norm, trained on them."""
    plan = twins("image").plan

    def train(samples: Samples, ctx: Context) -> Subject:
        if norm:
            return plan.fit(samples, ctx)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                   nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                   nn.Linear(24 * 16, 48), nn.ReLU(), nn.Linear(48, 10))
        fit(module, samples.inputs, samples.labels, epochs=10, rng=torch.Generator().manual_seed(1), batch=64, rate=5e-3)
        return Subject(module, twins("image").corpus.modality, 10, (1, 16, 16))

    attack = BadNets(rate=0.15, side=4, mode="all-to-all")
    implant = attack.implant(replace(plan, fit=train), Context(seed=3))
    assert implant.train is not None
    wanted = torch.zeros(len(implant.train), dtype=torch.bool)
    wanted[implant.poisoned] = True
    return replace(case_of(twins("image")), suspects=implant.train, subject=implant.subject), wanted


@pytest.mark.parametrize("norm", [True, False])
def test_flare_sees_all_to_all_poison(norm: bool) -> None:
    case, wanted = all_to_all(norm)
    assert found_at_one_percent(Flare().examine(case, Context()).scores, wanted) >= 0.9


def test_strip_does_not_see_all_to_all_poison() -> None:
    """As its card says. Should it learn to, the card must be told."""
    case, wanted = all_to_all(True)
    assert area(StripFilter().examine(case, Context()).scores, wanted) < 0.6


def test_flare_does_not_take_wrong_labels_for_poison() -> None:
    """A wrong label leaves no trace in what hidden layers do; the head's gradients show it."""
    pair = twins("image")
    labels, wrong = pair.plan.train.labels.clone(), torch.zeros(len(pair.plan.train), dtype=torch.bool)
    wrong[::25] = True
    labels[wrong] = (labels[wrong] + 3) % 10
    case = replace(case_of(pair), suspects=Samples(pair.plan.train.inputs, labels), subject=pair.clean.subject)
    assert abs(area(Flare().examine(case, Context()).scores, wrong) - 0.5) < 0.15
    assert area(Influence().examine(case, Context()).scores, wrong) > 0.95


@pytest.mark.parametrize("method", [ScanEm(), Beatrix(), Influence(), StripFilter(blends=4)])
def test_trusted_samples_are_no_condition(method: DataDetector) -> None:
    bare = replace(case_of(twins("image")), trusted=None, untrained=None)
    assert area(method.examine(bare, Context()).scores, truth()) > 0.7


def test_confusion_training_needs_a_model_or_an_architecture() -> None:
    case = case_of(twins("image"))
    method = ConfusionTraining(steps=60, batch=32)
    assert area(method.examine(replace(case, subject=None), Context()).scores, truth()) > 0.8
    scored = method.examine(replace(case, subject=None, untrained=None), Context())
    assert scored.scores is None and "architecture" in scored.report.reason


def test_frequency_needs_no_model() -> None:
    bare = replace(case_of(twins("image")), subject=None, trusted=None, untrained=None)
    assert area(Frequency(epochs=3, learnt_from=500).examine(bare, Context()).scores, truth()) > 0.7


def test_few_samples_are_refused_with_words() -> None:
    case = case_of(twins("image"))
    few = replace(case, suspects=Samples(case.suspects.inputs[:9], case.suspects.labels[:9]))
    for method in (Flare(), Frequency()):
        scored = method.examine(few, Context())
        assert scored.scores is None and scored.report.skipped and "9" in scored.report.reason


def test_made_up_triggers_mark_every_picture() -> None:
    pictures = torch.rand(60, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    marked = with_triggers(pictures, torch.Generator().manual_seed(1))
    assert marked.shape == pictures.shape and float(marked.min()) >= 0 and float(marked.max()) <= 1
    assert int((marked != pictures).flatten(1).any(1).sum()) == 60


def test_gram_matrices_are_those_of_the_paper() -> None:
    maps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Beatrix(orders=3)._grams(maps)
    slow = []
    for order in (1, 2, 3):
        for i in range(3):
            for j in range(i, 3):
                value = sum((maps[:, i, k] ** order) * (maps[:, j, k] ** order) for k in range(5))
                slow.append(value.sign() * value.abs() ** (1 / order))  # type: ignore[union-attr]
    assert torch.allclose(found, torch.stack(slow, 1))


def test_quantum_entropy_is_a_matrix_exponential() -> None:
    white = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white[:40, 1] += 4
    covariance, eye = white.T @ white / 300, torch.eye(4, dtype=torch.float64)
    strength = torch.linalg.matrix_norm(covariance, 2) - 1
    q = torch.linalg.matrix_exp(4 * (covariance - eye) / strength)
    slow = torch.stack([h @ q @ h / q.trace() for h in white])
    assert torch.allclose(quantum_entropy(white, 4.0), slow)
    assert float(slow[:40].mean()) > 2 * float(slow[40:].mean())


def test_a_class_of_two_identities_is_divided() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(200, 5, generator=rng).double()
    two = torch.cat([one, torch.randn(30, 5, generator=rng).double() + 3])
    whole, split = divide(one, 30), divide(two, 30)
    assert split.gain > whole.gain + 0.5
    assert float(split.place[200:].mean()) > 0.8 and float(split.place[:200].mean()) < -0.8
