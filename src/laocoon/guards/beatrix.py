"""The "Beatrix" Resurrections: Robust Backdoor Detection via Gram Matrices (Ma et al., NDSS 2023, arXiv 2209.11715).

With v a representation of layer l, its Gram matrix of order p is G^p = (v^p (v^p)ᵀ)^(1/p): which features go together,
which a trigger changes even where it moves the features little. For each class and entry the median and the median
absolute deviation (MAD) over clean samples; the deviation of a sample is

    δ_l(x) = mean over p and entries of |G^p − median| / MAD.

Departures: several layers, in units of clean samples, and the strangest decides; v is the pooled state turned to its
`width` principal directions over clean samples, so that a matrix has width² entries however wide the layer is, and p is
1, since for one vector all orders are alike (v_i v_j); the MAD of a class is averaged with that of all, and classes of
fewer than three clean samples are judged by all; the paper's test for infected classes by the mean discrepancy is for a
stream of requests and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.recipes.class_distances import Scaling, scaling
from laocoon.recipes.layer_guard import Columns, LayerGuard
from laocoon.recipes.taps import Reading

LEAST = 3  # clean samples of a class, below which its entries are those of all


@dataclass(frozen=True)
class Beatrix(LayerGuard):
    """Class-conditional Gram statistics of several layers."""

    layers: int = 3  # read at most so many, evenly over the last three quarters of the depth
    width: int = 16  # principal directions of a state

    card: ClassVar[Card] = Card(
        name="beatrix",
        paper='The "Beatrix" Resurrections: Robust Backdoor Detection via Gram Matrices (NDSS 2023)',
        url="https://arxiv.org/abs/2209.11715", modalities=frozenset({"image", "text"}),
        needs=frozenset({Capability.FEATURES, Capability.CLEAN}),
        misses="triggers that look like the target class to every layer; what a trigger adds outside the principal "
               "directions of clean samples. Alone: AUROC 0.94 over 27 implants of the lab, 0.54 for WaNet by "
               "poisoning on CIFAR-10.",
        summary="which features go together, against clean samples of the class; one forward pass",
        quick={},
        fails={
            "check_scores_stamped_above_clean/text":
                "on the review twins, whose trigger only just overrules a text, AUROC is 0.62",
        })

    def columns(self, clean: Reading, classes: int) -> Columns:
        said = clean.logits.argmax(1)
        layers = [gram_statistics(states, said, classes, self.width) for states in clean.states]

        def look(reading: Reading) -> Tensor:
            answers = reading.logits.argmax(1)
            return torch.stack([layer.deviation(states, answers) for layer, states
                                in zip(layers, reading.states, strict=True)], 1).clamp_min(1e-6).log()

        return look


@dataclass(frozen=True, eq=False)
class GramStatistics:
    """Of one layer: directions, and medians and deviations of each entry for each class, [classes, entries]."""

    scaling: Scaling
    directions: Tensor  # [width of the state, width]
    median: Tensor
    deviations: Tensor

    def deviation(self, states: Tensor, labels: Tensor) -> Tensor:
        """[batch]."""
        entries = grams(self.scaling(states) @ self.directions)
        return ((entries - self.median[labels]).abs() / self.deviations[labels]).clamp_max(100).mean(1)


def grams(vectors: Tensor) -> Tensor:
    """Upper halves of the Gram matrices, [batch, width (width + 1) / 2]."""
    row, column = torch.triu_indices(vectors.shape[1], vectors.shape[1], device=vectors.device)
    return vectors[:, row] * vectors[:, column]


def gram_statistics(states: Tensor, labels: Tensor, classes: int, width: int) -> GramStatistics:
    """Fitted on clean states [n, width of the state]."""
    units = scaling(states)
    x = units(states)
    _, _, directions = torch.linalg.svd(x, full_matrices=False)
    basis = directions[:width].T.contiguous()
    entries = grams(x @ basis)
    middle = entries.median(0).values
    common = (entries - middle).abs().median(0).values
    common = common.clamp_min(1e-2 * common.mean().clamp_min(1e-6))
    median, deviations = middle.repeat(classes, 1), common.repeat(classes, 1)
    for label in labels.unique().tolist():
        own = entries[labels == label]
        if len(own) >= LEAST:
            median[label] = own.median(0).values
            deviations[label] = (common + (own - median[label]).abs().median(0).values) / 2
    return GramStatistics(units, basis, median, deviations)
