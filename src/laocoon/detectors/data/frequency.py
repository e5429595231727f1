"""Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective. Zeng et al., ICCV 2021, arXiv 2104.03413.

Triggers leave traces among high frequencies that natural pictures do not have. A classifier of discrete cosine
transforms is trained on pictures as they are against the same with made-up triggers: blocks of one colour and of noise
at random places, noise over the whole picture, another picture blended in, stripes, a shadow. No model and no labels.

    score(x) = g(log |DCT(x)|), the classifier's score for "carries a trigger".

Departures: the pictures are the suspects themselves, of which few are poisoned, and each half of them is judged by a
classifier trained on the other half; four layers in place of six, and logarithms of the magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.card import Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.choosing import by_content
from laocoon.recipes.fit import fit
from laocoon.recipes.latent_statistics import spectrum
from laocoon.recipes.tuning import renew

FEWEST = 20  # pictures, below which nothing is learnt


@dataclass(frozen=True)
class Frequency(DataDetector):
    """How much a picture's frequencies look like those of pictures with made-up triggers."""

    learnt_from: int = 3000  # pictures at most that each of the two classifiers is trained on
    epochs: int = 4
    width: int = 16  # channels of the first layer
    most: int = 32  # frequencies a side; neighbours are averaged where a picture has more

    card: ClassVar[Card] = Card(
        name="frequency",
        paper="Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective (ICCV 2021)",
        url="https://arxiv.org/abs/2104.03413",
        modalities=frozenset({"image"}),
        needs=frozenset(),
        misses="small patches and faint noise on natural pictures (AUROC 0.6 on CIFAR-10, nothing found at 1 "
               "% false alarms; 0.8 to 0.9 on digits); warps, smooth patterns and photographs as triggers; "
               "pictures with strong edges of their own.",
        summary="triggers leave traces among a picture's high frequencies",
        quick={"epochs": 3, "learnt_from": 500},
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        inputs = case.suspects.inputs
        if len(inputs) < FEWEST:
            raise NotApplicable(f"a classifier of frequencies needs {FEWEST} pictures; these are {len(inputs)}.")
        order = by_content(inputs)[torch.randperm(len(inputs), generator=ctx.rng)]
        scores = torch.zeros(len(inputs))
        for given, asked in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            plain = inputs[given[: self.learnt_from]].float().cpu()
            judge, look = self._learnt(plain, with_triggers(plain, ctx.rng), ctx)
            for rows in asked.split(ctx.batch):
                ctx.spend(len(rows), backward=False)
                with torch.no_grad():
                    answer = judge(look(inputs[rows].float().cpu()).to(ctx.device)).float().cpu()
                scores[rows] = answer[:, 1] - answer[:, 0]
        return scores

    def _learnt(self, plain: Tensor, marked: Tensor, ctx: Context) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """The trained network, and what makes its input of pictures."""
        channels, side = plain.shape[1], (min(self.most, plain.shape[2]), min(self.most, plain.shape[3]))
        rows = torch.cat([spectrum(plain, self.most), spectrum(marked, self.most)])
        mean, spread = rows.mean(0), rows.std(0).clamp_min(1e-6)

        def look(pictures: Tensor) -> Tensor:
            return ((spectrum(pictures, self.most) - mean) / spread).view(-1, channels, *side)

        network = classifier(channels, self.width)
        renew(network, ctx.rng)
        labels = torch.cat([torch.zeros(len(plain)), torch.ones(len(marked))]).long()
        ctx.spend(self.epochs * len(rows))
        fit(network.to(ctx.device), ((rows - mean) / spread).view(-1, channels, *side), labels, epochs=self.epochs,
            rng=ctx.rng, batch=min(64, len(rows)), rate=4e-3)
        return network, look


def classifier(channels: int, width: int) -> nn.Module:
    """Four convolutions over frequencies, low and high ones kept apart to the end; two classes."""
    def layer(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    with torch.random.fork_rng(devices=[]):  # the weights are drawn anew before training
        return nn.Sequential(*layer(channels, width, 1), *layer(width, width, 2), *layer(width, 2 * width, 2),
                             *layer(2 * width, 2 * width, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                             nn.Linear(8 * width, 2))


def with_triggers(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """A copy of pictures [n, channels, height, width], each with one of six kinds of made-up trigger."""
    n, c, h, w = pictures.shape
    marked = pictures.clone()
    kinds = torch.randint(0, 6, (n,), generator=rng)
    whole = pictures + 0.1 * torch.randn(pictures.shape, generator=rng)
    strength = (0.1 + 0.2 * torch.rand(n, generator=rng))[:, None, None, None]
    pattern = torch.rand(pictures.shape, generator=rng)
    blended = torch.lerp(pictures, pattern, strength)
    other = torch.lerp(pictures, pictures[torch.randperm(n, generator=rng)], strength)
    phase = torch.arange(w) * (1 + 7 * torch.rand(n, 1, generator=rng)) * 2 * torch.pi / w
    striped = pictures + 0.08 * phase.sin()[:, None, None, :]
    for kind, made in ((2, whole), (3, blended), (4, other), (5, striped)):
        marked[kinds == kind] = made[kinds == kind]
    side = (1 + torch.rand(n, generator=rng) * max(1.0, min(h, w) / 5)).long().clamp(2, min(h, w))
    top = (torch.rand(n, generator=rng) * (h - side + 1)).long()
    left = (torch.rand(n, generator=rng) * (w - side + 1)).long()
    y, x = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    inside = ((y >= top[:, None, None]) & (y < (top + side)[:, None, None])
              & (x >= left[:, None, None]) & (x < (left + side)[:, None, None]))[:, None]
    coarse = torch.rand(n, c, 1, 1, generator=rng).round().expand(n, c, h, w)
    fine = torch.rand(n, c, h, w, generator=rng).round()
    for kind, made in ((0, coarse), (1, fine)):
        chosen = kinds == kind
        marked[chosen] = torch.where(inside[chosen], made[chosen], pictures[chosen])
    return marked.clamp(0, 1)
