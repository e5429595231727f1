"""Nearest neighbours among labelled features: which label they bear, and which labels are probably wrong.

Labels that are wrong are told by two signs: the model prefers another class although it is asked about samples of its
own training set (confident learning: Northcutt, Jiang and Chuang, 2021), and the sample lies among those of another
label. Poison shows neither: the model fits it with confidence, and it lies among its like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # rows of distances that are in memory at a time


@dataclass(frozen=True, eq=False)
class Labelling:
    """How labels and features agree."""

    nearest: Tensor  # [n], class whose mean lies nearest
    share: Tensor  # [n], of a sample's nearest neighbours, itself apart, how many bear its label
    wrong: Tensor  # bool [n], probably mislabelled


def nearest_rows(points: Tensor, pool: Tensor, count: int, own: Tensor | None = None) -> Tensor:
    """Indices into the pool of the `count` most similar features by cosine, [n, count].

    own: [n], each point's own place in the pool, −1 where it has none; it is not its own neighbour.
    """
    base = functional.normalize(pool.float(), dim=1)
    found = []
    for start in range(0, len(points), CHUNK):
        likeness = functional.normalize(points[start:start + CHUNK].float(), dim=1) @ base.T
        if own is not None:
            mine = own[start:start + CHUNK]
            rows = (mine >= 0).nonzero().flatten()
            likeness[rows, mine[rows]] = -2.0
        found.append(likeness.topk(min(count, len(pool)), dim=1).indices)
    return torch.cat(found) if found else torch.zeros(0, count, dtype=torch.long)


def labelling(features: Tensor, logits: Tensor, labels: Tensor, rng: torch.Generator, *, count: int = 10,
              most: int = 5000) -> Labelling:
    """Which labels are probably wrong. `most`: samples, drawn at random, among which neighbours are looked for."""
    n, classes = logits.shape
    centred = features.float() - features.float().mean(0)
    drawn = torch.randperm(n, generator=rng)[:most]
    own = torch.full((n,), -1, dtype=torch.long)
    own[drawn] = torch.arange(len(drawn))
    bear = labels[drawn][nearest_rows(centred, centred[drawn], count, own)]
    share = (bear == labels[:, None]).float().mean(1)
    sure = logits.float().softmax(1)
    told, predicted = sure[torch.arange(n), labels], logits.argmax(1)
    there = [bool((labels == c).any()) for c in range(classes)]
    # A class is claimed where its probability reaches what samples of that label have on average.
    usual = torch.stack([told[labels == c].mean() if there[c] else torch.tensor(1.0) for c in range(classes)])
    claimed = sure >= usual
    claimed[torch.arange(n), labels] = False
    rival = torch.where(claimed, sure, torch.zeros_like(sure)).amax(1)
    wrong = (rival > told) & (predicted != labels) & (share < 0.5)
    means = torch.stack([centred[labels == c].mean(0) if there[c] else torch.full_like(centred[0], 1e9)
                         for c in range(classes)])
    nearest = torch.cat([torch.cdist(part, means).argmin(1) for part in centred.split(CHUNK)])
    return Labelling(nearest, share, wrong)
