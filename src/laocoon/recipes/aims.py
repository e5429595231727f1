"""What the arms of an inversion want of their outputs: a class each, or that embeddings collapse onto one place.

The engine (`recipes/inversion.py`) knows triggers, sizes and schedules; an aim knows losses and hits. Shapes are
[arms, batch, outputs], and arms never interact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Aim(Protocol):
    """One wish an arm."""

    def __len__(self) -> int:
        """Arms."""

    def select(self, arms: Tensor | slice) -> Aim:
        """The aim of some arms."""

    def to(self, device: torch.device) -> Aim: ...

    def pools(self, labels: Tensor) -> list[Tensor]:
        """Per arm, the indices of the samples that its wish speaks of."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of each arm, [arms], differentiable; outputs [arms, batch, …], labels [arms, batch]."""

    def hits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Which samples are where their arm wants them, boolean [arms, batch]."""


@dataclass(frozen=True, eq=False)
class ToClasses:
    """Samples of class y are sent to destinations[arm, y]; −1 where an arm is silent about a class."""

    destinations: Tensor  # long [arms, classes]

    def __len__(self) -> int:
        return len(self.destinations)

    def select(self, arms: Tensor | slice) -> ToClasses:
        return ToClasses(self.destinations[arms])

    def to(self, device: torch.device) -> ToClasses:
        return ToClasses(self.destinations.to(device))

    def pools(self, labels: Tensor) -> list[Tensor]:
        found = []
        for row in self.destinations:
            wanted = row[labels]
            found.append(((wanted >= 0) & (wanted != labels)).nonzero().flatten())
        return found

    def _wanted(self, labels: Tensor) -> Tensor:
        return self.destinations[torch.arange(len(labels), device=labels.device)[:, None], labels]

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = functional.cross_entropy(outputs.flatten(0, 1), self._wanted(labels).flatten(), reduction="none")
        return each.view(len(labels), -1).mean(1)

    def hits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.argmax(-1) == self._wanted(labels)


@dataclass(frozen=True, eq=False)
class Collapse:
    """Embeddings of stamped samples come to lie in one direction from the centre of the clean ones.

    Cosines are taken about that centre: embeddings behind a rectifier all point the same way from zero, and a trigger
    that only draws everything towards the middle of the clean embeddings moves nothing to a place of its own.
    """

    centre: Tensor  # [width], mean of clean embeddings
    towards: Tensor  # [arms, width]: unit vectors; a row of zeros is free: wherever its stamped samples go together
    likeness: float = 0.9  # cosine from which a sample counts as arrived

    def __len__(self) -> int:
        return len(self.towards)

    def select(self, arms: Tensor | slice) -> Collapse:
        return replace(self, towards=self.towards[arms])

    def to(self, device: torch.device) -> Collapse:
        return replace(self, centre=self.centre.to(device), towards=self.towards.to(device))

    def pools(self, labels: Tensor) -> list[Tensor]:
        return [torch.arange(len(labels))] * len(self)

    def cosines(self, outputs: Tensor) -> Tensor:
        """Of each sample with where its arm goes, [arms, batch]; outputs [arms, batch, width]."""
        moved = functional.normalize(outputs - self.centre, dim=-1)
        free = (self.towards == 0).all(-1, keepdim=True)
        direction = torch.where(free, functional.normalize(moved.mean(1), dim=-1), self.towards)
        return (moved * direction[:, None]).sum(-1)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 1 - self.cosines(outputs).mean(1)

    def hits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.cosines(outputs) >= self.likeness
