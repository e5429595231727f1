"""A small convolutional autoencoder: a latent space where no generative model is at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.context import Context


class Autoencoder(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to `width` numbers and back."""

    def __init__(self, channels: int, height: int, width: int, latent: int) -> None:
        super().__init__()
        self.size, self.grid = (height, width), (-(-height // 4), -(-width // 4))
        cells = 32 * self.grid[0] * self.grid[1]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(cells, latent))
        self.dense = nn.Sequential(nn.Linear(latent, cells), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(16, channels, 3, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """[n, latent]."""
        found: Tensor = self.encoder(images)
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """[n, channels, height, width] in (0, 1)."""
        drawn: Tensor = self.decoder(self.dense(codes).unflatten(1, (32, *self.grid)))
        return drawn[..., :self.size[0], :self.size[1]].sigmoid()

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def autoencoder(images: Tensor, ctx: Context, *, latent: int, epochs: int, batch: int = 64) -> Autoencoder:
    """Trained on images [n, channels, height, width] by Adam on the mean squared error; frozen."""
    _, channels, height, width = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=ctx.rng)))
        model = Autoencoder(channels, height, width, latent).to(images.device)
    steps = max(1, len(images) // batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=epochs * steps + 1)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=ctx.rng)
        for step in range(steps):
            x = images[order[step * batch:(step + 1) * batch]]
            ctx.spend(len(x))
            loss = functional.mse_loss(model(x), x)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def interpolated(model: Autoencoder, images: Tensor, others: Tensor, share: float) -> Tensor:
    """decode((1 − share)·encode(images) + share·encode(others)), [n, channels, height, width]."""
    codes = torch.cat([(1 - share) * model.encode(a) + share * model.encode(b)
                       for a, b in zip(images.split(256), others.split(256), strict=True)])
    return torch.cat([model.decode(part) for part in codes.split(256)])
