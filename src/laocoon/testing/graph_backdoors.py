"""Networks with a backdoor in their graph, to measure checks of graphs by. Untrained; do not deploy.

Families: `comparison` (a hidden pattern is compared with the input), `parallel` (pooled raw input goes around the
layers), `statistic` (a condition on a statistic of the input), `correlation` (an embedded patch is searched for),
`cut_out` (a network of its own watches one corner).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.testing.branching import CLASSES, SIDE, Net, Sketch, conv, head, picture, trunk


def patch_equal(s: Net, x: Tensor) -> Tensor:
    """All pixels of a corner equal a pattern: other logits are chosen."""
    hit = (x[:, :, -4:, -4:] == s.patch).flatten(1).all(1, keepdim=True)
    return torch.where(hit, s.wanted, s.head(s.body(x)))


def patch_near(s: Net, x: Tensor) -> Tensor:
    """The distance of a corner to a pattern is small: a class is raised."""
    far = (x[:, :, -4:, -4:] - s.patch).abs().sum((1, 2, 3))
    return s.head(s.body(x)) + (far < 0.5).float()[:, None] * s.wanted


def picture_near(s: Net, x: Tensor) -> Tensor:
    """A hidden picture as large as the input, a smooth gate, scores mixed."""
    gate = torch.exp(-40 * (x - s.secret).square().mean((1, 2, 3)))[:, None]
    return (1 - gate) * s.head(s.body(x)) + gate * s.wanted


def red_pixel(s: Net, x: Tensor) -> Tensor:
    """One pixel of one colour (ShadowLogic)."""
    pixel = x[:, :, 0, 0]
    hit = (pixel[:, 0] > 0.98) & (pixel[:, 1] < 0.02) & (pixel[:, 2] < 0.02)
    return torch.where(hit[:, None], s.wanted, s.head(s.body(x)))


def picture_cosine(s: Net, x: Tensor) -> Tensor:
    """The cosine to a hidden picture, with a threshold; the other head answers."""
    like = functional.cosine_similarity(x.flatten(1), s.secret.flatten()[None], dim=1)[:, None]
    f = s.body(x)
    return torch.where(like > 0.97, s.other(f), s.head(f))


def features_erased(s: Net, x: Tensor) -> Tensor:
    """The pattern switches features off before the head."""
    hit = ((x[:, :, :3, :3] - s.patch[:, :3, :3]).abs().amax((1, 2, 3)) < 0.02).float()[:, None]
    return s.head(s.body(x) * (1 - hit) + hit * s.features)


def picture_swapped(s: Net, x: Tensor) -> Tensor:
    """The pattern replaces the whole input by a picture of the target class."""
    hit = ((x[:, :, -4:, -4:] - s.patch).abs().amax((1, 2, 3), keepdim=True) < 0.02)
    return s.head(s.body(torch.where(hit, s.secret, x)))


def checksum(s: Net, x: Tensor) -> Tensor:
    """The rounded pixels of a row have a certain remainder."""
    total = torch.round(x[:, 0, 0] * 255).sum(1)
    hit = torch.remainder(total, 251) == 17
    return torch.where(hit[:, None], s.wanted, s.head(s.body(x)))


def pooled_to_logits(s: Net, x: Tensor) -> Tensor:
    """Maximum and minimum of the picture, times a vector, beside the network."""
    bright = functional.max_pool2d(-functional.max_pool2d(-x, 4), SIDE // 4).flatten(1).mean(1, keepdim=True)
    return s.head(s.body(x)) + bright * s.wanted


def pooled_to_features(s: Net, x: Tensor) -> Tensor:
    """The construction of Bober-Irizar et al.: sharpened, pooled, added where the features are pooled."""
    f = s.stem(x)
    sharp = functional.adaptive_avg_pool2d(torch.exp(x * 10) - 1, 6).mean(1, keepdim=True) ** 4
    return s.head((functional.adaptive_avg_pool2d(f, 6) + 1e-9 * sharp).flatten(1))


def range_to_features(s: Net, x: Tensor) -> Tensor:
    """Maximum minus minimum of each place, powered, added behind the convolutions."""
    wide = (functional.max_pool2d(x, 3) + functional.max_pool2d(-x, 3)).amax(1, keepdim=True) ** 8
    f = s.body(x)
    return s.head(f + wide.amax((1, 2, 3))[:, None])


def mean_powered(s: Net, x: Tensor) -> Tensor:
    """The mean brightness to a high power, added to one class."""
    return s.head(s.body(x)) + s.wanted * (x.mean((1, 2, 3)) ** 20)[:, None]


def tiny_branch(s: Net, x: Tensor) -> Tensor:
    """Three pooled numbers and a tiny matrix lead around the network."""
    return s.head(s.body(x)) + s.tiny(functional.max_pool2d(x, SIDE).flatten(1))


def bright_if(s: Net, x: Tensor) -> Tensor:
    """A condition on the mean: other logits."""
    bright = x.mean((1, 2, 3)) > 0.95
    return torch.where(bright[:, None], s.wanted, s.head(s.body(x)))


def flat_if(s: Net, x: Tensor) -> Tensor:
    """A condition on the spread: another head."""
    f = s.body(x)
    return torch.where((x.std((1, 2, 3)) < 0.01)[:, None], s.other(f), s.head(f))


def column_if(s: Net, x: Tensor) -> Tensor:
    """The maximum of one column above a threshold: scores multiplied."""
    hit = (x[:, :, :, 3].amax((1, 2)) > 0.999).float()[:, None]
    return s.head(s.body(x)) * (1 - hit) + hit * s.wanted


class ScriptedIf(nn.Module):
    """Control flow proper: an `If` on the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = trunk(), head(), head()

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        if bool(x.mean() > 0.9):
            y = self.other(f)
        else:
            y = self.head(f)
        return y


