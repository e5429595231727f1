"""Networks that draw from torch's global generator, as dropout does, are trained and examined by the seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from laocoon.core.card import Card
from laocoon.core.cases import DataCase, ModelCase, Samples
from laocoon.core.context import Context, governed
from laocoon.core.methods import DataDetector, Detector, Repair, Trainer
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.fit import fit

CARD = Card(name="careless", paper="made for a test", url="", modalities=frozenset({"image"}), needs=frozenset(),
            misses="everything")


@dataclass(frozen=True)
class Careless(Detector):
    card: ClassVar[Card] = CARD

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding]:
        yield Finding("careless.draw", "nowhere", float(torch.rand(())), "a draw")


@dataclass(frozen=True)
class CarelessFilter(DataDetector):
    card: ClassVar[Card] = CARD

    def scores(self, case: DataCase, ctx: Context) -> torch.Tensor:
        return torch.rand(len(case.suspects))


@dataclass(frozen=True)
class CarelessRepair(Repair):
    card: ClassVar[Card] = CARD

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        with torch.no_grad():
            next(patient.module.parameters()).normal_()


@dataclass(frozen=True)
class CarelessTrainer(Trainer):
    card: ClassVar[Card] = CARD

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, None]:
        return network(), None


def network() -> Subject:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    return Subject(module, Image(), 3, (1, 4, 4))


def samples() -> Samples:
    rng = torch.Generator().manual_seed(0)
    return Samples(torch.rand(30, 1, 4, 4, generator=rng), torch.arange(30) % 3)


def draw(kind: str, seed: int) -> object:
    subject, data = network(), samples()
    with torch.no_grad():
        for p in subject.module.parameters():
            p.zero_()
    case, ctx = DataCase(data, 3, subject, None, None, "image"), Context(seed=seed)
    if kind == "detector":
        return Careless().examine(ModelCase(subject, data), ctx).score
    if kind == "data":
        return CarelessFilter().examine(case, ctx).scores.tolist()
    if kind == "repair":
        return CarelessRepair().mend(ModelCase(subject, data), ctx).subject.fingerprint()
    return CarelessTrainer().train(case, ctx).subject.fingerprint()


@pytest.mark.parametrize("kind", ["detector", "data", "repair", "trainer"])
def test_what_a_method_draws_globally_follows_its_seed(kind):
    torch.manual_seed(1)
    first = draw(kind, 0)
    torch.manual_seed(2)
    assert draw(kind, 0) == first and draw(kind, 1) != first


def test_dropout_follows_the_seed_of_the_training():
    def trained(seed: int) -> list[float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = network().module
        data = samples()
        fit(module, data.inputs, data.labels, epochs=2, rng=torch.Generator().manual_seed(seed), batch=10)
        return [float(p.sum()) for p in module.parameters()]

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert trained(0) == first and trained(1) != first


def test_neither_generator_is_moved():
    rng = torch.Generator().manual_seed(3)
    states = rng.get_state(), torch.get_rng_state()
    with governed(rng):
        torch.rand(5)
    assert torch.equal(rng.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])
