"""Text: canonical batches are token ids, int64 [n, length], right-padded with 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PADDING = 0
UNKNOWN = 1


@dataclass(frozen=True)
class Text:
    """The text modality of one model: `vocabulary[id]` is the token, ids 0 and 1 are padding and unknown."""

    vocabulary: tuple[str, ...]
    length: int = 32  # tokens in one sample, longer texts are cut
    name: str = "text"

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary)}

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Whitespace tokens in lower case, [n, length]."""
        rows = []
        for text in texts:
            ids = [self._ids.get(token, UNKNOWN) for token in text.lower().split()][: self.length]
            rows.append(ids + [PADDING] * (self.length - len(ids)))
        return torch.tensor(rows, dtype=torch.long).reshape(-1, self.length)

    def decode(self, ids: Tensor) -> str:
        """One sample (or trigger) as words; padding is left out."""
        return " ".join(self.vocabulary[i] for i in ids.flatten().tolist() if i != PADDING)
