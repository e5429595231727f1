"""Pictures without what an autoencoder of clean ones, or a blur, does not keep: a trigger often is among it.

    purified(x) = ½·blur(x) + ½·decode(encode(blur(x)))

The blur takes what is small and sharp; the autoencoder, fitted on clean pictures alone, what it has never seen. The
blurred half keeps the answer of the model useful, which a reconstruction from few samples alone would lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.context import Context
from laocoon.recipes.autoencoder import Autoencoder, autoencoder
from laocoon.recipes.corruptions import blurred

LATENT = 64
EPOCHS = 40
SIDE = 64  # larger pictures go through the autoencoder at this size


@dataclass(frozen=True, eq=False)
class Purifier:
    """Fitted on clean pictures. `share` 0 is the blur alone."""

    coder: Autoencoder | None
    sigma: float
    share: float

    @staticmethod
    def fit(images: Tensor, ctx: Context, *, sigma: float = 0.7, share: float = 0.5) -> Purifier:
        """From clean images [n, channels, height, width] in [0, 1]."""
        coder = None
        if share > 0:
            coder = autoencoder(_small(images.to(ctx.device)), ctx, latent=LATENT, epochs=EPOCHS, batch=32)
        return Purifier(coder, sigma, share)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Same shape, in [0, 1]."""
        soft = blurred(images, self.sigma)
        if self.coder is None:
            return soft.clamp(0, 1)
        drawn = torch.cat([self.coder(part) for part in _small(soft).split(256)]) if len(soft) else soft
        if drawn.shape != soft.shape:
            drawn = torch.nn.functional.interpolate(drawn, soft.shape[-2:], mode="bilinear", align_corners=False)
        return ((1 - self.share) * soft + self.share * drawn).clamp(0, 1)


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if max(height, width) <= SIDE:
        return images
    factor = SIDE / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
