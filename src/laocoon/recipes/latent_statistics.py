"""Statistics that tell poisoned samples from clean ones, each sample with a score: higher is more suspicious.

Activation clustering (Chen et al., 2018, arXiv 1811.03728), spectral signatures (Tran, Li and Madry, NeurIPS 2018),
STRIP (Gao et al., ACSAC 2019), and what a judge who knows the truth uses: a linear probe and the silhouette.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor
from torch.nn import functional

LEAST = 8  # samples of a class, below which its scores are 0


def activation_clustering(features: Tensor, labels: Tensor, components: int = 10) -> Tensor:
    """Per class: principal components, two means; how deep a sample lies in the smaller cluster, [n].

    Score: silhouette of the split × (distance to the larger centre − distance to the smaller) / distance of centres,
    so that a class that does not fall apart scores near 0. Departure: principal in place of independent components,
    and a score in place of the thresholds on size and silhouette.
    """
    scores = torch.zeros(len(labels))
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < LEAST:
            continue
        x = features[members].float().flatten(1).cpu()
        x = x - x.mean(0)
        _, _, v = torch.linalg.svd(x, full_matrices=False)
        x = x @ v[:components].T
        inside = two_means(x)
        small = inside if int(inside.sum()) * 2 <= len(inside) else ~inside
        if not bool(small.any()) or bool(small.all()):
            continue
        centres = torch.stack([x[~small].mean(0), x[small].mean(0)])
        far, near = (x - centres[0]).norm(dim=1), (x - centres[1]).norm(dim=1)
        gap = (centres[0] - centres[1]).norm().clamp_min(1e-12)
        scores[members] = float(silhouette(x, small).mean().clamp_min(0)) * (far - near) / gap
    return scores


def two_means(points: Tensor, rounds: int = 30) -> Tensor:
    """Lloyd's algorithm for two clusters, from the sides of the first principal direction, bool [n]."""
    centred = points - points.mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    inside: Tensor = centred @ v[0] > 0
    for _ in range(rounds):
        if not bool(inside.any()) or bool(inside.all()):
            break
        first, second = points[inside].mean(0), points[~inside].mean(0)
        update = (points - first).square().sum(1) < (points - second).square().sum(1)
        if torch.equal(update, inside):
            break
        inside = update
    return inside


def silhouette(points: Tensor, inside: Tensor) -> Tensor:
    """Rousseeuw's silhouette of a division in two, [n]: (b − a) / max(a, b), 0 in a cluster of one.

    a, b: mean distance to the own and to the other cluster. The distances to at most 1,000 evenly spaced members of
    each cluster are taken, so that the cost stays linear.
    """
    points = points.float().flatten(1)
    means, counts = [], []
    for side in (inside, ~inside):
        members = side.nonzero().flatten()
        step = max(1, len(members) // 1000)
        chosen = members[::step]
        means.append(torch.cdist(points, points[chosen]).sum(1) if len(chosen) else torch.zeros(len(points)))
        taken = torch.zeros(len(points))
        taken[chosen] = 1
        counts.append(len(chosen) - torch.where(side, taken, torch.zeros_like(taken)))
    own = torch.where(inside, means[0] / counts[0].clamp_min(1), means[1] / counts[1].clamp_min(1))
    other = torch.where(inside, means[1] / counts[1].clamp_min(1), means[0] / counts[0].clamp_min(1))
    alone = torch.where(inside, counts[0], counts[1]) < 1
    found = (other - own) / torch.maximum(own, other).clamp_min(1e-12)
    return torch.where(alone, torch.zeros_like(found), found)


def spectral_signatures(features: Tensor, labels: Tensor) -> Tensor:
    """Per class: squared projection of the centred features on their first right singular vector, [n]."""
    scores = torch.zeros(len(labels))
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < LEAST:
            continue
        x = features[members].float().flatten(1).cpu()
        x = x - x.mean(0)
        _, _, v = torch.linalg.svd(x, full_matrices=False)
        scores[members] = (x @ v[0]).square()
    return scores


@torch.no_grad()
def strip(answer: Callable[[Tensor], Tensor], inputs: Tensor, overlays: Tensor, rng: torch.Generator,
          blends: int = 8) -> Tensor:
    """Negative mean entropy of the answers to a sample with clean ones laid over it (sums, clipped), [n], in nats.

    `answer` maps pictures to logits. A trigger outlives what is laid over it, so the answers stay sure.
    """
    total = torch.zeros(len(inputs))
    for _ in range(blends):
        chosen = torch.randint(0, len(overlays), (len(inputs),), generator=rng)
        logits = answer((inputs + overlays[chosen]).clamp(0, 1)).float().cpu()
        total += -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return -total / blends


def linear_probe(features: Tensor, planted: Tensor, weight: float = 0.1) -> Tensor:
    """Scores of a regularised linear discriminant, each half of the samples judged by the other half's, [n].

    Ridge regression of ±1 on standardised features; `weight`: of the ridge, in units of the mean squared feature norm.
    Halves are the even and the odd samples of each kind. What a judge who knows the truth can tell apart linearly.
    """
    fold = torch.zeros(len(planted), dtype=torch.long)
    for kind in (planted, ~planted):
        members = kind.nonzero().flatten()
        fold[members] = torch.arange(len(members)) % 2
    x = features.double().flatten(1).cpu()
    scores = torch.zeros(len(planted))
    for part in (0, 1):
        given, asked = fold != part, fold == part
        scores[asked] = discriminant(x[given], planted[given], x[asked], weight).float()
    return scores


def discriminant(features: Tensor, planted: Tensor, asked: Tensor, weight: float = 0.1) -> Tensor:
    """Scores for `asked` of a linear discriminant fitted on features with both kinds weighed alike, [n]."""
    x, z = features.double().flatten(1), asked.double().flatten(1)
    mean, spread = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    x, z = (x - mean) / spread, (z - mean) / spread
    share = planted.double().mean().clamp(1e-6, 1 - 1e-6)
    importance = torch.where(planted, 0.5 / share, 0.5 / (1 - share)).sqrt()
    wanted = torch.where(planted, 1.0, -1.0).double()
    # The dual form: as many unknowns as samples, however many features there are.
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) * importance[:, None]
    gram = rows @ rows.T
    ridge = weight * gram.diagonal().mean()
    dual = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=x.dtype), wanted * importance)
    scores: Tensor = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) @ (rows.T @ dual)
    return scores


def spectrum(images: Tensor, most: int = 32) -> Tensor:
    """log of the magnitudes of the discrete cosine transform, [n, channels · frequencies].

    Averaged over neighbouring frequencies where a side has more than `most` of them. Zeng et al., ICCV 2021.
    """
    coefficients = dctn(images.double().cpu().numpy(), axes=(-2, -1), norm="ortho")
    magnitudes = torch.as_tensor(np.log(np.abs(coefficients) + 1e-2)).float()
    side = (min(most, images.shape[-2]), min(most, images.shape[-1]))
    return functional.adaptive_avg_pool2d(magnitudes, side).flatten(1)
