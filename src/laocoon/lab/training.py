"""How the lab's victims are trained: one recipe a data set, shared by the zoo and by the trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.lab.datasets import Dataset
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.fit import Optimiser, fit, shift_and_flip

SGD_RATE = 0.1  # peak learning rate of stochastic gradient descent with momentum


class Recipe(NamedTuple):
    """How many training samples, how long, and how pictures are varied."""

    samples: int
    epochs: int
    shift: int  # px of random translation
    flip: bool  # random mirroring


# The desk tier. The zoo's digests contain these rows: change one, and its specimens are others.
RECIPES: dict[str, tuple[int, int, int, bool]] = {
    "digits": Recipe(1100, 45, 1, False),
    "mnist": Recipe(8000, 5, 1, False),
    "gtsrb": Recipe(10000, 8, 2, False),
    "cifar10": Recipe(10000, 8, 2, True),
}


@dataclass(frozen=True)
class Manner:
    """How a training departs from its data set's recipe."""

    optimiser: Optimiser = "adamw"
    smoothing: float = 0.0  # of the labels
    varied: bool = True  # whether pictures are


MANNERS: dict[str, Manner] = {"": Manner(), "sgd": Manner(optimiser="sgd"), "smoothing": Manner(smoothing=0.1),
                              "bare": Manner(varied=False)}


def usual_rate(architecture: str) -> float:
    """Peak learning rate."""
    return 1.5e-3 if architecture == "vit" else 3e-3


def school(module: nn.Module, samples: Samples, *, architecture: str, epochs: int, shift: int, flip: bool,
           rng: torch.Generator, rate: float | None = None, manner: Manner = MANNERS[""]) -> None:
    """The victim's training, in place."""
    usual = SGD_RATE if manner.optimiser == "sgd" else usual_rate(architecture)
    fit(module, samples.inputs, samples.labels, epochs=epochs, rng=rng, rate=rate or usual,
        augment=(lambda x: shift_and_flip(x, rng, shift=shift, flip=flip)) if manner.varied else None,
        optimiser=manner.optimiser, smoothing=manner.smoothing)


@dataclass(frozen=True)
class Victim:
    """A network and its recipe under one seed. Twins share the initial weights and the order of the samples, so that
    all that tells a planted model from its clean twin is what the attacker did."""

    architecture: str
    channels: int
    side: int
    classes: int
    seed: int
    epochs: int
    shift: int
    flip: bool
    rate: float | None = None
    device: str = "cpu"  # where it is trained; what comes out is on the processor

    def blank(self) -> nn.Module:
        """The network before training."""
        return build(self.architecture, self.channels, self.side, self.classes, self._stream("network"))

    def subject(self, module: nn.Module) -> Subject:
        return Subject(module, Image(), self.classes, (self.channels, self.side, self.side))

    def fit(self, samples: Samples, ctx: Context) -> Subject:
        """The same start and order on every call; what `ctx` draws makes no difference."""
        module = self.blank().to(self.device)
        school(module, samples, architecture=self.architecture, epochs=self.epochs, shift=self.shift, flip=self.flip,
               rng=self._stream("training"), rate=self.rate)
        return self.subject(module.cpu())

    def untrained(self, ctx: Context) -> Subject:
        """Another start on every call: nobody but the victim knows where the victim starts."""
        return self.subject(build(self.architecture, self.channels, self.side, self.classes, ctx.rng))

    def augment(self, inputs: Tensor, ctx: Context) -> Tensor:
        """How the recipe varies a batch of pictures."""
        return shift_and_flip(inputs, ctx.rng, shift=self.shift, flip=self.flip)

    def _stream(self, name: str) -> torch.Generator:
        return Context(seed=self.seed).child(float("inf"), name).rng


@dataclass(frozen=True, eq=False)
class Lot:
    """Disjoint samples of one data set: the victim's, a teacher's maker's, the judge's and the defender's."""

    train: Samples
    prior: Samples | None  # None where too few are left
    test: Samples
    given: Samples


def lot(dataset: Dataset, seed: int, *, samples: int, test: int, given_per_class: int) -> Lot:
    """Drawn by the seed alone, so that every attack and every defence meets the same samples."""
    rng = Context(seed=seed).child(float("inf"), "samples").rng
    order = torch.randperm(len(dataset.train_labels), generator=rng)
    shuffled = torch.randperm(len(dataset.test_labels), generator=rng)
    labels = dataset.test_labels[shuffled]
    given = torch.cat([shuffled[labels == c][:given_per_class] for c in range(dataset.classes)])
    free = torch.ones(len(dataset.test_labels), dtype=torch.bool)
    free[given] = False
    rest = order[samples:2 * samples]
    return Lot(
        train=_picked(dataset, order[:samples]), prior=_picked(dataset, rest) if len(rest) >= samples // 2 else None,
        test=_picked(dataset, shuffled[free[shuffled]][:test], held=True), given=_picked(dataset, given, held=True))


def _picked(dataset: Dataset, rows: Tensor, *, held: bool = False) -> Samples:
    inputs, labels = ((dataset.test_inputs, dataset.test_labels) if held else
                      (dataset.train_inputs, dataset.train_labels))
    return Samples(inputs[rows].float() / 255, labels[rows].long())
