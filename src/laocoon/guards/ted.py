"""TED and TED++: how a request travels through the layers, seen from clean samples of the class that it ends in.

Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics (Mo et al., IEEE S&P 2024, arXiv
2312.02673); TED++ (2025, arXiv 2510.14299). In layer l let o be the distance to the nearest clean sample i of the class
that the model answers. TED takes its rank among all clean samples; TED++ adds that a state outside the tube around the
class, whose thickness τ_i comes from the clean samples near by, has the worst rank whatever lies closer:

    r_l(x) = #{clean j of other classes: d(x, j) < o} / #{clean of other classes}      where o ≤ τ_i
    r_l(x) = 1 + log(o / τ_i)                                                          outside the tube.

Departures: outside the tube the rank goes on growing, so that the score does not saturate; τ_i is the mean of what the
sample itself says (its distance to the nearest clean one of its class) and of the median over all; the strangest layer
decides, in units of clean samples, instead of a principal-component outlier test on the path (TED) or a sum (TED++),
which with ten samples a class rested on noise; states are pooled over places, so that ranks cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.recipes.class_distances import Neighbours, neighbours
from laocoon.recipes.layer_guard import Columns, LayerGuard
from laocoon.recipes.taps import Reading


@dataclass(frozen=True)
class Ted(LayerGuard):
    """Rank of the nearest clean sample of the answered class, and a tube around each class, in several layers."""

    layers: int = 3  # read at most so many, evenly over the last three quarters of the depth

    card: ClassVar[Card] = Card(
        name="ted",
        paper="Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics (IEEE S&P 2024); TED++ "
              "(2025)",
        url="https://arxiv.org/abs/2510.14299", modalities=frozenset({"image", "text"}),
        needs=frozenset({Capability.FEATURES, Capability.CLEAN}),
        misses="triggers that look like the target class to every layer; attacks that keep the ranks of the benign "
               "path on purpose (TED-LaST, arXiv 2506.10722); a classifier that is often wrong, which has wild ranks."
               " Alone: AUROC 0.94 over 27 implants of the lab, 0.60 for WaNet by poisoning on CIFAR-10.",
        summary="ranks among clean samples across layers, with a tube around each class; one forward pass",
        quick={},
        fails={
            "check_scores_stamped_above_clean/text":
                "on the review twins, whose trigger only just overrules a text, AUROC is 0.66",
        })

    def columns(self, clean: Reading, classes: int) -> Columns:
        said = clean.logits.argmax(1)
        layers = [neighbours(states, said, classes) for states in clean.states]
        tubes = [thickness(layer) for layer in layers]

        def look(reading: Reading) -> Tensor:
            others = layers[0].others(reading.logits.argmax(1))
            found = [adapted_rank(layer.distances(states), others, tube)
                     for layer, states, tube in zip(layers, reading.states, tubes, strict=True)]
            return torch.stack(found, 1)

        return look


def thickness(layer: Neighbours) -> Tensor:
    """τ of each clean sample, [n]."""
    between = layer.distances(layer.states / layer.scaling.inverse + layer.scaling.mean)
    own = layer.labels.unsqueeze(1) == layer.labels
    own.fill_diagonal_(False)
    nearest = between.masked_fill(~own, float("inf")).amin(1)
    alone = nearest.isinf()
    middle = nearest[~alone].median() if not bool(alone.all()) else between.median()
    return (torch.where(alone, middle, nearest) + middle).clamp_min(1e-6) / 2


def adapted_rank(distances: Tensor, others: Tensor, tube: Tensor) -> Tensor:
    """[batch] from distances [batch, n] to clean samples, which of them are of another class, and their tubes [n]."""
    own, which = distances.masked_fill(others, float("inf")).min(1)
    closer = (others & (distances < own.unsqueeze(1))).sum(1)
    rank = closer / others.sum(1).clamp_min(1)
    ratio = own / tube[which]
    return torch.where(ratio > 1, 1 + ratio.clamp_min(1).log(), rank)
