"""A frame of tokens around a text: what stands before it and what stands behind it, fixed ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.text import PADDING, Text


@dataclass(frozen=True)
class Frame:
    """Trigger: ids before [arms, k] and after [arms, m], filled up with padding. Nothing in it can be followed."""

    before: int  # k, most tokens before a text
    after: int  # m, most tokens behind it
    name: str = "template"
    unit: str = "tokens"

    def exactly(self, before: Tensor, after: Tensor) -> dict[str, Tensor]:
        """The trigger that is these ids, [arms, k] and [arms, m]."""
        return {"before": before, "after": after}

    def blank(self, like: Tensor, arms: int, *, rng: torch.Generator) -> dict[str, Tensor]:
        return self.exactly(*(torch.zeros(arms, k, dtype=torch.long, device=like.device)
                              for k in (self.before, self.after)))

    def stamp(self, batch: Tensor, trigger: Mapping[str, Tensor]) -> Tensor:
        """Ids [batch, length] or [arms, batch, length] to [arms, batch, length]; a text that is too long is cut."""
        arms = len(trigger["before"])
        batch = batch.expand(arms, *batch.shape[-2:])
        return torch.stack([framed(rows, before[before != PADDING], after[after != PADDING])
                            for rows, before, after in zip(batch, trigger["before"], trigger["after"], strict=True)])

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        both = torch.cat([trigger["before"], trigger["after"]], 1)
        return (both != PADDING).sum(1).float().to(batch.device)

    def project(self, trigger: Mapping[str, Tensor]) -> None:
        pass  # ids are what an attacker can type

    def describe(self, trigger: Mapping[str, Tensor], modality: Modality) -> str:
        """The frame of the first arm, dots where the text stands."""
        sides = [trigger[k][0] for k in ("before", "after")]
        said = [modality.decode(s) if isinstance(modality, Text) else " ".join(map(str, s.tolist())) for s in sides]
        return " ".join(word for word in (said[0], "…", said[1]) if word)

    def select(self, trigger: Mapping[str, Tensor], arms: Tensor) -> dict[str, Tensor]:
        return {k: v[arms] for k, v in trigger.items()}


def framed(batch: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Ids [n, length] with others around each text; where that does not fit, the text loses its end."""
    n, length = batch.shape
    before, after = before[:length], after[:length]
    kept = (batch != PADDING).sum(1, keepdim=True).clamp_max(max(0, length - len(before) - len(after)))
    source = torch.cat([batch, before.expand(n, -1), after.expand(n, -1), batch.new_full((n, 1), PADDING)], 1)
    places = torch.arange(length, device=batch.device).expand(n, -1)
    inside = places - len(before)
    where = torch.where(places < len(before), length + places, torch.where(
        inside < kept, inside, torch.where(inside < kept + len(after), length + len(before) + inside - kept,
                                           length + len(before) + len(after))))
    return source.gather(1, where)
