"""Inserted tokens. A trigger is a distribution over the vocabulary for each place; stamping inserts its mode.

Ids have no gradient, so the search goes through `blend`: the expected embedding softmax(logits / T) · E of each
place (PICCOLO, S&P 2022; DBS, ICML 2022), which becomes the stamped text as the temperature T falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.text import PADDING, UNKNOWN, Text


@dataclass(frozen=True)
class Tokens:
    """Trigger: logits [arms, count, vocabulary]. `position`: tokens of the text that stay before the insertion."""

    vocabulary: int
    count: int = 1
    position: int = 0
    special: tuple[int, ...] = (PADDING, UNKNOWN)  # ids that nobody can type
    name: str = "tokens"
    unit: str = "tokens"

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        # All arms start alike, so that the order of classes cannot matter; places differ, or they would stay twins.
        logits = torch.randn(1, self.count, self.vocabulary, generator=rng) * 0.01
        trigger = {"logits": logits.expand(arms, -1, -1).clone().to(like.device)}
        self.project(trigger)
        return trigger

    def tokens(self, trigger: Mapping[str, Tensor]) -> Tensor:
        """The most likely id of each place, [arms, count]."""
        return trigger["logits"].argmax(-1)

    def exactly(self, ids: Tensor) -> dict[str, Tensor]:
        """The trigger that is these ids, [arms, count]."""
        return {"logits": torch.nn.functional.one_hot(ids, self.vocabulary).float() * 50}

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        """Ids [batch, length] or [arms, batch, length] to [arms, batch, length]; what no longer fits falls off."""
        return self.insert(batch, self.tokens(trigger))

    def insert(self, batch: Tensor, ids: Tensor) -> Tensor:
        """The same for ids [arms, count], as a search tries thousands of them at once."""
        batch = batch.expand(len(ids), *batch.shape[-2:])
        return self._insert(batch, ids[:, None].expand(-1, batch.shape[1], -1), batch != 0)

    def blend(self, embedded: Tensor, batch: Tensor, table: Tensor, trigger: Mapping[str, Tensor],
              temperature: float) -> Tensor:
        """Differentiable: [batch, length, width] to [arms, batch, length, width]; table [vocabulary, width]."""
        return self.put(embedded, torch.softmax(trigger["logits"] / temperature, -1) @ table, batch)

    def put(self, embedded: Tensor, vectors: Tensor, batch: Tensor) -> Tensor:
        """Vectors [arms, count, width] among those of a batch: [arms, batch, length, width]."""
        arms, n = len(vectors), len(batch)
        return self._insert(embedded.expand(arms, *embedded.shape), vectors[:, None].expand(-1, n, -1, -1),
                            (batch != 0).expand(arms, *batch.shape))

    def each(self, embedded: Tensor, vectors: Tensor, batch: Tensor) -> Tensor:
        """Vectors [batch, count, width], for each text its own: [batch, length, width]."""
        return self._insert(embedded[None], vectors[None], (batch != 0)[None])[0]

    def _insert(self, sequence: Tensor, inserted: Tensor, present: Tensor) -> Tensor:
        """sequence [arms, batch, length, …], inserted [arms, batch, count, …], present [arms, batch, length]."""
        length = sequence.shape[2]
        places = torch.arange(length, device=sequence.device)
        start = present.sum(-1, keepdim=True).clamp_max(min(self.position, length - self.count))
        # Index into the text followed by the trigger: before `start` the text, then the trigger, then the rest.
        source = torch.where(places < start, places, torch.where(
            places < start + self.count, length + places - start, places - self.count))
        both = torch.cat([sequence, inserted], 2)
        while source.dim() < both.dim():
            source = source.unsqueeze(-1)
        return both.gather(2, source.expand(*source.shape[:3], *both.shape[3:]))

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return torch.full((len(trigger["logits"]),), float(self.count), device=batch.device)

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        trigger["logits"].clamp_(-50, 50)[..., list(self.special)] = -50

    def describe(self, trigger: Mapping[str, Tensor], modality: Modality) -> str:
        """The words of the first arm."""
        ids = self.tokens(trigger)[0]
        return modality.decode(ids) if isinstance(modality, Text) else " ".join(map(str, ids.tolist()))

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}

    def other(self, trigger: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """As many tokens that can be typed, drawn at random: a trigger that no training has seen."""
        ids = self.tokens(trigger)
        typed = torch.tensor(sorted(set(range(self.vocabulary)) - set(self.special)))
        drawn = typed[torch.randint(len(typed), tuple(ids.shape), generator=rng)]
        return self.exactly(drawn.to(ids.device))
