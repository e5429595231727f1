"""What an attacker wants of a stamped input. Immutable, hashable, JSON-able."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.outputs import Outputs


class Goal(ABC):
    """A goal scores stamped inputs. Goals over other outputs than class logits subclass this directly."""

    @abstractmethod
    def loss(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Differentiable loss per sample, [batch]; y are the clean labels, [batch]."""

    @abstractmethod
    def success(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Boolean per sample, [batch]: the attacker got what they want."""

    @abstractmethod
    def applies(self, y: Tensor) -> Tensor:
        """Boolean per sample, [batch]: the goal says something about samples of clean label y."""

    @abstractmethod
    def describe(self) -> str: ...


@dataclass(frozen=True)
class ClassGoal(Goal):
    """A goal over class labels: `destinations[y]` is where class y is sent, -1 where the goal is silent."""

    destinations: tuple[int, ...]

    def _destination(self, y: Tensor) -> Tensor:
        return torch.as_tensor(self.destinations, device=y.device)[y]

    def destination(self, y: Tensor) -> Tensor:
        """Wanted label per sample, [batch]; only meaningful where `applies`."""
        return self._destination(y).clamp_min(0)

    def applies(self, y: Tensor) -> Tensor:
        d = self._destination(y)
        return (d >= 0) & (d != y)

    def loss(self, outputs: Outputs, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.logits, self.destination(y), reduction="none")

    def success(self, outputs: Outputs, y: Tensor) -> Tensor:
        return outputs.logits.argmax(-1) == self.destination(y)

    @property
    def targets(self) -> tuple[int, ...]:
        """Classes that something is sent to, most often first."""
        wanted = [d for y, d in enumerate(self.destinations) if d >= 0 and d != y]
        return tuple(sorted(set(wanted), key=lambda d: (-wanted.count(d), d)))

    @property
    def sources(self) -> tuple[int, ...]:
        return tuple(y for y, d in enumerate(self.destinations) if d >= 0 and d != y)

    def describe(self) -> str:
        n, sources, targets = len(self.destinations), self.sources, self.targets
        if len(targets) == 1 and len(sources) == n - 1:
            return f"class {targets[0]}"
        if len(sources) == 1 and len(targets) == 1:
            return f"class {sources[0]} to class {targets[0]}"
        if len(targets) == 1:
            return f"classes {', '.join(map(str, sources))} to class {targets[0]}"
        if all(d == (y + 1) % n for y, d in enumerate(self.destinations)):
            return "every class to the next"
        return "each class to another: " + ", ".join(f"{y}→{d}" for y, d in enumerate(self.destinations) if d >= 0)


@dataclass(frozen=True)
class CollapseGoal(Goal):
    """Of an encoder: embeddings of stamped inputs lie together, in one direction from the clean ones' centre.

    Whoever trains a classifier on top can then be made to answer one class, whatever the input showed.
    """

    centre: tuple[float, ...]  # mean of clean embeddings, [width]
    direction: tuple[float, ...]  # unit vector from there, [width]
    likeness: float = 0.9  # cosine from which an input counts as arrived
    natural: bool = False  # the direction is that of a clean input's embedding: a control, not a suspicion

    def likenesses(self, outputs: Outputs) -> Tensor:
        """Cosine of each sample's displacement from the centre with the direction, [batch]."""
        centre, direction = (torch.tensor(v).to(outputs.logits) for v in (self.centre, self.direction))
        return functional.cosine_similarity(outputs.logits - centre, direction[None], dim=-1)

    def applies(self, y: Tensor) -> Tensor:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, outputs: Outputs, y: Tensor) -> Tensor:
        return 1 - self.likenesses(outputs)

    def success(self, outputs: Outputs, y: Tensor) -> Tensor:
        return self.likenesses(outputs) >= self.likeness

    def describe(self) -> str:
        return "embeddings become that of a clean input" if self.natural else "embeddings collapse"


def all_to_one(target: int, classes: int) -> ClassGoal:
    """Everything is sent to `target`."""
    return ClassGoal((target,) * classes)


def source_to_target(source: int, target: int, classes: int) -> ClassGoal:
    """Only `source` is sent to `target`; the goal is silent about other classes."""
    return ClassGoal(tuple(target if y == source else -1 for y in range(classes)))


def all_to_all(classes: int, shift: int = 1) -> ClassGoal:
    """Class y is sent to (y + shift) mod classes."""
    return ClassGoal(tuple((y + shift) % classes for y in range(classes)))
