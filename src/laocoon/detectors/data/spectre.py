"""SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics.

Hayase, Kong, Somani and Oh, ICML 2021, arXiv 2104.11315. Per class: the representations in their k principal
directions, whitened by a robust estimate of the clean samples' mean and covariance; then quantum entropy scores. With h
a whitened sample, Σ the covariance of all whitened samples of the class and α = 4,

    Q = exp(α (Σ − I) / (|Σ|₂ − 1)),   τ(h) = hᵀ Q h / tr Q,   score = τ · mean of τ over the class;

k is the one under which the mean of τ is largest. A clean class has a mean near 1.

Departures: concentration steps in place of the filter of Diakonikolas et al.; k from a few powers of two; a score per
sample, weighed by its class's mean, in place of the class of largest mean and 1.5 ε of its samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.latent_statistics import LEAST
from laocoon.recipes.representations import last_layer
from laocoon.recipes.robust import bulk, whitened


@dataclass(frozen=True)
class Spectre(DataDetector):
    """Quantum entropy score of a sample among the robustly whitened samples of its class."""

    sharpness: float = 4.0  # α of the quantum entropy score
    clean: float = 0.7  # share of a class that is surely clean
    most: int = 64  # principal directions at most

    card: ClassVar[Card] = Card(
        name="spectre",
        paper="SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics (ICML 2021)",
        url="https://arxiv.org/abs/2104.11315",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="more poison in a class than clean samples; networks that were trained to keep poisoned and "
               "clean activations together; clean-label poison; mislabelled samples score high as well "
               "(AUROC 0.84).",
        summary="poison stands out once the clean samples of its class are made round",
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("SPECTRE needs a model that was trained on the samples.")
        known, labels = last_layer(case.subject, case.suspects.inputs, ctx), case.suspects.labels.cpu()
        scores = torch.zeros(len(labels), dtype=torch.float64)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            if len(members) >= LEAST:
                scores[members] = self._class(known.features[members].double())
        return scores

    def _class(self, features: Tensor) -> Tensor:
        """Scores of the samples of one class, [n, width] to [n]."""
        centred = features - features.mean(0)
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        rank = min(self.most, len(features) // 4, int((values > 1e-6 * values[:1]).sum()))
        best, best_mean = torch.zeros(len(features), dtype=torch.float64), -float("inf")
        k = 2
        while k <= max(2, rank):
            points = centred @ directions[:k].T
            scores = quantum_entropy(whitened(points, bulk(points, self.clean)), self.sharpness)
            if float(scores.mean()) > best_mean:
                best, best_mean = scores * scores.mean(), float(scores.mean())
            k *= 2
        return best


def quantum_entropy(white: Tensor, sharpness: float) -> Tensor:
    """hᵀ Q h / tr Q of every whitened sample [n, k], [n]."""
    covariance = white.T @ white / len(white)
    values, vectors = torch.linalg.eigh(covariance)
    excess = (values[-1] - 1).clamp_min(1e-6)
    weights = torch.exp(sharpness * ((values - 1) / excess).clamp(-1, 1))
    return (white @ vectors).square() @ weights / weights.sum()
