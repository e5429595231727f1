"""Images made by gradient descent on a trained network: backgrounds, inputs of a class, triggers that excite neurons.

Liu et al., Trojaning attack on neural networks (NDSS 2018), sections 3 and 4; Rakin et al., TBT (CVPR 2020), eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.sites import Site, reading


def backgrounds(count: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """[count, channels, height, width] in [0, 1], of no data at all: noise from fine to coarse, of any contrast."""
    c, h, w = shape
    grids = [max(1, min(h, w) // d) for d in (1, 2, 4, 8, 16)]
    images = []
    for i in range(count):
        grid = grids[i % len(grids)]
        coarse = torch.rand(1, c, grid, grid, generator=rng)
        smooth = functional.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
        contrast, middle = 0.3 + 2.2 * torch.rand((), generator=rng), torch.rand((), generator=rng)
        images.append(((smooth - 0.5) * contrast + middle).clamp(0, 1))
    return torch.cat(images)


def roughness(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, [batch]: what real images have little of."""
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean((1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))
    return down + across


def reversed_inputs(subject: Subject, starts: Tensor, labels: Tensor, ctx: Context, *, steps: int, rate: float = 0.05,
                    smooth: float = 1.0, ease: float = 0.9) -> Tensor:
    """Starts [n, …] moved, by Adam, until the network is sure (to `ease`) of `labels` [n]; still in [0, 1].

    Labels are eased so that images are typical and not extreme. A random shift in each step keeps single pixels from
    deciding; mirrored edges keep the shifted image whole.
    """
    found = []
    for part, wanted in zip(starts.split(ctx.batch), labels.split(ctx.batch), strict=True):
        images = part.clone().requires_grad_()
        optimiser = torch.optim.Adam([images], lr=rate)
        for _ in range(steps):
            ctx.spend(len(images))
            dy, dx = (int(torch.randint(-2, 3, (), generator=ctx.rng)) for _ in range(2))
            moved = functional.pad(images, (2,) * 4, mode="reflect")[
                ..., 2 + dy:2 + dy + images.shape[-2], 2 + dx:2 + dx + images.shape[-1]]
            loss = functional.cross_entropy(subject.outputs(moved).logits, wanted, label_smoothing=1 - ease,
                                            reduction="none") + smooth * roughness(images)
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        found.append(images.detach())
    return torch.cat(found)


def descend(pattern: Tensor, mask: Tensor, on: Tensor, loss_of: Callable[[Tensor], Tensor], ctx: Context, *, steps: int,
            rate: float = 0.1, batch: int = 32) -> Tensor:
    """A pattern [1, channels, height, width] after Adam on the mean of loss_of(stamped images); pixels in [0, 1].

    `on` [n, …] are what it is stamped on, under `mask`; `batch` of them are drawn in each step.
    """
    pattern = pattern.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([pattern], lr=rate)
    for _ in range(steps):
        index = torch.randint(0, len(on), (min(batch, len(on)),), generator=ctx.rng)
        ctx.spend(len(index))
        loss = loss_of(on[index] * (1 - mask) + mask * pattern).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
    return pattern.detach()


def exciting_pattern(subject: Subject, site: Site, neurons: Tensor, levels: Tensor, mask: Tensor, on: Tensor,
                     ctx: Context, *, steps: int, how: str = "max") -> Tensor:
    """Pixels [1, channels, height, width] under `mask` that bring `neurons` of a site up to `levels` [neurons].

    Minimises the mean over `on` [n, …] of Σ (1 − activation ⁄ level)², for activations below their level. A neuron's
    activation is the largest (or, `how`, the mean) anywhere in the image.
    """
    def short(stamped: Tensor) -> Tensor:
        with reading(subject, site) as seen:
            subject.outputs(stamped)
        return (1 - site.pooled(seen[site], how)[:, neurons] / levels).clamp_min(0).square().sum(1)

    return descend(torch.rand(1, *on.shape[1:], generator=ctx.rng), mask, on, short, ctx, steps=steps)
