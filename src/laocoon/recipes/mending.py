"""What repairs by training share: the samples divided, how they are varied, and the loop. Weights change in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.recipes.choosing import settled
from laocoon.recipes.fit import shift_and_flip

Gradient = Callable[[Tensor, Tensor], None]  # inputs and the answers wanted [m, classes] -> gradients on the weights
MOST_STEPS = 100_000  # of one course, whatever was asked for
FEW = 25  # samples a class, for which the settings of repairs are written
BRISKEST = 3.0  # how much faster one may go with many


@dataclass(frozen=True)
class Course:
    """How long and how fast."""

    epochs: int
    rate: float  # at the start, with 25 samples a class; more with more of them; falls to zero along a cosine
    batch: int = 32
    momentum: float = 0.9
    decay: float = 5e-4  # of weights
    adam: bool = False  # AdamW instead of SGD
    statistics: bool = True  # batch norms follow the data; dropout and the like always rest


def plenty(samples: Samples) -> float:
    """How much more can be learnt from these samples than from few: √(samples a class / 25), from 1 to 3.

    Labels of many samples carry what a model should know, so that less of its earlier answers need be rehearsed, and
    larger steps are borne: on CIFAR-10, with 125 samples a class instead of 25, a patch that kept 29 % of its success
    at the settings for few fell to 5 % at these.
    """
    each = len(samples) / max(1, len(samples.labels.unique()))
    return min(BRISKEST, max(1.0, math.sqrt(each / FEW)))


@dataclass(frozen=True, eq=False)
class Divided:
    """Samples to train on, and others to choose by."""

    train: Samples
    check: Samples


def home(module: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def given(samples: Samples | None, module: nn.Module) -> Samples:
    """A case's clean samples where the network is, in an order that depends on their content alone."""
    if samples is None or len(samples) < 2:
        raise NotApplicable("fewer than two clean samples were given.")
    return settled(samples, home(module))


