"""Self-supervised pre-training of small encoders: two views of every sample, NT-Xent (SimCLR, ICML 2020)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context, governed
from laocoon.core.subject import Subject
from laocoon.recipes.fit import shift_and_flip
from laocoon.recipes.transfer import with_head


def view(inputs: Tensor, rng: torch.Generator, *, flip: bool) -> Tensor:
    """A random view of images [n, channels, height, width] in [0, 1]: moved, zoomed, re-exposed, noisy, part hidden."""
    n, c, h, w = inputs.shape
    moved = shift_and_flip(inputs, rng, shift=max(1, h // 10), flip=flip)
    zoom = 0.75 + 0.35 * torch.rand(n, generator=rng)
    turn = 0.4 * (torch.rand(n, generator=rng) - 0.5)
    still = torch.zeros(n)
    grid = torch.stack([torch.stack([zoom * turn.cos(), -zoom * turn.sin(), still], 1),
                        torch.stack([zoom * turn.sin(), zoom * turn.cos(), still], 1)], 1).to(inputs)
    moved = functional.grid_sample(moved, functional.affine_grid(grid, [n, c, h, w], align_corners=False),
                                   padding_mode="border", align_corners=False)
    gain = (0.6 + 0.8 * torch.rand(n, c if c > 1 else 1, 1, 1, generator=rng)).to(inputs)
    noise = 0.05 * torch.randn(n, c, h, w, generator=rng).to(inputs)
    top, left = (torch.randint(0, h, (n, 1, 1, 1), generator=rng), torch.randint(0, w, (n, 1, 1, 1), generator=rng))
    size = max(2, h // 5)
    rows, columns = torch.arange(h)[None, None, :, None], torch.arange(w)[None, None, None, :]
    gone = ((rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)).to(inputs.device)
    return (moved * gain + noise).clamp(0, 1).masked_fill(gone, 0.5)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Each of 2n embeddings must name its other view among all others; first, second [n, width]."""
    both = functional.normalize(torch.cat([first, second]), dim=1)
    likeness = both @ both.t() / temperature
    likeness.fill_diagonal_(-1e9)
    n = len(first)
    other = torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(both.device)
    return functional.cross_entropy(likeness, other)


def pretrained(untrained: Subject, inputs: Tensor, ctx: Context, *, epochs: int, width: int = 64, batch: int = 128,
               rate: float = 3e-3, flip: bool = False) -> Subject:
    """An encoder trained without labels. Its last layer is SimCLR's projection, which whoever builds on it replaces."""
    encoder = with_head(untrained, width, ctx.rng)
    module = encoder.module
    module.train()
    module.requires_grad_(True)
    batch = min(batch, max(16, len(inputs) // 8))
    steps = max(1, len(inputs) // batch)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=epochs * steps + 1)
    with governed(ctx.rng):
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=ctx.rng)
            for step in range(steps):
                x = inputs[order[step * batch:(step + 1) * batch]]
                ctx.spend(2 * len(x))
                said = module(torch.cat([view(x, ctx.rng, flip=flip), view(x, ctx.rng, flip=flip)]))
                loss = nt_xent(said[:len(x)], said[len(x):])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
                optimiser.step()
                schedule.step()
    return replace(encoder, module=module)  # frozen and in eval mode again, as every subject is
