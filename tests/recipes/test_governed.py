"""Networks that draw from torch's global generator, as dropout does, are trained by the seed alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.card import Card
from laocoon.core.cases import DataCase, ModelCase, Samples
from laocoon.core.context import Context, governed
from laocoon.core.methods import DataDetector, Detector, Repair, Trainer
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.fit import fit
from laocoon.recipes.tuning import tune


def fitted(module: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> None:
    fit(module, inputs, labels, epochs=2, rng=torch.Generator().manual_seed(seed), batch=10)


def tuned(module: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> None:
    tune(module, inputs, labels, Context(seed=seed), epochs=2, rate=0.1, batch=10)


@pytest.mark.parametrize("train", [fitted, tuned])
def test_dropout_follows_the_seed_of_the_training(train: Callable[..., None]) -> None:
    def weights(seed: int, world: int) -> list[float]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        inputs = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(world)
        train(module, inputs, torch.arange(30) % 3, seed)
        return [float(p.sum()) for p in module.parameters()]

    with torch.random.fork_rng():
        first = weights(0, world=1)
        assert weights(0, world=2) == first and weights(1, world=1) != first


def test_neither_generator_is_moved() -> None:
    rng = torch.Generator().manual_seed(3)
    states = rng.get_state(), torch.get_rng_state()
    with governed(rng):
        torch.rand(5)
    assert torch.equal(rng.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])


# ---------------------------------------------------------------- whatever a method draws, its author need not think of it
CARD = Card("drawing", "", "", frozenset({"image"}), frozenset(), "")


@dataclass(frozen=True)
class Examines(Detector):
    card = CARD

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding]:
        yield Finding("drawing.number", "", float(torch.rand(())), "")


@dataclass(frozen=True)
class Scores(DataDetector):
    card = CARD

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        return torch.rand(len(case.suspects))


@dataclass(frozen=True)
class Mends(Repair):
    card = CARD

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        next(patient.module.parameters()).data.uniform_()


@dataclass(frozen=True)
class Trains(Trainer):
    card = CARD

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, None]:
        return subject(), None


def subject() -> Subject:
    return Subject(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Image(), 3, (1, 4, 4))


def drawn(kind: type, seed: int, world: int = 7) -> float:
    torch.manual_seed(7)
    model, samples, ctx = subject(), Samples(torch.rand(6, 1, 4, 4), torch.arange(6) % 3), Context(seed=seed)
    torch.manual_seed(world)
    if kind is Examines:
        return Examines().examine(ModelCase(model, samples, samples), ctx).findings[0].score
    if kind is Mends:
        mended = Mends().mend(ModelCase(model, samples, samples), ctx).subject
        assert mended is not None
        return float(next(mended.module.parameters()).sum())
    case = DataCase(samples, 3)
    if kind is Scores:
        scores = Scores().examine(case, ctx).scores
        assert scores is not None
        return float(scores.sum())
    trained = Trains().train(case, ctx).subject
    assert trained is not None
    return float(next(trained.module.parameters()).sum())


@pytest.mark.parametrize("kind", [Examines, Scores, Mends, Trains])
def test_methods_draw_by_their_seed_and_leave_the_world_as_it_was(kind: type) -> None:
    with torch.random.fork_rng():
        first = drawn(kind, 0)
        assert drawn(kind, 0, world=8) == first and drawn(kind, 1) != first
        torch.manual_seed(7)
        model, samples = subject(), Samples(torch.rand(6, 1, 4, 4), torch.arange(6) % 3)
        before = torch.get_rng_state()
        Examines().examine(ModelCase(model, samples, samples), Context(seed=3))
        assert torch.equal(torch.get_rng_state(), before)
