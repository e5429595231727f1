"""Nearest neighbours, and what their graph says of clusters: Laplacian eigenmaps and conductance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

BLOCK = 1024  # samples whose distances to all references are in memory at a time


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest references of each sample, nearest first."""

    indices: Tensor  # [n, k]
    distances: Tensor  # [n, k]


def nearest(points: Tensor, references: Tensor, k: int, *, own: Tensor | None = None) -> Nearest:
    """Of points [n, width] among references [m, width]; `own` [n]: each point's place among them, −1 for none.

    A point is no neighbour of itself.
    """
    points, references = points.float(), references.float()
    indices, distances = [], []
    k = min(k, len(references) - (0 if own is None else 1))
    for start in range(0, len(points), BLOCK):
        part = points[start:start + BLOCK]
        apart = torch.cdist(part, references)
        if own is not None:
            at = own[start:start + BLOCK]
            rows = (at >= 0).nonzero().flatten()
            apart[rows, at[rows]] = float("inf")
        close = apart.topk(k, largest=False)
        indices.append(close.indices)
        distances.append(close.values)
    return Nearest(torch.cat(indices), torch.cat(distances))


def graph(found: Nearest) -> csr_matrix:
    """The graph of neighbours of a set among itself: weight 1 where two choose each other, ½ where one does."""
    count, k = found.indices.shape
    rows = np.repeat(np.arange(count), k)
    one = coo_matrix((np.ones(count * k), (rows, found.indices.flatten().numpy())), shape=(count, count)).tocsr()
    return ((one + one.T) / 2).tocsr()


def eigenmaps(links: csr_matrix, dimensions: int) -> Tensor:
    """Laplacian eigenmaps (Belkin and Niyogi, 2003), [n, dimensions]: what varies slowest over the graph.

    The leading eigenvectors of D^−½ W D^−½, the trivial one left out, divided by √degree; each of unit variance.
    """
    degree = np.asarray(links.sum(1)).ravel()
    root = 1 / np.sqrt(np.maximum(degree, 1e-12))
    normal = diags(root) @ links @ diags(root)
    start = np.sqrt(degree) + 1e-3 * np.cos(np.arange(len(degree)))  # not the eigenvector itself
    try:
        values, vectors = eigsh(normal, k=min(dimensions + 1, len(degree) - 1), which="LA", v0=start, tol=1e-4,
                                maxiter=2000)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    vectors = vectors[:, np.argsort(-values)] * root[:, None]
    found = torch.as_tensor(vectors[:, 1:].copy()).float()
    return found / found.std(0, unbiased=False).clamp_min(1e-12)


def conductance(links: csr_matrix, inside: Tensor) -> float:
    """Share of the weight at the smaller side that leads to the other side: 0 for an island."""
    member = inside.numpy().astype(float)
    degree = np.asarray(links.sum(1)).ravel()
    volume = min(float(degree @ member), float(degree @ (1 - member)))
    return 1.0 if volume <= 0 else float(member @ (links @ (1 - member))) / volume


@dataclass(frozen=True, eq=False)
class Island:
    """A set of samples, and how well it is cut off from the others in the graph of neighbours."""

    inside: Tensor  # bool [n]
    isolation: float  # 1 − conductance


def islands(links: csr_matrix, labels: Tensor, keep: int = 12) -> list[Island]:
    """Clusters beside the largest one, joined for as long as a union is better cut off than both of its parts.

    labels: cluster of each sample [n], −1 for none. Only the `keep` largest are looked at.
    """
    found = labels[labels >= 0]
    if not len(found):
        return []
    order = torch.bincount(found).argsort(descending=True, stable=True)[1:keep + 1].tolist()
    parts = [Island(labels == c, 1 - conductance(links, labels == c)) for c in order if bool((labels == c).any())]
    while len(parts) > 1:
        best: tuple[float, int, int, Island] | None = None
        for i in range(len(parts)):
            for j in range(i + 1, len(parts)):
                both = parts[i].inside | parts[j].inside
                union = Island(both, 1 - conductance(links, both))
                gain = union.isolation - max(parts[i].isolation, parts[j].isolation)
                if gain > 0 and (best is None or gain > best[0]):
                    best = gain, i, j, union
        if best is None:
            break
        _, i, j, union = best
        parts = [p for at, p in enumerate(parts) if at not in (i, j)] + [union]
    return parts
