"""FLARE: Towards Universal Dataset Purification against Backdoor Attacks. Hou et al., IEEE TIFS 2025, arXiv 2411.19479.

Poison of any kind makes some channel of some hidden layer do what it never does. For each sample the extremes of every
channel, on the scale of its batch norm, are collected from all hidden layers, brought to few dimensions, and divided by
HDBSCAN without looking at labels, so that all-to-all poison is one cluster too. The last layers, where classes part,
are left out one after another until the samples fall into two; the more stable cluster is the poison.

    score(x) = Σ over depths of w · Σ over clusters c of  isolation_c^s · share of x's neighbours that are in c,

where isolation = 1 − conductance of the cluster in the graph of nearest neighbours, the largest cluster is no c, and a
depth counts by how far its largest cluster is the bulk of the samples, w ∝ max(0, 2 · its share − 1).

Departures: channels are on the scale of the samples' own moments, so that networks without batch norm are served;
principal components and Laplacian eigenmaps of the neighbour graph in place of UMAP (which begins with them); isolation
in that graph in place of HDBSCAN's stability; all depths where a bulk has something beside it speak, in place of one;
clusters are found in `references` samples, and all samples are judged by their neighbours among those.
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
from laocoon.recipes.neighbours import eigenmaps, graph, islands, nearest
from laocoon.recipes.representations import extremes

FEWEST = 50  # samples, below which there is nothing to divide


@dataclass(frozen=True, eq=False)
class View:
    """How the samples fall apart at one depth."""

    scores: Tensor  # [n]
    bulk: float  # share of the largest cluster


@dataclass(frozen=True)
class Flare(DataDetector):
    """How much a sample belongs to a cluster that stands apart in what hidden layers do at their most extreme."""

    references: int = 4000  # samples that clusters are looked for in
    neighbours: int = 15  # of the graph, as UMAP's
    components: int = 50  # principal components before the graph
    dimensions: int = 6  # of the eigenmaps
    depths: int = 6  # how many depths are tried at most, evenly spread
    smallest: float = 0.005  # share of the references that makes a cluster
    sharpness: float = 8.0  # s: how much more an isolated cluster counts

    unit: ClassVar[float] = 0.05  # isolation is a share: on clean CIFAR-10 it stays below this

    card: ClassVar[Card] = Card(
        name="flare",
        paper="FLARE: Towards Universal Dataset Purification against Backdoor Attacks (IEEE TIFS 2025)",
        url="https://arxiv.org/abs/2411.19479",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="poison that is rarer than half a percent, or more than a third of the samples; triggers that differ "
               "from sample to sample; clean-label poison without a trigger; in a clean set it points at natural "
               "groups (pictures on white, near-duplicates).",
        summary="what hidden layers do at their most extreme sets poison apart, whatever its labels",
        fails={
            "check_scores_poison_above_clean/text":
                "on the review twins, whose clean texts hold rare words too, AUROC is 0.53",
        },
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("FLARE needs a model that was trained on the samples.")
        total = len(case.suspects)
        if total < FEWEST:
            raise NotApplicable(f"FLARE divides no fewer than {FEWEST} samples; these are {total}.")
        found = extremes(case.subject, case.suspects.inputs, ctx)
        chosen = torch.randperm(total, generator=ctx.rng)[: self.references].sort().values
        own = torch.full((total,), -1)
        own[chosen] = torch.arange(len(chosen))
        layers = len(found.widths)
        depths = torch.linspace(1, layers, min(self.depths, layers)).round().long().unique().tolist()
        views = []
        for depth in depths:
            views.append(self._at(found.up_to(depth), chosen, own))
            ctx.progress(self.card.name, depth / layers, f"{depth} of {layers} layers")
        bulk = torch.tensor([view.bulk for view in views])
        # Where no cluster is a majority anywhere, the depth that comes closest speaks alone.
        weights = (2 * bulk - 1).clamp_min(0) if bool((bulk > 0.5).any()) else (bulk == bulk.max()).float()
        return torch.stack([view.scores for view in views], 1) @ (weights / weights.sum())

    def _at(self, values: Tensor, chosen: Tensor, own: Tensor) -> View:
        """What the first layers' extremes [n, columns] say."""
        from sklearn.cluster import HDBSCAN

        some = values[chosen].float()
        mean, spread = some.mean(0), some.std(0).clamp_min(1e-6)
        rest = ((some - mean) / spread).clamp(-6, 6).double()
        _, vectors = torch.linalg.eigh(rest.T @ rest)
        basis = vectors[:, -self.components:].float()
        points = torch.cat([((part.float() - mean) / spread).clamp(-6, 6) @ basis for part in values.split(4096)])
        links = graph(nearest(points[chosen], points[chosen], self.neighbours, own=torch.arange(len(chosen))))
        smallest = max(10, round(self.smallest * len(chosen)))
        clusters = torch.as_tensor(HDBSCAN(min_cluster_size=smallest, min_samples=5, copy=True).fit(
            eigenmaps(links, self.dimensions).double().numpy()).labels_, dtype=torch.long)
        weight = torch.zeros(len(chosen))
        for island in islands(links, clusters):
            weight[island.inside] = max(0.0, island.isolation) ** self.sharpness
        largest = int(torch.bincount(clusters + 1)[1:].max()) if bool((clusters >= 0).any()) else 0
        scores = weight[nearest(points, points[chosen], self.neighbours, own=own).indices].mean(1)
        return View(scores, largest / len(chosen))
