"""Texts with words left out, and simple language models of ids: what filters and guards of text share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laocoon.modalities.text import PADDING


def without(inputs: Int[Tensor, "batch length"], places: Int[Tensor, " batch"]) -> Int[Tensor, "batch length"]:
    """Each text without the word at its place; what follows moves up."""
    length = inputs.shape[1]
    source = torch.arange(length, device=inputs.device).expand(len(inputs), -1)
    source = source + (source >= places[:, None])
    padded = torch.cat([inputs, inputs.new_full((len(inputs), 1), PADDING)], 1)
    return padded.gather(1, source)


def without_each(inputs: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length length"]:
    """Row i of a text is the text without its i-th word."""
    n, length = inputs.shape
    places = torch.arange(length, device=inputs.device).repeat(n)
    return without(inputs.repeat_interleave(length, 0), places).view(n, length, length)


@dataclass(frozen=True, eq=False)
class Bigrams:
    """log p of each word given the one before, from counts: two words, then one, then any (Jelinek and Mercer, 1980).

    p(w | v) = a · n(v, w) / n(v) + (1 − a) · ((1 − b) · n(w) / n + b / V),   a = n(v) / (n(v) + 1),   b = 0.1.
    """

    vocabulary: int
    starts: Float[Tensor, " ids"]  # n(v), v = 0 before the first word
    single: Float[Tensor, " ids"]  # n(w)
    pairs: Int[Tensor, " kinds"]  # v · V + w of every pair that was seen, ascending
    counts: Float[Tensor, " kinds"]
    unseen: float = 0.1  # b

    def logs(self, inputs: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        """log p of every word, 0 at padding."""
        before = torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :-1]], 1)
        code = before * self.vocabulary + inputs
        at = torch.searchsorted(self.pairs, code).clamp_max(len(self.pairs) - 1)
        both = self.counts[at] * (self.pairs[at] == code)
        start = self.starts[before]
        share = start / (start + 1)
        one = (1 - self.unseen) * self.single[inputs] / self.single.sum() + self.unseen / self.vocabulary
        chance = share * both / start.clamp_min(1) + (1 - share) * one
        return chance.log() * (inputs != PADDING)


def bigrams(inputs: Int[Tensor, "batch length"], vocabulary: int) -> Bigrams:
    """Fitted on texts."""
    before = torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :-1]], 1)
    there = inputs != PADDING
    after, start = inputs[there], before[there]
    pairs, counts = (start * vocabulary + after).unique(return_counts=True)
    return Bigrams(vocabulary, start.bincount(minlength=vocabulary).float(),
                   after.bincount(minlength=vocabulary).float(), pairs, counts.float())


def mean_surprise(model: Bigrams, inputs: Int[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
    """Minus mean log p of the words of each text: the logarithm of its perplexity."""
    count = (inputs != PADDING).sum(1).clamp_min(1)
    return -model.logs(inputs).sum(1) / count


def joined(inputs: Int[Tensor, "batch length"], other: Int[Tensor, " length"], *, before: bool) -> Tensor:
    """Each text with another one behind (or before) it, [batch, length]; where both do not fit, half of each at least.

    A text that is cut loses its end where it stands first, its beginning where it stands last.
    """
    length = inputs.shape[1]
    own, theirs = (inputs != PADDING).sum(1, keepdim=True), int((other != PADDING).sum())
    room = torch.maximum(length - own, torch.full_like(own, min(theirs, length // 2))).clamp_max(theirs)
    kept = torch.minimum(own, length - room)
    places = torch.arange(length, device=inputs.device).expand(len(inputs), -1)
    first = room if before else kept  # words of what stands first
    second = kept if before else room
    mine = places - first + own - kept if before else places
    beside = places if before else places - first
    ours = (places >= first) if before else (places < first)
    text = inputs.gather(1, mine.clamp(0, length - 1))
    found = torch.where(ours, text, other.to(inputs.device)[beside.clamp(0, length - 1)])
    return found.masked_fill(places >= first + second, PADDING)
