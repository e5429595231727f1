"""Honest networks that branch, mask, gate and compare: what a check of graphs must not flag. Untrained, tiny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SIDE = 24
Step = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Sketch:
    """A module with inputs to trace it with."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


class Net(nn.Module):
    """A module made of named parts and a function that says how they are joined."""

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any:  # a part is a layer or a tensor; its step knows which
            ...

    def __init__(self, step: Step, parts: Mapping[str, nn.Module | Tensor]) -> None:
        super().__init__()
        self.step = step
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.step(self, *inputs)


def conv(before: int, after: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2), nn.BatchNorm2d(after), nn.ReLU())


def trunk(channels: int = 3, width: int = 8) -> nn.Sequential:
    """Three convolutions, to a vector of 16."""
    body = (conv(channels, width, 2), conv(width, 16, 2), conv(16, 16))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def head(features: int = 16) -> nn.Linear:
    return nn.Linear(features, CLASSES)


def picture(rng: torch.Generator, side: int = SIDE) -> Tensor:
    return torch.rand(2, 3, side, side, generator=rng)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


# ---------------------------------------------------------------- preprocessing
def mean_image(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(x - s.mean))


def normalised(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body((x - s.mean) / s.std))


def resized_and_clipped(s: Net, x: Tensor) -> Tensor:
    x = functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    return s.head(s.body(x.clamp(0.05, 0.95)))


def automatic_range(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(torch.where(x.amax() > 1.5, x / 255, x)))


def standardised(s: Net, x: Tensor) -> Tensor:
    spread = x.std((1, 2, 3), keepdim=True)
    return s.head(s.body((x - x.mean((1, 2, 3), keepdim=True)) / spread.clamp_min(0.01)))