def divided(samples: Samples, ctx: Context, share: float = 0.25) -> Divided:
    """`share` of each class to choose by (none of a class with one sample), the rest to train on."""
    order = torch.randperm(len(samples), generator=ctx.rng)
    labels, check = samples.labels.cpu()[order], torch.zeros(len(samples), dtype=torch.bool)
    for c in labels.unique():
        rows = order[labels == c]
        check[rows[:min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    if not bool(check.any()):
        raise NotApplicable("there is one clean sample a class: nothing is left to choose a threshold by.")
    check = check.to(samples.inputs.device)
    return Divided(*(Samples(samples.inputs[m], samples.labels[m], samples.labelled) for m in (~check, check)))


@dataclass(frozen=True, eq=False)
class Variation:
    """How pictures are varied in training: moved by a few pixels, and mirrored where mirrors make no difference."""

    shift: int
    flip: bool
    rng: torch.Generator

    def __call__(self, inputs: Tensor) -> Tensor:
        return shift_and_flip(inputs, self.rng, shift=self.shift, flip=self.flip) if self.shift else inputs


def variation(module: nn.Module, samples: Samples, ctx: Context) -> Variation:
    """Pictures may move by a sixteenth of their side; they are mirrored if the network reads them so as well."""
    if samples.inputs.dim() != 4 or not samples.inputs.is_floating_point():
        return Variation(0, False, ctx.rng)
    mirrored = Samples(samples.inputs.flip(-1), samples.labels)
    flip = accuracy(module, mirrored, ctx) >= accuracy(module, samples, ctx) - 0.05
    return Variation(max(1, min(samples.inputs.shape[-2:]) // 16), flip, ctx.rng)


@torch.no_grad()
def scores(module: nn.Module, inputs: Tensor, ctx: Context) -> Tensor:
    """Class scores, [n, classes], in parts."""
    parts = []
    for part in inputs.split(ctx.batch):
        ctx.spend(len(part), backward=False)
        parts.append(module(part))
    return torch.cat(parts)


def accuracy(module: nn.Module, samples: Samples, ctx: Context) -> float:
    """Share of samples answered as labelled."""
    return float((scores(module, samples.inputs, ctx).argmax(-1) == samples.labels).float().mean())


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What clean samples ask for: their labels, and what the model answered to them before the repair.

    With a few hundred samples, labels alone are learnt by heart; the earlier answers carry what the model knew, and
    nothing of a trigger that is not there. They can be had for any input, so that pictures put together from two clean
    ones are rehearsed too (as in CutMix, Yun et al., ICCV 2019): more of them than there are samples.
    """

    before: nn.Module
    classes: int
    share: float  # of the earlier answers to a sample; 0: labels alone
    smooth: float  # of what labels ask for, spread over all classes
    mixed: bool
    vary: Variation
    ctx: Context

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [m, …] made from a batch, and what they should be answered with, [m, classes]."""
        inputs = self.vary(inputs)
        wanted = functional.one_hot(labels, self.classes).float() * (1 - self.smooth) + self.smooth / self.classes
        if self.share:
            wanted = (1 - self.share) * wanted + self.share * self._earlier(inputs)
        if self.mixed and self.vary.shift and len(inputs) > 1:
            pieces = patchwork(inputs, self.ctx.rng)
            inputs, wanted = torch.cat([inputs, pieces]), torch.cat([wanted, self._earlier(pieces)])
        return inputs, wanted

    def _earlier(self, inputs: Tensor) -> Tensor:
        return scores(self.before, inputs, self.ctx).softmax(-1)


def rehearsal(module: nn.Module, samples: Samples, classes: int, ctx: Context, *, share: float, smooth: float = 0.0,
              mixed: bool = True) -> Rehearsal:
    """Of the network as it is now; with `share` 0, of labels alone, and nothing is put together.

    share: of the earlier answers, with 25 samples a class; less with more of them.

    mixed: rehearse pictures put together from two as well. It keeps accuracy, and it keeps what fine-tuning alone would
    have forgotten.
    """
    vary, share = variation(module, samples, ctx), share / plenty(samples)
    return Rehearsal(copied(module) if share else module, classes, share, smooth, mixed and share > 0, vary, ctx)


def patchwork(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Each picture with a rectangle of another one in it, of a third to two thirds of its sides."""
    n, _, h, w = pictures.shape
    partner = pictures[torch.randperm(n, generator=rng).to(pictures.device)]
    inside = torch.ones(n, 1, 1, 1, dtype=torch.bool)
    for axis, side in ((2, h), (3, w)):
        length = (side * (1 + torch.rand(n, 1, generator=rng)) / 3).round()
        start = (torch.rand(n, 1, generator=rng) * (side - length)).round()
        at = torch.arange(side)[None]
        within = (at >= start) & (at < start + length)
        inside = inside & within.view(n, 1, *((side, 1) if axis == 2 else (1, side)))
    return torch.where(inside.to(pictures.device), partner, pictures)


def descend(module: nn.Module, samples: Samples, ctx: Context, course: Course, gradient: Gradient, asked: Rehearsal, *,
            after: Callable[[], None] = lambda: None) -> None:
    """Shuffled batches, one step of the optimiser for each; the network is left at rest and frozen.

    gradient pays for its own passes. after: what is done after each step, e.g. a projection.
    """
    parameters, rate = trainable(module), course.rate * plenty(samples)
    optimiser: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=rate, weight_decay=course.decay) if course.adam else
        torch.optim.SGD(parameters, lr=rate, momentum=course.momentum, weight_decay=course.decay))
    n = len(samples)
    steps = max(1, n // course.batch)
    total = min(MOST_STEPS, course.epochs * steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, total))
    module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    poised(module, course.statistics)
    for step in range(total):
        if step % steps == 0:
            order = torch.randperm(n, generator=ctx.rng).to(samples.inputs.device)
        index = order[step % steps * course.batch:][:course.batch]
        optimiser.zero_grad(set_to_none=True)
        gradient(*asked(samples.inputs[index], samples.labels[index]))
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        schedule.step()
        after()
    optimiser.zero_grad(set_to_none=True)
    module.eval()
    module.requires_grad_(False)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Weights that training can change; NotApplicable where there are none."""
    found = [p for p in module.parameters() if p.is_floating_point()]
    if not found:
        raise NotApplicable("the network has no weights to train.")
    return found


def poised(module: nn.Module, statistics: bool) -> None:
    """Ready to be trained without randomness of its own: dropout rests; batch norms follow the data, or rest too."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
            layer.train(statistics)


def copied(module: nn.Module) -> nn.Module:
    """A frozen copy at rest."""
    return copy.deepcopy(module).eval().requires_grad_(False)
