"""Activation Clustering: Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering.

Chen et al., 2018, arXiv 1811.03728. The penultimate activations of each class are reduced to a few dimensions and
divided by two-means; a class that was poisoned falls into two, and the smaller part is the poison.

    score(x) = silhouette of its class's division · (|x − c_large| − |x − c_small|) / |c_large − c_small|

Departures: principal in place of independent components; a score per sample in place of thresholds on the size and
the silhouette of the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes import latent_statistics
from laocoon.recipes.representations import last_layer


@dataclass(frozen=True)
class ActivationClustering(DataDetector):
    """How deep a sample lies in the smaller of its class's two clusters."""

    components: int = 10  # dimensions that the activations are reduced to, as in the paper

    card: ClassVar[Card] = Card(
        name="activation_clustering",
        paper="Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering (2018)",
        url="https://arxiv.org/abs/1811.03728",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="all-to-all backdoors (AUROC 0.80 on CIFAR-10, against 0.98 and more all-to-one); few "
               "poisoned samples in a class; clean-label poison; networks that were trained to keep poisoned "
               "and clean activations together; clean classes that have two kinds of pictures.",
        summary="the activations of a poisoned class fall into two clusters",
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("activation clustering needs a model that was trained on the samples.")
        known = last_layer(case.subject, case.suspects.inputs, ctx)
        return latent_statistics.activation_clustering(known.features, case.suspects.labels.cpu(), self.components)
