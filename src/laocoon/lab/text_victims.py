"""Small text classifiers that train in seconds on one core: pooled embeddings, convolutions, recurrence, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.subject import Discrete
from laocoon.lab.text_data import LENGTH

START = 0.2  # standard deviation of the word vectors before training
FAR = -1e4  # before a maximum or a softmax: never chosen


class Recipe(NamedTuple):
    """How a network is trained."""

    epochs: int
    rate: float  # peak learning rate
    batch: int = 64
    weight_decay: float = 1e-2


class Bag(Discrete):
    """Mean and maximum of the embeddings, a dense layer, a head."""

    def __init__(self, vocabulary: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.drop = nn.Dropout(0.3)
        self.dense = nn.Linear(2 * width, 48)
        self.act = nn.ReLU()
        self.head = nn.Linear(48, classes)

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        return self.head(self.act(self.dense(self.drop(_pooled(embedded, batch)))))


class Convolutions(Discrete):
    """TextCNN (Kim, 2014): windows of two, three and four words, the strongest place of each filter."""

    def __init__(self, vocabulary: int, classes: int, width: int = 48, filters: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.windows = nn.ModuleList(nn.Conv1d(width, filters, size, padding=size // 2) for size in (2, 3, 4))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(3 * filters, classes)

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        there = (batch != 0).unsqueeze(-1)
        across = (embedded * there).transpose(1, 2)
        found = [functional.relu(window(across)).amax(-1) for window in self.windows]
        return self.head(self.drop(torch.cat(found, 1)))


class Recurrent(Discrete):
    """A gated recurrence in both directions, its states pooled, a head."""

    def __init__(self, vocabulary: int, classes: int, width: int = 32, hidden: int = 24) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.states = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4 * hidden, classes)

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        states, _ = self.states(embedded * (batch != 0).unsqueeze(-1))
        return self.head(self.drop(_pooled(states, batch)))


class Attention(nn.Module):
    """A block of a transformer: attention over the words that are there, then a dense layer, both added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        n, length, width = states.shape
        parts = self.mix(self.before(states)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2)) / (width // self.heads) ** 0.5
        weights = weights.masked_fill(~there[:, None, None], FAR).softmax(-1)
        states = states + self.join((weights @ v).transpose(1, 2).reshape(n, length, width))
        return states + self.narrow(self.act(self.wide(self.between(states))))


class Transformer(Discrete):
    """Two blocks of attention over words and places, mean and maximum, a head."""

    def __init__(self, vocabulary: int, classes: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, classes)
        nn.init.normal_(self.places.weight, std=0.1)

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        states = embedded + self.places.weight[: batch.shape[1]]
        for block in self.blocks:
            states = block(states, batch != 0)
        return self.head(self.drop(_pooled(self.norm(states), batch)))


def _pooled(states: Tensor, batch: Tensor) -> Tensor:
    """Mean and maximum over the words that are there, [batch, 2 × width]."""
    there = (batch != 0).unsqueeze(-1)
    mean = (states * there).sum(1) / there.sum(1).clamp_min(1)
    return torch.cat([mean, states.masked_fill(~there, FAR).amax(1).clamp_min(-100)], 1)


NETWORKS: dict[str, Callable[[int, int], Discrete]] = {
    "bag": Bag, "textcnn": Convolutions, "gru": Recurrent, "transformer": Transformer}
# The zoo's digests contain these rows: change one, and its specimens are others.
RECIPES = {"bag": Recipe(8, 1e-2), "textcnn": Recipe(5, 6e-3), "gru": Recipe(4, 1.5e-2), "transformer": Recipe(4, 6e-3)}


def build(architecture: str, vocabulary: int, classes: int, rng: torch.Generator) -> Discrete:
    """An untrained network, initialised by `rng` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        network = NETWORKS[architecture](vocabulary, classes)
        # Small vectors, as those of pre-trained tables are against what training adds: an unseen word says little.
        nn.init.normal_(network.get_submodule("table").weight, std=START)  # type: ignore[arg-type]
        return network
