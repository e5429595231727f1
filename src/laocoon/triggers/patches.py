"""Several patches that a model knows at once, after multi-trigger, multi-target BadNets (arXiv 1708.06733).

A candidate speaks of one trigger and one goal. Here its leaves hold them all: which patch is stamped is the leaf
`chosen`, and where each patch sends its samples the leaf `targets`. `each` makes a candidate of every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.goal import all_to_one


@dataclass(frozen=True)
class Patches:
    """Trigger: mask [arms, kinds, 1, height, width], pattern [arms, kinds, channels, height, width], in [0, 1];
    targets [arms, kinds] and chosen [arms], whole numbers.
    """

    kinds: int = 3  # of blank(); a trigger may have any number
    name: str = "patches"
    unit: str = "px"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        _, c, h, w = like.shape
        return {"mask": torch.rand(arms, self.kinds, 1, h, w, generator=rng).to(like) * 0.1,
                "pattern": torch.rand(arms, self.kinds, c, h, w, generator=rng).to(like),
                "targets": torch.arange(self.kinds).repeat(arms, 1), "chosen": torch.zeros(arms, dtype=torch.long)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        rows = torch.arange(len(trigger["chosen"]))
        mask, pattern = (trigger[k][rows, trigger["chosen"]].unsqueeze(1) for k in ("mask", "pattern"))
        return batch * (1 - mask) + mask * pattern

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        rows = torch.arange(len(trigger["chosen"]))
        return trigger["mask"][rows, trigger["chosen"]].sum((1, 2, 3))

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        for name in ("mask", "pattern"):
            trigger[name].clamp_(0, 1)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}


def each(candidate: Candidate, classes: int) -> tuple[Candidate, ...]:
    """A candidate for every patch of one arm, with its own goal."""
    found = []
    for kind, target in enumerate(candidate.trigger["targets"][0].tolist()):
        leaves = {**candidate.trigger, "chosen": torch.tensor([kind])}
        found.append(replace(candidate, trigger=leaves, goal=all_to_one(target, classes),
                             size=float(candidate.trigger["mask"][0, kind].sum())))
    return tuple(found)
