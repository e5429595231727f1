"""How far a hidden state is from those of clean samples with the same answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-2  # of the mean spread of a channel: below it a channel counts as still


@dataclass(frozen=True, eq=False)
class Scaling:
    """Channels in units of their own spread over clean samples."""

    mean: Tensor  # [width]
    inverse: Tensor  # [width]

    def __call__(self, states: Tensor) -> Tensor:
        return (states - self.mean) * self.inverse


def scaling(states: Tensor) -> Scaling:
    """Fitted on clean states [n, width]."""
    spread = states.std(0, unbiased=False)
    return Scaling(states.mean(0), 1 / spread.clamp_min(FLOOR * spread.mean().clamp_min(1e-12)))


@dataclass(frozen=True, eq=False)
class ClassGaussian:
    """One covariance around a mean for each class: ((1 − shrink)·C + λI) with λ = shrink·mean(diag C).

    Held as eigenvectors of C and their weights, so that a distance costs width·rank, however wide the layer is.
    """

    scaling: Scaling
    centres: Tensor  # [classes, width]
    basis: Tensor  # [width, rank]
    weights: Tensor  # [rank]: 1/λ − 1/(λ + (1 − shrink)·eigenvalue)
    ridge: Tensor  # 1/λ

    def distance(self, states: Tensor, labels: Tensor) -> Tensor:
        """Squared Mahalanobis distance to the own class, [batch]."""
        away = self.scaling(states) - self.centres[labels]
        return (away.square().sum(1) * self.ridge - (away @ self.basis).square() @ self.weights).clamp_min(0)


def class_gaussian(states: Tensor, labels: Tensor, classes: int, *, shrink: float, rank: int) -> ClassGaussian:
    """Fitted on clean states [n, width]. A class's mean is drawn to the common one by one sample's worth."""
    units = scaling(states)
    x = units(states)
    count = torch.bincount(labels, minlength=classes).to(x).unsqueeze(1)
    centres = torch.zeros(classes, x.shape[1]).to(x).index_add(0, labels, x) / (count + 1)
    away = x - centres[labels]
    _, singular, basis = torch.linalg.svd(away, full_matrices=False)
    eigenvalues = singular.square() / len(x)
    level = (eigenvalues.sum() / x.shape[1] * shrink).clamp_min(1e-12)
    kept = min(rank, len(singular))
    weights = 1 / level - 1 / (level + (1 - shrink) * eigenvalues[:kept])
    return ClassGaussian(units, centres, basis[:kept].T.contiguous(), weights, 1 / level)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Several `ClassGaussian` over columns of one tensor, computed at once: eight operations, not eight a layer."""

    inverse: Tensor  # [width]
    offsets: Tensor  # [classes, width]
    basis: Tensor  # [width, ranks of all]
    weights: Tensor  # [ranks of all, layers]
    ridges: Tensor  # [width, layers]

    def distances(self, whole: Tensor, labels: Tensor) -> Tensor:
        """Squared Mahalanobis distance to the own class in each layer, [batch, layers]."""
        away = whole * self.inverse - self.offsets[labels]
        return (away.square() @ self.ridges - (away @ self.basis).square() @ self.weights).clamp_min(0)


def stacked(layers: list[ClassGaussian], columns: tuple[Tensor, ...]) -> Stacked:
    """`columns`: where the states of each layer are in the tensor of all."""
    width = sum(len(index) for index in columns)
    some = layers[0].centres
    ranks = [layer.basis.shape[1] for layer in layers]
    inverse, offsets = some.new_zeros(width), some.new_zeros(len(some), width)
    basis, ridges = some.new_zeros(width, sum(ranks)), some.new_zeros(width, len(layers))
    weights = some.new_zeros(sum(ranks), len(layers))
    start = 0
    for number, (layer, index) in enumerate(zip(layers, columns, strict=True)):
        stop = start + ranks[number]
        inverse[index] = layer.scaling.inverse
        offsets[:, index] = layer.centres + layer.scaling.mean * layer.scaling.inverse
        basis[index, start:stop] = layer.basis
        weights[start:stop, number] = layer.weights
        ridges[index, number] = layer.ridge
        start = stop
    return Stacked(inverse, offsets, basis, weights, ridges)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Clean states of one layer with the classes that the model gave them."""

    scaling: Scaling
    states: Tensor  # [n, width], scaled
    norms: Tensor  # [n]
    labels: Tensor  # [n]
    present: Tensor  # [classes] bool: classes that have a clean sample

    def distances(self, states: Tensor) -> Tensor:
        """Euclidean, [batch, n]."""
        x = self.scaling(states)
        square = x.square().sum(1, keepdim=True) + self.norms - 2 * x @ self.states.T
        return square.clamp_min(0).sqrt()

    def others(self, labels: Tensor) -> Tensor:
        """Which clean samples are of another class, [batch, n]; none where a class has no sample."""
        return (self.labels != labels.unsqueeze(1)) & self.present[labels].unsqueeze(1)


def neighbours(states: Tensor, labels: Tensor, classes: int) -> Neighbours:
    """Fitted on clean states [n, width]."""
    units = scaling(states)
    x = units(states)
    present = torch.bincount(labels, minlength=classes) > 0
    return Neighbours(units, x, x.square().sum(1), labels, present)


def nearest_own(distances: Tensor, others: Tensor) -> Tensor:
    """Distance to the nearest clean sample of the own class, [batch]."""
    return distances.masked_fill(others, float("inf")).amin(1)