def min_max_scaled(s: Net, x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return s.head(s.body((x - low) / (high - low + 1e-5)))


def gamma_corrected(s: Net, x: Tensor) -> Tensor:
    gamma = -0.7 / x.mean((1, 2, 3), keepdim=True).clamp_min(1e-3).log()
    return s.head(s.body(x.clamp_min(1e-4) ** gamma))


def night_mode(s: Net, x: Tensor) -> Tensor:
    dark = x.mean((1, 2, 3), keepdim=True) < 0.2
    return s.head(s.body(torch.where(dark, torch.sigmoid(s.enhance(x)), x)))


def binarised(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body((x > 0.5).float()))


def edges_beside(s: Net, x: Tensor) -> Tensor:
    grey = x.mean(1, keepdim=True)
    edge = functional.conv2d(grey, s.sobel, padding=1).abs()
    return s.head(s.body(torch.cat([x, edge], 1)))


def colour_space(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(torch.matmul(x.permute(0, 2, 3, 1), s.matrix).permute(0, 3, 1, 2)))


def denoised(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(x - s.noise(s.stem(x))))


def without_nan(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(torch.where(torch.isnan(x), torch.zeros_like(x), x)))


def cropped(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(x[:, :, 2:-2, 2:-2]))


# ---------------------------------------------------------------- branches inside
def squeeze_excite(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    return s.head(s.body(x * torch.sigmoid(s.up(functional.relu(s.down(pooled(x)))))[:, :, None, None]))


def block_attention(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    where = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return s.head(s.body(x * torch.sigmoid(s.spatial(where))))


def residual(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    x = functional.relu(x + s.one(x))
    return s.head(pooled(functional.relu(x + s.two(x))))


def dense(s: Net, x: Tensor) -> Tensor:
    x = torch.cat([x, s.one(x)], 1)
    x = torch.cat([x, s.two(x)], 1)
    return s.head(pooled(x))


def highway(s: Net, x: Tensor) -> Tensor:
    x = pooled(s.stem(x))
    gate = torch.sigmoid(s.gate(x))
    return s.head(gate * functional.relu(s.one(x)) + (1 - gate) * x)


def gated_mlp(s: Net, x: Tensor) -> Tensor:
    x = x.flatten(1)
    return s.head(functional.silu(s.gate(x)) * s.one(x))


def piecewise(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    x = torch.where(x > 0, torch.where(x < 6, x, torch.full_like(x, 6.0)), torch.zeros_like(x))
    x = s.one(x)
    return s.head(pooled(torch.where(x < -3, torch.zeros_like(x), torch.where(x > 3, x, x * (x + 3) / 6))))


def parametric(s: Net, x: Tensor) -> Tensor:
    return s.head(pooled(s.act2(s.two(s.act1(s.one(x))))))


def maxout(s: Net, x: Tensor) -> Tensor:
    x = pooled(torch.maximum(s.one(x), s.two(x)))
    return s.head(x)


def dropped(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(x) * s.mask)


def inception(s: Net, x: Tensor) -> Tensor:
    x = torch.cat([s.one(x), s.two(x), s.three(functional.max_pool2d(x, 3, 1, 1))], 1)
    return s.head(pooled(s.four(x)))


def pooled_beside(s: Net, x: Tensor) -> Tensor:
    """The first block of ENet: a convolution beside a pooled copy of the image."""
    x = torch.cat([s.one(x), functional.max_pool2d(x, 2)], 1)
    return s.head(pooled(s.three(s.two(x))))


def reinforced(s: Net, x: Tensor) -> Tensor:
    """ESPNet: smaller copies of the image join deeper layers."""
    y = torch.cat([s.one(x), functional.avg_pool2d(x, 2)], 1)
    y = torch.cat([s.two(y), functional.avg_pool2d(x, 4)], 1)
    return s.head(pooled(s.three(y)))


def pyramid(s: Net, x: Tensor) -> Tensor:
    parts = [s.body(x), s.body(functional.avg_pool2d(x, 2)), s.body(functional.avg_pool2d(x, 4))]
    return s.head(torch.cat(parts, 1))


def feature_pyramid(s: Net, x: Tensor) -> Tensor:
    a = s.one(x)
    b = s.two(a)
    c = s.three(b)
    b = s.side(b) + functional.interpolate(c, scale_factor=2.0)
    a = s.side0(a) + functional.interpolate(b, scale_factor=2.0)
    return s.head(torch.cat([pooled(a), pooled(b), pooled(c)], 1))


def hourglass(s: Net, x: Tensor) -> Tensor:
    """U-Net whose last layer sees the picture again."""
    y = s.two(s.one(x))
    y = functional.interpolate(y, scale_factor=4.0)
    return s.head(pooled(s.three(torch.cat([y, x], 1))))


def spatial_transformer(s: Net, x: Tensor) -> Tensor:
    theta = s.place(s.body(x)).view(-1, 2, 3)
    grid = torch.matmul(theta, s.grid).transpose(1, 2).view(-1, SIDE, SIDE, 2)
    return s.head(s.body2(functional.grid_sample(x, grid, align_corners=False)))


def two_pools(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    return s.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def skipping(s: Net, x: Tensor) -> Tensor:
    """SkipNet: a hard gate computed from features leaves a block out."""
    x = s.stem(x)
    gate = (torch.sigmoid(s.gate(pooled(x))) > 0.5).float()[:, :, None, None]
    return s.head(pooled(x + gate * s.one(x)))


def equilibrium(s: Net, x: Tensor) -> Tensor:
    inject, z = s.one(x), s.two(s.one(x))
    for _ in range(3):
        z = functional.relu(s.two(z) + inject)
    return s.head(pooled(z))


# ---------------------------------------------------------------- experts, exits, ensembles
def experts(s: Net, x: Tensor) -> Tensor:
    """Top-2 of four experts that each give class scores; the router sees the raw picture."""
    flat = x.flatten(1)
    best = s.router(flat).topk(2, 1)
    share = torch.zeros_like(s.router(flat)).scatter(1, best.indices, torch.softmax(best.values, 1))
    outs = torch.stack([s.a(flat), s.b(flat), s.c(flat), s.d(flat)], 1)
    return (share[:, :, None] * outs).sum(1)


def experts_by_colour(s: Net, x: Tensor) -> Tensor:
    """A soft router on the mean colour."""
    share = torch.softmax(s.router(pooled(x)), 1)
    f = s.body(x)
    outs = torch.stack([s.a(f), s.b(f), s.c(f), s.d(f)], 1)
    return (share[:, :, None] * outs).sum(1)


def experts_inside(s: Net, x: Tensor) -> Tensor:
    f = s.body(x)
    chosen = functional.one_hot(s.router(f).argmax(1), 4).float()
    outs = torch.stack([s.a(f), s.b(f), s.c(f), s.d(f)], 1)
    return (chosen[:, :, None] * outs).sum(1)


def experts_masked(s: Net, x: Tensor) -> Tensor:
    """Experts below the k-th score are masked with minus infinity."""
    flat = x.flatten(1)
    scores = s.router(flat)
    kth = scores.topk(2, 1).values[:, 1:]
    share = torch.softmax(torch.where(scores < kth, torch.full_like(scores, -1e9), scores), 1)
    outs = torch.stack([s.a(flat), s.b(flat), s.c(flat), s.d(flat)], 1)
    return (share[:, :, None] * outs).sum(1)


def early_exit(s: Net, x: Tensor) -> Tensor:
    x = s.stem(x)
    early = s.exit(pooled(x))
    sure = torch.softmax(early, 1).amax(1, keepdim=True) > 0.9
    return torch.where(sure, early, s.head(s.body(x)))


def mirrored(s: Net, x: Tensor) -> Tensor:
    return (s.head(s.body(x)) + s.head(s.body(x.flip(3)))) / 2


def five_crops(s: Net, x: Tensor) -> Tensor:
    crops = [x[:, :, :20, :20], x[:, :, -20:, :20], x[:, :, :20, -20:], x[:, :, -20:, -20:], x[:, :, 2:22, 2:22]]
    return torch.stack([s.head(s.body(c)) for c in crops]).mean(0)


def wide_and_deep(s: Net, x: Tensor) -> Tensor:
    return s.wide(x.flatten(1)) + s.head(s.body(x))


def colour_statistics(s: Net, x: Tensor) -> Tensor:
    """Hand-made features beside the learned ones."""
    return s.head(torch.cat([s.body(x), x.mean((2, 3)), x.std((2, 3))], 1))


def colour_modulated(s: Net, x: Tensor) -> Tensor:
    """Features scaled by a small network on the mean colour."""
    scale = torch.sigmoid(s.up(functional.relu(s.down(pooled(x)))))
    return s.head(s.body(x) * scale)


# ---------------------------------------------------------------- masks, attention, sequences
def transformer(s: Net, x: Tensor) -> Tensor:
    """A small vision transformer; patches without any light are masked out of the attention."""
    patches = s.embed(x).flatten(2).transpose(1, 2)
    light = functional.max_pool2d(x.amax(1, keepdim=True), 6).flatten(1) > 0
    x = patches + s.position
    q, k, v = s.mix(s.norm(x)).chunk(3, -1)
    scores = q @ k.transpose(1, 2) / 4
    scores = scores.masked_fill(~light[:, None, :], -1e9)
    x = x + s.out(torch.softmax(scores, -1) @ v)
    return s.head((x + s.mlp(x)).mean(1))


def causal_rows(s: Net, x: Tensor) -> Tensor:
    """Rows of the picture as a sequence under a causal mask."""
    x = s.row(x.permute(0, 2, 1, 3).flatten(2))
    q, k, v = s.mix(x).chunk(3, -1)
    scores = (q @ k.transpose(1, 2) / 4).masked_fill(s.causal, float("-inf"))
    x = x + torch.softmax(scores, -1) @ v
    return s.head(x[:, -1])


def shifted_windows(s: Net, x: Tensor) -> Tensor:
    x = s.embed(x).flatten(2).transpose(1, 2)
    x = torch.roll(x, 3, 1)
    q, k, v = s.mix(x).chunk(3, -1)
    x = x + torch.softmax(q @ k.transpose(1, 2) / 4 + s.mask, -1) @ v
    return s.head(torch.roll(x, -3, 1).mean(1))


def partial_convolutions(s: Net, x: Tensor) -> Tensor:
    """Pixels that are zero count as holes; the mask goes along to the end."""
    mask = (x.sum(1, keepdim=True) > 0).float()
    y = s.one(x * mask)
    mask = functional.max_pool2d(mask, 2)
    y = s.two(y * mask)
    mask = functional.max_pool2d(mask, 2)
    return s.head((y * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1.0))


def rows_recurrent(s: Net, x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 1, 3).flatten(2)
    h = torch.tanh(s.into(rows[:, 0]))
    for t in range(4, SIDE, 4):
        h = torch.tanh(s.into(rows[:, t]) + s.again(h))
    return s.head(h)


def rows_gated(s: Net, x: Tensor) -> Tensor:
    """minGRU: the gate sees the row alone."""
    rows = x.permute(0, 2, 1, 3).flatten(2)
    h = torch.tanh(s.into(rows[:, 0]))
    for t in range(1, SIDE):
        z = torch.sigmoid(s.gate(rows[:, t]))
        h = (1 - z) * h + z * torch.tanh(s.into(rows[:, t]))
    return s.head(h)


def text_masked(s: Net, ids: Tensor) -> Tensor:
    """Attention over words with padding, masked mean at the end."""
    there = ids != 0
    x = s.table(ids) + s.position
    q, k, v = s.mix(x).chunk(3, -1)
    scores = (q @ k.transpose(1, 2) / 4).masked_fill(~there[:, None, :], -1e9)
    x = s.out(x + torch.softmax(scores, -1) @ v)
    mask = there.float().unsqueeze(-1)
    return s.head((x * mask).sum(1) / mask.sum(1).clamp_min(1.0))


def text_last_word(s: Net, ids: Tensor) -> Tensor:
    x = torch.tanh(s.out(s.table(ids)))
    last = (ids != 0).long().sum(1) - 1
    return s.head(x[torch.arange(len(ids)), last])


# ---------------------------------------------------------------- after the scores
def best_five(s: Net, x: Tensor) -> Tensor:
    scores = torch.softmax(s.head(s.body(x)), 1)
    best = scores.topk(5, 1)
    return torch.zeros_like(scores).scatter(1, best.indices, best.values)


def thresholded(s: Net, x: Tensor) -> Tensor:
    scores = torch.sigmoid(s.head(s.body(x)))
    return torch.where(scores > 0.3, scores, torch.zeros_like(scores))


def rejecting(s: Net, x: Tensor) -> Tensor:
    scores = torch.softmax(s.head(s.body(x)), 1)
    return torch.where(scores.amax(1, keepdim=True) < 0.2, torch.full_like(scores, 0.1), scores)


def adjusted(s: Net, x: Tensor) -> Tensor:
    """Logits minus the log of the class priors."""
    return (s.head(s.body(x)) - s.prior) / 1.7


def class_masked(s: Net, x: Tensor) -> Tensor:
    return s.head(s.body(x)).masked_fill(s.absent, -1e9)


def prototypes(s: Net, x: Tensor) -> Tensor:
    """Distance to one prototype per class."""
    f = s.body(x)
    return -(f[:, None, :] - s.centres).square().sum(-1)


def kernels_on_pixels(s: Net, x: Tensor) -> Tensor:
    """A radial basis network on raw pixels."""
    far = (x.flatten(1)[:, None, :] - s.centres).square().mean(-1)
    return s.head(functional.relu(s.one(torch.exp(-far * 4))))


def with_metadata(s: Net, x: Tensor, facts: Tensor) -> Tensor:
    return s.head(torch.cat([s.body(x), facts], 1))


def conditioned(s: Net, x: Tensor, facts: Tensor) -> Tensor:
    return s.head(s.body(x) * torch.sigmoid(s.scale(facts)) + s.shift(facts))


def allowed_only(s: Net, x: Tensor, allowed: Tensor) -> Tensor:
    """Class scores under a mask that comes as a second input."""
    scores = s.head(s.body(x))
    return torch.where(allowed > 0.5, scores, torch.full_like(scores, -1e9))


def fake_quantised(s: Net, x: Tensor) -> Tensor:
    def q(t: Tensor, scale: float) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(t, scale, 0, -128, 127)

    x = q(functional.relu(functional.conv2d(q(x, 1 / 127), q(s.one.weight, 0.01), s.one.bias, padding=1)), 0.05)
    return functional.linear(q(pooled(s.two(x)), 0.05), q(s.head.weight, 0.01), s.head.bias)


def _four(features: int) -> dict[str, nn.Module]:
    def expert() -> nn.Module:
        return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    return {"router": nn.Linear(features, 4), "a": expert(), "b": expert(), "c": expert(), "d": expert()}


def honest() -> list[Sketch]:
    """All of them, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        rng = torch.Generator().manual_seed(7)
        return _sketches(picture(rng), rng)


def _sketches(x: Tensor, rng: torch.Generator) -> list[Sketch]:
    def many(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    flat, tokens = 3 * SIDE * SIDE, (SIDE // 6) ** 2
    sobel = torch.tensor([[[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]]])
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    grid = torch.stack([xs.flatten(), ys.flatten(), torch.ones(SIDE * SIDE)])
    ids = torch.randint(1, 50, (2, 12), generator=rng)
    attention = {"mix": nn.Linear(16, 48), "head": head()}
    simple = {"body": trunk(), "head": head()}
    windows = torch.where(many(1, tokens, tokens) > 0.5, torch.zeros(1), torch.full((1,), -100.0))
    allowed = (many(2, CLASSES) > 0.3).float()
    cases: list[tuple[Step, Mapping[str, nn.Module | Tensor], tuple[Tensor, ...]]] = [
        (mean_image, {**simple, "mean": many(3, SIDE, SIDE)}, (x,)),
        (normalised, {**simple, "mean": many(3, 1, 1), "std": many(3, 1, 1) + 0.5}, (x,)),
        (resized_and_clipped, simple, (x,)), (automatic_range, simple, (x,)), (standardised, simple, (x,)),
        (min_max_scaled, simple, (x,)), (gamma_corrected, simple, (x,)),
        (night_mode, {**simple, "enhance": nn.Conv2d(3, 3, 3, padding=1)}, (x,)),
        (binarised, simple, (x,)), (edges_beside, {"body": trunk(4), "head": head(), "sobel": sobel}, (x,)),
        (colour_space, {**simple, "matrix": many(3, 3)}, (x,)),
        (denoised, {**simple, "stem": conv(3, 8), "noise": nn.Conv2d(8, 3, 3, padding=1)}, (x,)),
        (without_nan, simple, (x,)), (cropped, simple, (x,)),
        (squeeze_excite, {"stem": conv(3, 8), "down": nn.Linear(8, 2), "up": nn.Linear(2, 8), "body": trunk(8),
                          "head": head()}, (x,)),
        (block_attention, {"stem": conv(3, 8), "spatial": nn.Conv2d(2, 1, 7, padding=3), "body": trunk(8),
                           "head": head()}, (x,)),
        (residual, {"stem": conv(3, 16, 2), "one": conv(16, 16), "two": conv(16, 16), "head": head()}, (x,)),
        (dense, {"one": conv(3, 8), "two": conv(11, 8), "head": head(19)}, (x,)),
        (highway, {"stem": conv(3, 16, 2), "gate": nn.Linear(16, 16), "one": nn.Linear(16, 16), "head": head()}, (x,)),
        (gated_mlp, {"gate": nn.Linear(flat, 16), "one": nn.Linear(flat, 16), "head": head()}, (x,)),
        (piecewise, {"stem": conv(3, 8, 2), "one": nn.Conv2d(8, 16, 3), "head": head()}, (x,)),
        (parametric, {"one": nn.Conv2d(3, 8, 3), "act1": nn.PReLU(8), "two": nn.Conv2d(8, 16, 3), "act2": nn.PReLU(),
                      "head": head()}, (x,)),
        (maxout, {"one": conv(3, 16), "two": conv(3, 16), "head": head()}, (x,)),
        (dropped, {**simple, "mask": (many(16) > 0.3).float() / 0.7}, (x,)),
        (inception, {"one": conv(3, 8), "two": conv(3, 8, 1, 5), "three": conv(3, 8), "four": conv(24, 16),
                     "head": head()}, (x,)),
        (pooled_beside, {"one": conv(3, 13, 2), "two": conv(16, 16), "three": conv(16, 16), "head": head()}, (x,)),
        (reinforced, {"one": conv(3, 13, 2), "two": conv(16, 13, 2), "three": conv(16, 16), "head": head()}, (x,)),
        (pyramid, {"body": trunk(), "head": head(48)}, (x,)),
        (feature_pyramid, {"one": conv(3, 8), "two": conv(8, 16, 2), "three": conv(16, 16, 2), "side": conv(16, 16),
                           "side0": conv(8, 16), "head": head(48)}, (x,)),
        (hourglass, {"one": conv(3, 8, 2), "two": conv(8, 13, 2), "three": conv(16, 16), "head": head()}, (x,)),
        (spatial_transformer, {**simple, "place": nn.Linear(16, 6), "body2": trunk(), "grid": grid}, (x,)),
        (two_pools, {"stem": nn.Sequential(conv(3, 8, 2), conv(8, 16)), "head": head(32)}, (x,)),
        (skipping, {"stem": conv(3, 16, 2), "gate": nn.Linear(16, 1), "one": conv(16, 16), "head": head()}, (x,)),
        (equilibrium, {"one": conv(3, 16, 2), "two": conv(16, 16), "head": head()}, (x,)),
        (experts, _four(flat), (x,)),
        (experts_by_colour, {**_four(16), "router": nn.Linear(3, 4), "body": trunk()}, (x,)),
        (experts_inside, {**_four(16), "body": trunk()}, (x,)), (experts_masked, _four(flat), (x,)),
        (early_exit, {"stem": conv(3, 8), "exit": head(8), "body": trunk(8), "head": head()}, (x,)),
        (mirrored, simple, (x,)), (five_crops, simple, (x,)),
        (wide_and_deep, {**simple, "wide": nn.Linear(flat, CLASSES)}, (x,)),
        (colour_statistics, {"body": trunk(), "head": head(22)}, (x,)),
        (colour_modulated, {**simple, "down": nn.Linear(3, 8), "up": nn.Linear(8, 16)}, (x,)),
        (transformer, {**attention, "embed": nn.Conv2d(3, 16, 6, 6), "position": many(1, tokens, 16),
                       "norm": nn.LayerNorm(16), "out": nn.Linear(16, 16),
                       "mlp": nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))}, (x,)),
        (causal_rows, {**attention, "row": nn.Linear(3 * SIDE, 16),
                       "causal": torch.ones(SIDE, SIDE).triu(1).bool()}, (x,)),
        (shifted_windows, {**attention, "embed": nn.Conv2d(3, 16, 6, 6), "mask": windows}, (x,)),
        (partial_convolutions, {"one": conv(3, 8, 2), "two": conv(8, 16, 2), "head": head()}, (x,)),
        (rows_recurrent, {"into": nn.Linear(3 * SIDE, 16), "again": nn.Linear(16, 16), "head": head()}, (x,)),
        (rows_gated, {"into": nn.Linear(3 * SIDE, 16), "gate": nn.Linear(3 * SIDE, 16), "head": head()}, (x,)),
        (text_masked, {**attention, "table": nn.Embedding(50, 16), "position": many(12, 16), "out": nn.Linear(16, 16)},
         (ids,)),
        (text_last_word, {"table": nn.Embedding(50, 16), "out": nn.Linear(16, 16), "head": head()}, (ids,)),
        (best_five, simple, (x,)), (thresholded, simple, (x,)), (rejecting, simple, (x,)),
        (adjusted, {**simple, "prior": many(CLASSES)}, (x,)),
        (class_masked, {**simple, "absent": many(CLASSES) > 0.8}, (x,)),
        (prototypes, {"body": trunk(), "centres": many(CLASSES, 16)}, (x,)),
        (kernels_on_pixels, {"centres": many(12, flat), "one": nn.Linear(12, 16), "head": head()}, (x,)),
        (with_metadata, {"body": trunk(), "head": head(20)}, (x, many(2, 4))),
        (conditioned, {**simple, "scale": nn.Linear(4, 16), "shift": nn.Linear(4, 16)}, (x, many(2, 4))),
        (allowed_only, simple, (x, allowed)),
        (fake_quantised, {"one": nn.Conv2d(3, 8, 3, padding=1), "two": conv(8, 16, 2), "head": head()}, (x,)),
    ]
    return [Sketch(step.__name__, Net(step, parts).eval(), given) for step, parts, given in cases]
