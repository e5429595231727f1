"""SCAn: Demon in the Variant, statistical analysis of DNNs for robust backdoor contamination detection.

Tang, Wang, Tang and Zhang, USENIX Security 2021, arXiv 1908.00686. A representation is the sum of an identity, one for
each class, and a variation that all classes share: r = μ + ε. Both covariances are found by expectation maximisation on
clean samples. A poisoned class holds two identities: a mixture of two components with the common covariance S of the
variation. Its means are found by EM, and with the log likelihoods of one and two components,

    J = 2 (log L₂ − log L₁),   J* = |J − median| / MAD over classes.

    score(x) = log(1 + relu(J*)) · place of x on the line between the two means, larger component −1, smaller +1.

Departures: a score per sample in place of the threshold J* > e²; the decomposition is taken from the suspects where no
trusted samples are given; the covariance of the variation is the pooled one within classes, to which the paper's EM
converges where classes have many samples. MAD is kept from vanishing by a share of the median.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.latent_statistics import LEAST, two_means
from laocoon.recipes.representations import last_layer
from laocoon.recipes.robust import SPREAD, Moments, shrunk, whitened


@dataclass(frozen=True, eq=False)
class Division:
    """A class as a mixture of two identities."""

    gain: float  # J per sample: twice the log likelihood ratio of two components to one
    place: Tensor  # [n], −1 at the larger component's mean, +1 at the smaller's


@dataclass(frozen=True)
class ScanEm(DataDetector):
    """Which side of a class that holds two identities a sample is on."""

    rounds: int = 30  # of expectation maximisation
    most: int = 64  # principal directions that are kept

    card: ClassVar[Card] = Card(
        name="scan_em",
        paper="Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination Detection (SCAn, "
              "USENIX Security 2021)",
        url="https://arxiv.org/abs/1908.00686",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="all-to-all backdoors, as every class is alike (AUROC 0.85 on CIFAR-10, against 0.99 all-to- "
               "one); networks that were trained to keep poisoned and clean activations together; clean "
               "classes that have two kinds of pictures; clean-label poison.",
        summary="a poisoned class holds two identities where others hold one",
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("SCAn needs a model that was trained on the samples.")
        labels = case.suspects.labels.cpu()
        known = last_layer(case.subject, case.suspects.inputs, ctx).features.double()
        centre = known.mean(0)
        _, _, directions = torch.linalg.svd(known - centre, full_matrices=False)
        points = (known - centre) @ directions[: self.most].T
        of, given = labels, points
        if case.trusted is not None and len(case.trusted) >= 2 * points.shape[1]:
            of = case.trusted.labels.cpu()
            clean = last_layer(case.subject, case.trusted.inputs, ctx).features.double()
            given = (clean - centre) @ directions[: self.most].T
        white = whitened(points, Moments(points.new_zeros(points.shape[1]), variation(given, of)))
        present = [c for c in labels.unique().tolist() if int((labels == c).sum()) >= LEAST]
        found = {c: divide(white[labels == c], self.rounds) for c in present}
        gains = torch.tensor([found[c].gain for c in present], dtype=torch.float64)
        scores = torch.zeros(len(labels), dtype=torch.float64)
        if not present:
            return scores
        middle = gains.quantile(0.5)
        spread = torch.maximum(SPREAD * (gains - middle).abs().quantile(0.5), 0.05 * middle.abs()).clamp_min(1e-9)
        for label, star in zip(present, ((gains - middle) / spread).tolist(), strict=True):
            scores[labels == label] = math.log1p(max(0.0, star)) * found[label].place
        return scores


def variation(points: Tensor, labels: Tensor) -> Tensor:
    """Covariance within classes, pooled over them, [width, width]."""
    centred = points.clone()
    for label in labels.unique().tolist():
        centred[labels == label] -= points[labels == label].mean(0)
    return shrunk(centred.T @ centred / max(1, len(points) - 1))


def divide(white: Tensor, rounds: int) -> Division:
    """Two normal components of unit covariance in whitened points [n, width], by EM from two-means."""
    one = -0.5 * (white - white.mean(0)).square().sum(1)
    share = two_means(white).double()
    for _ in range(rounds):
        weights = torch.stack([1 - share, share])
        mass = weights.sum(1)
        if float(mass.min()) < 1:
            return Division(0.0, torch.zeros(len(white), dtype=torch.float64))
        means = weights @ white / mass[:, None]
        logs = (mass / len(white)).log()[:, None] - 0.5 * torch.cdist(means, white).square()
        share = logs.softmax(0)[1]
    gain = 2 * float((logs.logsumexp(0) - one).mean())
    if float(mass[1]) > float(mass[0]):
        means = means.flip(0)
    line = means[1] - means[0]
    place = 2 * (white - means.mean(0)) @ line / line.square().sum().clamp_min(1e-12)
    return Division(gain, place)