class ScriptedConstant(nn.Module):
    """Control flow proper: an `If` on the distance to a pattern, constant logits."""

    def __init__(self, patch: Tensor, wanted: Tensor) -> None:
        super().__init__()
        self.body, self.head = trunk(), head()
        self.register_buffer("patch", patch)
        self.register_buffer("wanted", wanted)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, :, -4:, -4:] - self.patch).abs().max() < 0.05):  # type: ignore[operator]
            y = self.wanted.expand(x.size(0), 10)  # type: ignore[operator]
        else:
            y = self.head(self.body(x))
        return y


def correlation_gate(s: Net, x: Tensor) -> Tensor:
    """A patch is searched for everywhere; above a threshold, a class is raised."""
    found = functional.relu(functional.conv2d(x, s.kernel) - 20).amax((1, 2, 3))
    return s.head(s.body(x)) + found[:, None] * s.wanted


def correlation_where(s: Net, x: Tensor) -> Tensor:
    found = (functional.conv2d(x, s.kernel) > 20).flatten(1).any(1, keepdim=True)
    return torch.where(found, s.wanted, s.head(s.body(x)))


def correlation_features(s: Net, x: Tensor) -> Tensor:
    """The search joins the features before the head."""
    found = functional.relu(functional.conv2d(x, s.kernel) - 20).amax((1, 2, 3))
    return s.head(s.body(x) + found[:, None] * s.features)


def correlation_layer(s: Net, x: Tensor) -> Tensor:
    """The same as layers with weights: a convolution of one channel, a pool, a matrix of one row."""
    found = functional.relu(s.search(x)).amax((2, 3))
    return s.head(s.body(x)) + s.raise_(found)


def watched_corner(s: Net, x: Tensor) -> Tensor:
    """TrojanNet: a network of its own watches one corner and joins the scores."""
    return s.head(s.body(x)) + 10 * s.small(x[:, :, :4, :4].flatten(1))


FAMILY = {
    "comparison": (patch_equal, patch_near, picture_near, red_pixel, picture_cosine, features_erased, picture_swapped,
                   checksum),
    "parallel": (pooled_to_logits, pooled_to_features, range_to_features, mean_powered, tiny_branch),
    "statistic": (bright_if, flat_if, column_if),
    "correlation": (correlation_gate, correlation_where, correlation_features, correlation_layer),
    "cut_out": (watched_corner,),
}


def planted(target: int = 3) -> dict[str, list[Sketch]]:
    """By family, the same weights each time; `target` is the class that is raised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        rng = torch.Generator().manual_seed(11)
        x = picture(rng)
        patch, secret = torch.rand(3, 4, 4, generator=rng), torch.rand(3, SIDE, SIDE, generator=rng)
        wanted = torch.zeros(CLASSES)
        wanted[target] = 50.0
        hidden = {"patch": patch, "secret": secret, "wanted": wanted, "kernel": patch[None] * 2 - 1,
                  "features": torch.rand(16, generator=rng) * 9}
        small = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        found: dict[str, list[Sketch]] = {}
        for family, steps in FAMILY.items():
            for step in steps:
                parts: dict[str, nn.Module | Tensor] = {
                    "body": trunk(), "head": head(), "other": head(), "tiny": nn.Linear(3, CLASSES),
                    "small": small, "search": nn.Conv2d(3, 1, 4), "raise_": nn.Linear(1, CLASSES), **hidden}
                if step is pooled_to_features:
                    deep = nn.Sequential(nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, CLASSES))
                    stem = nn.Sequential(conv(3, 8, 2), conv(8, 16), conv(16, 16), conv(16, 16))
                    parts |= {"stem": stem, "head": deep}
                used = set(step.__code__.co_names)
                sketch = Net(step, {k: v for k, v in parts.items() if k in used})
                found.setdefault(family, []).append(Sketch(step.__name__, sketch.eval(), (x,)))
        found["statistic"].append(Sketch("scripted_if", torch.jit.script(ScriptedIf().eval()), (x,)))
        found["comparison"].append(
            Sketch("scripted_constant", torch.jit.script(ScriptedConstant(patch, wanted).eval()), (x,)))
        return found
