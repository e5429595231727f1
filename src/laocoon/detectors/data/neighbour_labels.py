"""Deep k-NN: Deep k-NN Defense against Clean-label Data Poisoning Attacks. Peri et al., 2020, arXiv 1909.13374.

In the penultimate layer a sample whose label is not that of its neighbours is poison, or mislabelled.

    score(x) = share of the k nearest samples whose label is another + a little of how far away they are.

Departures: a share in place of the vote's outcome; neighbours are looked for among `references` samples, spread over
the classes; distances, as a share of the largest, part those that the votes leave equal.
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
from laocoon.recipes.choosing import spread_over
from laocoon.recipes.neighbours import nearest
from laocoon.recipes.representations import last_layer


@dataclass(frozen=True)
class NeighbourLabels(DataDetector):
    """How many of a sample's neighbours have another label."""

    neighbours: int = 30
    references: int = 6000  # samples that neighbours are looked for among

    card: ClassVar[Card] = Card(
        name="neighbour_labels",
        paper="Deep k-NN Defense against Clean-label Data Poisoning Attacks (2020)",
        url="https://arxiv.org/abs/1909.13374",
        modalities=frozenset({"image", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="poison that the network has learnt to place with its label, which scores lowest of all "
               "(AUROC 0.01 for all-to-one poison on CIFAR-10, 0.64 all-to-all); what it finds there are "
               "mislabelled samples (0.91), and poison that was hardly learnt.",
        summary="a sample among neighbours of another label is mislabelled or poisoned",
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("neighbours' labels need a model that was trained on the samples.")
        labels = case.suspects.labels.cpu()
        if len(labels) < 2:
            raise NotApplicable("a single sample has no neighbours.")
        features = last_layer(case.subject, case.suspects.inputs, ctx).features
        chosen = spread_over(labels, self.references, ctx.rng).sort().values
        own = torch.full((len(labels),), -1)
        own[chosen] = torch.arange(len(chosen))
        found = nearest(features, features[chosen], self.neighbours, own=own)
        other = (labels[chosen][found.indices] != labels[:, None]).float().mean(1)
        far = found.distances.mean(1)
        return other + 1e-3 * far / far.max().clamp_min(1e-12)
