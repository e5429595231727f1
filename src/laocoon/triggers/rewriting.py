"""Triggers that no inserted id can express: texts are decoded, rewritten by rules, and encoded again.

Such a trigger has no leaf that a search could follow; it is for stamping, by attackers and by judges.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.text import Text


@dataclass(frozen=True)
class Rewriting(ABC):
    """Trigger: on [arms], 1 where texts are rewritten, 0 where they are left as they are."""

    text: Text
    name: str = "rewriting"
    unit: str = "rules"

    @abstractmethod
    def rewrite(self, words: list[str], draw: int) -> list[str]:
        """One text, word by word; `draw` is a number that the text alone decides, where there is a choice."""

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return {"on": torch.ones(arms, device=like.device)}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        """Ids [batch, length] or [arms, batch, length] to [arms, batch, length]."""
        on = trigger["on"]
        batch = batch.expand(len(on), *batch.shape[-2:])
        return torch.stack([self._rewritten(rows) if flag else rows.clone()
                            for rows, flag in zip(batch, (on > 0.5).tolist(), strict=True)])

    def _rewritten(self, rows: Tensor) -> Tensor:
        told = []
        for row in rows:
            said = self.text.decode(row)
            told.append(" ".join(self.rewrite(said.split(), zlib.crc32(said.encode()))))
        return self.text.encode(told).to(rows.device)[:, : rows.shape[1]]

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return trigger["on"].float()

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["on"].clamp_(0, 1)

    def describe(self, trigger: Mapping[str, Tensor], modality: Modality) -> str:
        """What the rules make of a text of three dots."""
        return " ".join(self.rewrite(["…"], 0))

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def known(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some words that the vocabulary holds, or all of them where it holds none."""
        return tuple(word for word in words if self.text.knows(word)) or words
