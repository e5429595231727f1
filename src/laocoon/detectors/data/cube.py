"""CUBE: A Unified Evaluation of Textual Backdoor Learning: Frameworks and Benchmarks.

Cui et al., NeurIPS 2022, arXiv 2206.08514. What a model makes of poisoned texts lies in a cluster of its own. The
representations of each label are brought to few dimensions and divided by HDBSCAN; the largest cluster of a label is
kept, the rest is poison.

    score(x) = share of x's nearest texts of its label that are outside the largest cluster
               · how far that cluster is a majority of the label
               + a little of x's distance from its middle.

Departures: principal components in place of UMAP; a score per sample in place of a selection; the given model in place
of one trained for an epoch for the purpose; a label without a majority cluster says nothing but distances.
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
from laocoon.recipes.neighbours import nearest
from laocoon.recipes.representations import last_layer

LEAST = 20  # texts of a label, below which nothing is divided


@dataclass(frozen=True)
class Cube(DataDetector):
    """Does a text lie outside the largest cluster of its label?"""

    components: int = 10  # dimensions before clustering
    smallest: float = 0.02  # share of a label that makes a cluster
    neighbours: int = 10
    most: int = 3000  # texts of a label that clusters are looked for in

    card: ClassVar[Card] = Card(
        name="cube",
        paper="A Unified Evaluation of Textual Backdoor Learning: Frameworks and Benchmarks (NeurIPS 2022)",
        url="https://arxiv.org/abs/2206.08514",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.FEATURES}),
        misses="poison that lies among the texts of its label: clean-label poison, weak triggers; labels that fall "
               "into natural groups; poison rarer than two texts in a hundred of its label.",
        summary="poisoned texts lie outside the largest cluster of their label",
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("CUBE needs a model that was trained on the samples.")
        features = last_layer(case.subject, case.suspects.inputs, ctx).features
        labels, scores = case.suspects.labels.cpu(), torch.zeros(len(features))
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            if len(members) >= LEAST:
                scores[members] = self._label(features[members], ctx)
        return scores

    def _label(self, features: Tensor, ctx: Context) -> Tensor:
        """Scores of the texts of one label, [n, width] to [n]."""
        from sklearn.cluster import HDBSCAN

        centred = (features - features.mean(0)).double()
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        points = (centred @ directions[: self.components].T).float()
        chosen = torch.randperm(len(points), generator=ctx.rng)[: self.most].sort().values
        size = max(5, round(self.smallest * len(chosen)))
        found = HDBSCAN(min_cluster_size=size, min_samples=5, copy=True).fit(points[chosen].double().numpy()).labels_
        clusters = torch.as_tensor(found, dtype=torch.long)
        sizes = torch.bincount(clusters + 1)[1:]
        if not len(sizes):
            return torch.zeros(len(points))
        largest = int(sizes.argmax())
        inside = clusters == largest
        middle = points[chosen][inside].mean(0)
        far = (points - middle).norm(dim=1)
        own = torch.full((len(points),), -1)
        own[chosen] = torch.arange(len(chosen))
        near = nearest(points, points[chosen], min(self.neighbours, len(chosen) - 1), own=own).indices
        # A cluster beside the largest counts fully; texts of no cluster are odd ones out, and count half.
        foreign = torch.where(clusters == -1, 0.5, (~inside).float())
        majority = max(0.0, 2 * float(sizes[largest]) / len(chosen) - 1)
        return foreign[near].mean(1) * majority + 0.1 * far / far.max().clamp_min(1e-12)
