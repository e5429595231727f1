"""Renormalised influence: Identifying a Training-Set Attack's Target Using Renormalized Influence Estimation.

Hammoudeh and Lowd, CCS 2022, arXiv 2201.10055, after TracIn (Pruthi et al., 2020, arXiv 2002.08484). The influence of a
sample on another is the inner product of their loss gradients; normalised, it does not depend on how well a sample is
fitted. In the head, gradients have a closed form: with p the probabilities, e the label and h the features,

    g(x) = (p − e) ⊗ h,    score(x) = − cos(g(x), mean over the samples of its label of g / |g|).

A clean sample pulls the head where the others of its class pull it; a poisoned or mislabelled one pulls elsewhere.

Departures: the class's trusted samples (or, without enough of them, its suspects, most of which are clean) stand for
the target, which the paper searches for; the head alone at the end of training, no checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.representations import last_layer

BLOCK = 1024  # samples whose gradients are in memory at a time


@dataclass(frozen=True)
class Influence(DataDetector):
    """How little a sample's gradient agrees with that of its class."""

    least: int = 20  # trusted samples of a class, below which its suspects are used

    card: ClassVar[Card] = Card(
        name="influence",
        paper="Identifying a Training-Set Attack's Target Using Renormalized Influence Estimation (CCS 2022)",
        url="https://arxiv.org/abs/2201.10055",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="all-to-one poison whose features have become those of its class (AUROC 0.83 for BadNets on "
               "CIFAR-10, against 0.99 all-to-all); mislabelled samples score as high as poison; poison that "
               "is the larger part of its class, without trusted samples.",
        summary="a poisoned sample pulls the head elsewhere than its class",
        fails={
            "check_scores_poison_above_clean/text":
                "on the review twins, whose clean texts hold rare words too, AUROC is 0.69",
        },
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("influence needs a model that was trained on the samples.")
        labels = case.suspects.labels.cpu()
        ours = _gradients_of(case, case.suspects, ctx)
        clean = None if case.trusted is None else _gradients_of(case, case.trusted, ctx)
        scores = torch.zeros(len(labels))
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            mean = ours.mean(members)
            if clean is not None and case.trusted is not None:
                trusted = (case.trusted.labels.cpu() == label).nonzero().flatten()
                mean = clean.mean(trusted) if len(trusted) >= self.least else mean
            scores[members] = -ours.along(members, functional.normalize(mean, dim=0))
        return scores


@dataclass(frozen=True, eq=False)
class Gradients:
    """Unit gradients of the head, one a sample, as the outer product of two unit vectors."""

    residuals: Tensor  # [n, classes]
    features: Tensor  # [n, width + 1]

    def mean(self, rows: Tensor) -> Tensor:
        """[classes · (width + 1)]."""
        found: Tensor = (self.residuals[rows].T @ self.features[rows]).flatten() / max(1, len(rows))
        return found

    def along(self, rows: Tensor, direction: Tensor) -> Tensor:
        """Components in a direction, [rows]."""
        matrix = direction.view(self.residuals.shape[1], self.features.shape[1])
        return torch.cat([((self.residuals[part] @ matrix) * self.features[part]).sum(1) for part in rows.split(BLOCK)])


def _gradients_of(case: DataCase, samples: Samples, ctx: Context) -> Gradients:
    assert case.subject is not None
    known = last_layer(case.subject, samples.inputs, ctx)
    wide = torch.cat([known.features, known.features.new_ones(len(known.features), 1)], 1)
    residuals = known.logits.softmax(1)
    inside = samples.labels.cpu() < residuals.shape[1]
    rows = inside.nonzero().flatten()
    residuals[rows, samples.labels.cpu()[rows]] -= 1
    return Gradients(functional.normalize(residuals, dim=1), functional.normalize(wide, dim=1))
