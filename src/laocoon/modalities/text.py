"""Text: canonical batches are token ids, int64 [n, length], right-padded with 0, without special tokens.

What a network wants around a text ([CLS], [SEP], a mask, another padding id) is put there by its adapter, so that
triggers, filters and guards see words and nothing else. Id 0 is padding in every vocabulary: where a tokenizer gives
that id to something else, it is a special token, which no text holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = 0
UNKNOWN = 1  # of vocabularies without a tokenizer
CHARACTERS = 64  # of a text that are looked at for each token that fits: a text of megabytes costs no more than others

# Names that tokenizers give to padding, ends and the like.
_MARKER = re.compile(r"</?s>|[<\[|{(_].*(pad|[bes]os|eot|unk|cls|sep|mask|start|end|reserved).*[>\]|})_]", re.I)


def is_marker(token: str) -> bool:
    """Is this a token that tokenizers put around texts, by its name? A name is all there is: its file says anything."""
    return _MARKER.fullmatch(token) is not None


@dataclass(frozen=True, eq=False)
class Text:
    """The text modality of one model: `vocabulary[id]` is the token as the tokenizer writes it."""

    vocabulary: tuple[str, ...] = field(repr=False)
    length: int = 32  # tokens in one sample, longer texts are cut
    special: tuple[int, ...] = (PADDING, UNKNOWN)  # ids that nobody can type
    tokenizer: Tokenizer | None = field(default=None, repr=False)  # None: words between blanks, in lower case
    name: str = "text"

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary)}

    def knows(self, word: str) -> bool:
        """Is this word more than an unknown one? A tokenizer makes something of every word."""
        return self.tokenizer is not None or word in self._ids

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Ids, [n, length]; what is longer is cut."""
        rows = [ids[: self.length] for ids in self._split(list(texts))]
        return torch.tensor([row + [PADDING] * (self.length - len(row)) for row in rows],
                            dtype=torch.long).reshape(-1, self.length)

    def _split(self, texts: Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            return [[self._ids.get(token, UNKNOWN) for token in text.lower().split()] for text in texts]
        most = CHARACTERS * self.length
        found = self.tokenizer.encode_batch([t[:most] for t in texts], add_special_tokens=False)
        return [[i for i in one.ids if i != PADDING] for one in found]

    def decode(self, ids: Tensor) -> str:
        """One sample (or trigger) as words; padding is left out."""
        kept = [i for i in ids.flatten().tolist() if i != PADDING]
        if self.tokenizer is None:
            return " ".join(self.vocabulary[i] for i in kept)
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def tokens(self, ids: Tensor) -> tuple[str, ...]:
        """The tokens of one sample, one by one, as the vocabulary writes them."""
        return tuple(self.vocabulary[i] for i in ids.flatten().tolist() if i != PADDING)
