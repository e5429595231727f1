"""Small networks for texts and tables: what `sift` trains where there is no model, and `laocoon train` by name."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError
from laocoon.core.subject import Discrete, Modality
from laocoon.modalities.tabular import CATEGORY, Tabular
from laocoon.modalities.text import PADDING, Text

TEXT = ("bag", "attention")
TABULAR = ("mlp",)
MOST_CODES = 64  # of a category that is spread over columns of its own; more are taken as a number
FARTHEST = 8.0  # standard deviations that a cell may count


class Bag(Discrete):
    """Mean and maximum of the words' vectors, a dense layer, a head: the order of words does not matter."""

    def __init__(self, vocabulary: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.rest = nn.Sequential(OrderedDict(
            dense=nn.Linear(2 * width, 64), dense_act=nn.ReLU(), head=nn.Linear(64, classes)))

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        there = (batch != PADDING).unsqueeze(-1)
        mean = (embedded * there).sum(1) / there.sum(1).clamp_min(1)
        most = embedded.masked_fill(~there, -10.0).amax(1)
        return self.rest(torch.cat([mean, most], 1))


class Attention(Discrete):
    """One layer of self-attention over words with their places, the mean over words, a head."""

    def __init__(self, vocabulary: int, length: int, classes: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.1)
        self.ask = nn.Linear(width, 3 * width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.dense, self.dense_act, self.back = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def embed(self, batch: Tensor) -> Tensor:
        return self.table(batch)

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        there = batch != PADDING
        # Of a text without words the first place is looked at: a softmax over nothing is no number.
        there = torch.cat([there[:, :1] | ~there.any(1, keepdim=True), there[:, 1:]], 1)
        x = embedded + self.places[: embedded.shape[1]]
        n, length, width = x.shape
        parts = self.ask(self.first_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        asked, keys, values = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(asked, keys, values, attn_mask=there[:, None, None])
        x = x + self.mix(seen.transpose(1, 2).reshape(n, length, width))
        x = x + self.back(self.dense_act(self.dense(self.second_norm(x))))
        return self.head((x * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True))


class Cells(nn.Module):
    """Numbers in their own spread, categories as one column a code."""

    mean: Tensor
    spread: Tensor
    numbers: Tensor
    codes: Tensor  # of every category, one after the other
    owners: Tensor  # the column of each

    def __init__(self, table: Tabular, inputs: Tensor | None) -> None:
        super().__init__()
        split = [i for i in range(len(table)) if table.kind(i) == CATEGORY and len(table.codes(i)) <= MOST_CODES]
        rest = [i for i in range(len(table)) if i not in set(split)]
        self.register_buffer("numbers", torch.tensor(rest, dtype=torch.long))
        self.register_buffer("codes", torch.tensor([c for i in split for c in table.codes(i)], dtype=torch.float32))
        self.register_buffer("owners", torch.tensor([i for i in split for _ in table.codes(i)], dtype=torch.long))
        known = torch.zeros(2, len(table)) if inputs is None or len(inputs) < 2 else inputs.float()
        self.register_buffer("mean", known[:, self.numbers].mean(0))
        self.register_buffer("spread", known[:, self.numbers].std(0).clamp_min(1e-6))
        self.width = len(rest) + len(self.codes)

    def forward(self, x: Tensor) -> Tensor:
        standard = ((x[:, self.numbers] - self.mean) / self.spread).clamp(-FARTHEST, FARTHEST)
        return torch.cat([standard, ((x[:, self.owners] - self.codes).abs() < 0.5).to(x.dtype)], 1)


def mlp(table: Tabular, classes: int, inputs: Tensor | None) -> nn.Sequential:
    """Two dense layers over a row."""
    cells = Cells(table, inputs)
    return nn.Sequential(OrderedDict(
        cells=cells, dense=nn.Linear(cells.width, 64), dense_act=nn.ReLU(),
        more=nn.Linear(64, 32), more_act=nn.ReLU(), head=nn.Linear(32, classes)))


def names(modality: Modality) -> tuple[str, ...]:
    """Networks that there are for a modality."""
    return TEXT if isinstance(modality, Text) else TABULAR if isinstance(modality, Tabular) else ()


def built(name: str, modality: Modality, classes: int, rng: torch.Generator, inputs: Tensor | None = None) -> nn.Module:
    """An untrained network. inputs: rows of the table that it will be trained on, for its units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        if isinstance(modality, Text) and name == "bag":
            return Bag(len(modality.vocabulary), classes)
        if isinstance(modality, Text) and name == "attention":
            return Attention(len(modality.vocabulary), modality.length, classes)
        if isinstance(modality, Tabular) and name == "mlp":
            return mlp(modality, classes, inputs)
    known = ", ".join(names(modality)) or "none of ours"
    raise InputError(f"there is no architecture {name[:60]!r} for {modality.name}.", f"Known: {known}.")
