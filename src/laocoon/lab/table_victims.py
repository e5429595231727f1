"""Victims for tables: perceptrons, a small transformer over columns, and trees that answer queries only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.lab.table_data import Table
from laocoon.modalities.tabular import CATEGORY
from laocoon.recipes.fit import fit

NETWORKS = ("mlp", "mlp_wide", "mlp_deep", "column_transformer")
TREES = ("forest", "boosted_trees")


class Encode(nn.Module):
    """Numbers clipped to the range of training and scaled by their spread; categories as one-hot codes."""

    mean: Tensor
    spread: Tensor
    numbers: Tensor
    categories: Tensor

    def __init__(self, inputs: Tensor, kinds: tuple[str, ...]) -> None:
        super().__init__()
        is_code = torch.tensor([kind == CATEGORY for kind in kinds])
        self.register_buffer("numbers", (~is_code).nonzero().flatten())
        self.register_buffer("categories", is_code.nonzero().flatten())
        self.register_buffer("mean", inputs[:, self.numbers].mean(0))
        self.register_buffer("spread", inputs[:, self.numbers].std(0).clamp_min(1e-6))
        self.counts = [int(inputs[:, c].max()) + 1 for c in self.categories.tolist()]
        self.width = len(self.numbers) + sum(self.counts)

    def codes(self, x: Tensor) -> list[Tensor]:
        """Codes of each column of categories, [n] each; unknown ones count as the last."""
        return [x[:, c].round().long().clamp(0, k - 1)
                for c, k in zip(self.categories.tolist(), self.counts, strict=True)]

    def standard(self, x: Tensor) -> Tensor:
        return ((x[:, self.numbers] - self.mean) / self.spread).clamp(-5, 5)

    def forward(self, x: Tensor) -> Tensor:
        hot = [functional.one_hot(code, k).to(x.dtype) for code, k in zip(self.codes(x), self.counts, strict=True)]
        return torch.cat([self.standard(x), *hot], 1)


def perceptron(encode: Encode, widths: tuple[int, ...], classes: int, norm: str = "") -> nn.Sequential:
    """Dense layers with ReLU and a little dropout, normalised or not."""
    layers: list[nn.Module] = [encode]
    before = encode.width
    for width in widths:
        layers.append(nn.Linear(before, width))
        if norm:
            layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
        layers += [nn.ReLU(), nn.Dropout(0.1)]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


class ColumnTransformer(nn.Module):
    """A token per column and one for the answer (FT-Transformer: Gorishniy et al., NeurIPS 2021, arXiv 2106.11959)."""

    def __init__(self, encode: Encode, classes: int, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        count = len(encode.numbers)
        self.encode = encode
        self.slope = nn.Parameter(torch.randn(count, width) * 0.3)
        self.offset = nn.Parameter(torch.randn(count, width) * 0.3)
        self.lookups = nn.ModuleList(nn.Embedding(k, width) for k in encode.counts)
        self.answer = nn.Parameter(torch.randn(1, 1, width) * 0.3)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encode.standard(x).unsqueeze(-1) * self.slope + self.offset
        codes = [lookup(code)[:, None] for lookup, code in zip(self.lookups, self.encode.codes(x), strict=True)]
        whole = self.blocks(torch.cat([self.answer.expand(len(x), -1, -1), tokens, *codes], 1))
        return self.head(self.norm(whole[:, 0]))


class Trees(nn.Module):
    """A fitted scikit-learn classifier that answers as log probabilities, without gradients."""

    def __init__(self, model: Any, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0, self.classes)
        shares = self.model.predict_proba(x.detach().cpu().numpy().astype(np.float32))
        whole = np.full((len(x), self.classes), 1e-4, dtype=np.float32)
        whole[:, self.model.classes_] = np.maximum(shares, 1e-4)
        return torch.as_tensor(np.log(whole / whole.sum(1, keepdims=True))).to(x.device)


def untrained(architecture: str, table: Table, rng: torch.Generator) -> nn.Module:
    """A network whose scaling knows the table and whose weights are drawn by the generator."""
    widths = {"mlp": ((64, 32), ""), "mlp_wide": ((128, 128), "batch"), "mlp_deep": ((64, 64, 64, 32), "layer")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31 - 1, (), generator=rng)))
        encode = Encode(table.inputs, table.kinds)
        if architecture == "column_transformer":
            return ColumnTransformer(encode, table.classes)
        if architecture not in widths:
            known = ", ".join((*NETWORKS, *TREES))
            raise InputError(f"there is no architecture {architecture!r} for tables.", f"Known: {known}.")
        return perceptron(encode, *widths[architecture][:1], table.classes, widths[architecture][1])


def trained(architecture: str, table: Table, ctx: Context) -> Subject:
    """The victim's recipe: a network or trees fitted on the table's rows."""
    shape = (len(table.columns),)
    if architecture in TREES:
        seed = int(torch.randint(0, 2**31 - 1, (), generator=ctx.rng))
        model = _trees(architecture, seed).fit(table.inputs.numpy(), table.labels.numpy())
        return Subject(Trees(model, table.classes), table.modality, table.classes, shape,
                       capabilities=frozenset({Capability.QUERY}))
    module = untrained(architecture, table, ctx.rng)
    n, attends = len(table.labels), architecture == "column_transformer"
    epochs = max(5, min(20, 14_000 // n)) if attends else max(6, min(40, 25_000 // n))
    fit(module, table.inputs, table.labels, epochs=epochs, rng=ctx.rng, batch=64 if n > 500 else 32,
        rate=5e-3 if attends else 4e-3, weight_decay=1e-3)
    return Subject(module, table.modality, table.classes, shape)


def _trees(architecture: str, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    if architecture == "forest":
        return RandomForestClassifier(100, min_samples_leaf=2, random_state=seed, n_jobs=1)
    return HistGradientBoostingClassifier(max_iter=100, random_state=seed)
