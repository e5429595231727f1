"""Small networks for pictures of any size and number of classes: victims of the zoo, and what `train` trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Cnn(nn.Module):
    """Two 5×5 convolutions with pooling and two dense layers, no normalisation (as in the BadNets paper)."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.dense = nn.Sequential(nn.Linear(2 * width * (side // 4) ** 2, 128), nn.ReLU())
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dense(self.body(x)))


class Vgg(nn.Module):
    """3×3 convolutions with batch norm, pooling to a vector."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [width, 2 * width, 4 * width] if side >= 16 else [width, 2 * width]
        before = channels
        for w in widths:
            for stride in (1, 1):
                layers += [nn.Conv2d(before, w, 3, stride, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
                before = w
                if w == widths[0]:
                    break
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.short = (nn.Identity() if stride == 1 and before == after else
                      nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


class ResNet(nn.Module):
    """A three-stage residual network."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 16, stem: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, stem, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Squeezed(nn.Module):
    """A residual block whose channels are weighed by what their means say (Hu et al., CVPR 2018)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.block = Block(before, after, stride)
        self.weigh = nn.Sequential(nn.Linear(after, after // 4), nn.ReLU(), nn.Linear(after // 4, after), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        inner = self.block.second(self.block.first(x))
        return torch.relu(inner * self.weigh(inner.mean((2, 3)))[:, :, None, None] + self.block.short(x))


class SeNet(nn.Module):
    """A three-stage residual network with squeeze and excitation."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(Squeezed(width, width, 1), Squeezed(width, 2 * width, 2),
                                  Squeezed(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual with a linear bottleneck (MobileNetV2, Sandler et al., CVPR 2018)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = before * expansion
        self.body = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after))
        self.skips = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


class MobileNet(nn.Module):
    """Four inverted residuals between a stem and a wide last layer."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), Inverted(16, 24, 1),
            Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1), nn.Conv2d(40, 96, 1, bias=False),
            nn.BatchNorm2d(96), nn.ReLU6())
        self.head = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class ByChannels(nn.LayerNorm):
    """Layer normalisation over the channels of every place of [n, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Next(nn.Module):
    """A block of ConvNeXt (Liu et al., CVPR 2022): large depthwise convolution, one normalisation, two dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 7, 1, 3, groups=width), ByChannels(width),
                                  nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvNext(nn.Module):
    """Two stages of two ConvNeXt blocks."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 2, 2), ByChannels(width), Next(width), Next(width),
                                  ByChannels(width), nn.Conv2d(width, 2 * width, 2, 2), Next(2 * width),
                                  Next(2 * width))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x).mean((2, 3))))


class Separable(nn.Module):
    """Depthwise-separable convolutions (MobileNet style) with hard-swish."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
                                   nn.Hardswish()]
        for before, after, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)):
            layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before),
                       nn.Hardswish(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.Hardswish()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Attention(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mix = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.mix(self.norm(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = torch.softmax(q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5, -1) @ v
        x = x + self.out(a.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A small vision transformer with a convolutional patch embedding."""

    def __init__(self, channels: int, side: int, classes: int, dim: int = 64, depth: int = 3) -> None:
        super().__init__()
        patch = 4 if side >= 16 else 2
        self.embed = nn.Sequential(nn.Conv2d(channels, dim // 2, 3, patch // 2, 1), nn.GELU(),
                                   nn.Conv2d(dim // 2, dim, 2, 2))
        tokens = (-(-side // (patch // 2)) // 2) ** 2
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.blocks = nn.Sequential(*(Attention(dim, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": Cnn, "vgg": Vgg, "resnet": ResNet, "separable": Separable, "vit": Vit,
    "vgg_small": partial(Vgg, width=12), "resnet_small": partial(ResNet, stem=2),
    "senet": SeNet, "mobilenet": MobileNet, "convnext": ConvNext,
}


class Normalised(nn.Module):
    """Centre pixels before the network, so that canonical inputs go in."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - 0.5) * 4)


def build(name: str, channels: int, side: int, classes: int, rng: torch.Generator) -> nn.Module:
    """An initialised network; weights depend on `rng` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        module = Normalised(ARCHITECTURES[name](channels, side, classes))
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
