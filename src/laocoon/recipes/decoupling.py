"""Feature masks that tell what a head needs from what it can do without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Head = Callable[[Tensor], Tensor]
ROOM = 2_000_000  # logits of one step of a mask: what many samples of many classes cost is bounded here


def decoupling_mask(head: Head, features: Tensor, labels: Tensor, *, steps: int = 60, rate: float = 0.1,
                    sparsity: float = 0.25, scale: float = 1.0) -> Tensor:
    """The mask m in [0, 1] of min CE(h(m·f), y) − CE(h((1−m)·f), y) + λ·mean(m), over all samples.

    features [n, …] -> mask [1, …]. `scale` divides the logits, so that a confident head and a shy one are
    asked the same. The second term is bounded by CE of a uniform answer, else it runs away on large logits. Of more
    samples than there is room for, every second, third, … is taken.
    """
    classes_bound = None
    if len(features) > 1000:  # fewer always fit, for up to 2,000 classes
        with torch.no_grad():
            step = -(-len(features) * head(features[:1]).shape[1] // ROOM)
        features, labels = features[::step], labels[::step]
    theta = torch.zeros_like(features[:1])
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(steps):
        theta.requires_grad_(True)
        mask = theta.sigmoid()
        kept = head(mask * features) / scale
        dropped = head((1 - mask) * features) / scale
        classes_bound = torch.tensor(float(kept.shape[1])).log()
        lost = functional.cross_entropy(dropped, labels, reduction="none").clamp_max(2 * float(classes_bound)).mean()
        loss = functional.cross_entropy(kept, labels) - lost + sparsity * mask.mean()
        (slope,) = torch.autograd.grad(loss, theta)
        slope = torch.nan_to_num(slope)
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square(), 0.01)
        move = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
        theta = theta.detach() - rate * move
    return theta.sigmoid().detach()


def class_masks(head: Head, features: Tensor, labels: Tensor, classes: Tensor, *, steps: int = 60, rate: float = 0.1,
                sparsity: float = 0.25, scale: float = 1.0) -> Tensor:
    """One mask per class from its own samples alone: [len(classes), …]. A class without samples keeps everything."""
    masks = torch.ones(len(classes), *features.shape[1:], device=features.device, dtype=features.dtype)
    for row, t in enumerate(classes.tolist()):
        own = labels == t
        if bool(own.any()):
            masks[row] = decoupling_mask(head, features[own], labels[own], steps=steps, rate=rate,
                                         sparsity=sparsity, scale=scale)[0]
    return masks


class SmallGenerator(nn.Module):
    """x + bound · tanh(r(x)), clipped to [0, 1]: a residual network at half and quarter resolution.

    Its weights are drawn from `rng`, so that a run can be repeated; its own cost is small beside any subject's.
    """

    def __init__(self, channels: int, width: int, bound: float, rng: torch.Generator) -> None:
        super().__init__()
        self.bound = bound
        with torch.random.fork_rng(devices=[]):  # the layers draw weights of their own before ours replace them
            self.inward = nn.Conv2d(channels, width, 3, stride=2, padding=1)
            self.deeper = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
            self.upward = nn.Conv2d(2 * width, width, 3, padding=1)
            self.outward = nn.Conv2d(width, width, 3, padding=1)
            self.finish = nn.Conv2d(width + channels, channels, 3, padding=1)
        with torch.no_grad():
            for layer in (self.inward, self.deeper, self.middle, self.upward, self.outward, self.finish):
                spread = (2.0 / layer.weight[0].numel()) ** 0.5
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * spread)
                if layer.bias is not None:
                    layer.bias.zero_()
            self.finish.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        outer = functional.relu(self.inward(x - 0.5))
        inner = functional.relu(self.deeper(outer))
        inner = functional.relu(inner + self.middle(inner))
        back = functional.interpolate(self.upward(inner), outer.shape[-2:], mode="bilinear", align_corners=False)
        back = functional.relu(outer + back)
        full = functional.interpolate(self.outward(back), x.shape[-2:], mode="bilinear", align_corners=False)
        change = self.finish(torch.cat([functional.relu(full), x - 0.5], 1))
        moved: Tensor = x + self.bound * change.tanh()
        return moved.clamp(0, 1)
