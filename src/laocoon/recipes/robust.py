"""Means and covariances that a minority of strange samples cannot move far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPREAD = 1.4826  # a normal distribution's standard deviation in units of its median absolute deviation


@dataclass(frozen=True, eq=False)
class Moments:
    """Location and scatter of the bulk of some points."""

    mean: Tensor  # [width]
    covariance: Tensor  # [width, width]


def bulk(points: Tensor, share: float, rounds: int = 10) -> Moments:
    """Mean and covariance of the `share` of points [n, width] that lie closest together.

    Concentration steps (Rousseeuw and Van Driessen, 1999): estimate, keep the points of smallest Mahalanobis distance,
    repeat; from the medians and absolute deviations. Scaled so that the median distance is a normal distribution's.
    """
    points = points.double()
    width, count = points.shape[1], max(2, round(share * len(points)))
    centre = points.median(0).values
    scale = ((points - centre).abs().median(0).values * SPREAD).clamp_min(1e-9)
    distance = ((points - centre) / scale).square().sum(1)
    found = Moments(centre, torch.diag(scale.square()))
    before = torch.empty(0, dtype=torch.long)
    for _ in range(rounds):
        kept = distance.argsort(stable=True)[:count].sort().values
        if torch.equal(kept, before):
            break
        before = kept
        some = points[kept]
        centred = some - some.mean(0)
        found = Moments(some.mean(0), shrunk(centred.T @ centred / max(1, len(some) - 1)))
        distance = mahalanobis(points, found)
    # The median of chi-square with `width` degrees of freedom, after Wilson and Hilferty.
    typical = width * (1 - 2 / (9 * width)) ** 3
    factor = (distance.median() / typical).clamp_min(1e-12)
    return Moments(found.mean, found.covariance * factor)


def shrunk(covariance: Tensor, weight: float = 0.02) -> Tensor:
    """A covariance drawn a little towards a multiple of the identity, so that it can be inverted."""
    typical = covariance.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return (1 - weight) * covariance + weight * typical * eye


def mahalanobis(points: Tensor, moments: Moments) -> Tensor:
    """Squared distances of points [n, width] from the mean, in units of the covariance, [n]."""
    return whitened(points, moments).square().sum(1)


def whitened(points: Tensor, moments: Moments) -> Tensor:
    """(points − mean) in coordinates in which the covariance is the identity, [n, width]."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    white: Tensor = (points.double() - moments.mean) @ (vectors * values.clamp_min(1e-12).rsqrt())
    return white
