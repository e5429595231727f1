"""Networks that draw from torch's global generator, as dropout does, are trained by the seed alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from laocoon.core.candidate import Candidate
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context, governed
from laocoon.core.goal import all_to_one
from laocoon.core.subject import Subject
from laocoon.detectors.data.asset import Asset
from laocoon.detectors.data.confusion_training import ConfusionTraining
from laocoon.modalities.image import Image
from laocoon.recipes.contrastive import pretrained
from laocoon.recipes.fit import fit
from laocoon.recipes.reactivation import Shots, lesson, taught
from laocoon.recipes.tuning import tune
from laocoon.trainers.dp_sgd import DPSGD
from laocoon.triggers.patch import Patch


def dropping() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def pictures(n: int = 30) -> Samples:
    return Samples(torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)


def subject() -> Subject:
    return Subject(dropping(), Image(), 3, (1, 4, 4))


def weights(module: nn.Module) -> list[float]:
    return [float(p.sum()) for p in module.parameters()]


def fitted(seed: int) -> list[float]:
    module, given = dropping(), pictures()
    fit(module, given.inputs, given.labels, epochs=2, rng=torch.Generator().manual_seed(seed), batch=10)
    return weights(module)


def tuned(seed: int) -> list[float]:
    module, given = dropping(), pictures()
    tune(module, given.inputs, given.labels, Context(seed=seed), epochs=2, rate=0.1, batch=10)
    return weights(module)


def trained_privately(seed: int) -> list[float]:
    case = DataCase(pictures(), 3, untrained=lambda ctx: subject())
    return weights(DPSGD(epochs=2, batch=10).fit(case, Context(seed=seed))[0].module)


def trained_without_labels(seed: int) -> list[float]:
    return weights(pretrained(subject(), pictures(40).inputs, Context(seed=seed), epochs=2, width=4, batch=16).module)


def shown_a_trigger(seed: int) -> list[float]:
    trigger = Candidate(Patch(), {"mask": torch.ones(1, 4, 4), "pattern": torch.ones(1, 1, 4, 4)}, all_to_one(0, 3), 1.0,
                        1.0, "test")
    how = Shots(steps=3, beside=6)
    shown = lesson(trigger, pictures(), Context(), how)
    return weights(taught(subject(), shown, Context(seed=seed), how).module)


def told_apart_by_asset(seed: int) -> list[float]:
    case = DataCase(pictures(), 3, subject(), trusted=pictures(12))
    return Asset(steps=4, batch=8).scores(case, Context(seed=seed)).tolist()


def told_apart_by_confusion(seed: int) -> list[float]:
    case = DataCase(pictures(), 3, subject(), trusted=pictures(12))
    return ConfusionTraining(steps=4, batch=8).scores(case, Context(seed=seed)).tolist()


@pytest.mark.parametrize("train", [fitted, tuned, trained_privately, trained_without_labels, shown_a_trigger,
                                   told_apart_by_asset, told_apart_by_confusion])
def test_dropout_follows_the_seed_of_the_training(train: Callable[[int], list[float]]) -> None:
    def result(seed: int, world: int) -> list[float]:
        torch.manual_seed(world)
        before = torch.get_rng_state()
        found = train(seed)
        assert torch.equal(torch.get_rng_state(), before), "the world is left as it was"
        return found

    with torch.random.fork_rng():
        first = result(0, world=1)
        assert result(0, world=2) == first and result(1, world=1) != first


def test_neither_generator_is_moved() -> None:
    rng = torch.Generator().manual_seed(3)
    states = rng.get_state(), torch.get_rng_state()
    with governed(rng):
        torch.rand(5)
    assert torch.equal(rng.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])
