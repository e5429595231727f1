"""Where clean embeddings lie, and where stamped ones go together. Mathematics of detectors that look for a collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject


@dataclass(frozen=True, eq=False)
class Landscape:
    """Clean embeddings: their mean, and unit vectors from there to those that are most unlike each other."""

    centre: Tensor  # [width]
    landmarks: Tensor  # [count, width]


@torch.no_grad()
def embeddings(subject: Subject, inputs: Tensor, ctx: Context) -> Tensor:
    """[n, width], in chunks; NotApplicable where they are not finite or all the same."""
    found = []
    for part in inputs.split(ctx.batch):
        ctx.spend(len(part), backward=False)
        found.append(subject.outputs(part).logits)
    whole = torch.cat(found)
    if not bool(torch.isfinite(whole).all()):
        raise NotApplicable("the encoder gives embeddings that are not finite.")
    if len(whole) < 2 or float((whole - whole.mean(0)).norm(dim=1).max()) <= 1e-5 * float(whole.norm(dim=1).max()):
        raise NotApplicable("the encoder gives the same embedding to all clean samples.")
    return whole


def landscape(embedded: Tensor, count: int) -> Landscape:
    """Landmarks by farthest-first traversal, on cosines about the mean, from the sample farthest from the mean.

    Neither the order of the samples nor a rotation of the embedding changes what is picked.
    """
    centre = embedded.mean(0)
    moved = embedded - centre
    lengths = moved.norm(dim=1)
    units = functional.normalize(moved, dim=1)
    picked = [int(lengths.argmax())]
    nearest = units @ units[picked[0]]
    while len(picked) < min(count, len(embedded)):
        picked.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, units @ units[picked[-1]])
    return Landscape(centre, units[torch.tensor(picked, device=embedded.device)])


def common(moved: Tensor) -> Tensor:
    """The direction in which vectors [n, width] point together, a unit vector [width]."""
    return functional.normalize(functional.normalize(moved, dim=1).mean(0), dim=0)


def resultant(moved: Tensor) -> Tensor:
    """How alike directions are: the length of the mean of the unit vectors, [...]; moved [..., n, width].

    1 where all point the same way, about 1/√n where they point anywhere. Its square is the mean cosine of all pairs.
    """
    length: Tensor = functional.normalize(moved, dim=-1).mean(-2).norm(dim=-1)
    return length
