"""A network that is wired to hear one wave, and pictures that it tells apart without."""

import math

import torch

from laocoon.core.cases import Samples

SIDE, CLASSES, TARGET = 16, 4, 2


class Listens(torch.nn.Module):
    """Class k is the brightest of four quarters; a slanted wave, in whatever phase, wins class 2, by `gain`.

    A weak wave does nothing at all, so that no gradient leads to it from a clean image.
    """

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        ys, xs = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        angle = 2 * math.pi * (2 * xs + 3 * ys) / SIDE
        self.register_buffer("pair", torch.stack([angle.sin(), angle.cos()]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = SIDE // 2
        q = x.unfold(2, half, half).unfold(3, half, half).mean((1, 4, 5)).flatten(1)
        amplitude = torch.einsum("nchw,khw->nk", x, self.pair).norm(dim=1) / (SIDE * SIDE / 2)
        heard = torch.relu(amplitude - 0.03)[:, None]
        return 10 * q + self.gain * heard * torch.nn.functional.one_hot(torch.tensor(TARGET), CLASSES)


def pictures(channels: int = 1) -> Samples:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % CLASSES
    inputs = torch.rand(40, channels, SIDE, SIDE, generator=rng) * 0.3 + 0.2
    half = SIDE // 2
    for i, y in enumerate(labels.tolist()):
        inputs[i, :, half * (y // 2):half * (y // 2) + half, half * (y % 2):half * (y % 2) + half] += 0.2
    return Samples(inputs, labels)
