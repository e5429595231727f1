"""What happens to pictures on their way: compression, resizing, shifts, printing and photographing."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import NotApplicable

Distortion = Callable[[Tensor, torch.Generator], Tensor]


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decompress, [n, 1 or 3, height, width] in [0, 1]."""
    if images.shape[1] not in (1, 3):
        raise NotApplicable(f"JPEG holds pictures of 1 or 3 channels, not {images.shape[1]}.")
    result = []
    for image in (images.clamp(0, 1) * 255).round().byte().cpu().numpy():
        picture = Pillow.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        back = np.asarray(Pillow.open(buffer))
        result.append(torch.as_tensor((back[None] if back.ndim == 2 else back.transpose(2, 0, 1)).copy()))
    return torch.stack(result).to(images) / 255


def resized(images: Tensor, factor: float) -> Tensor:
    """Down by a factor and back up, bilinear with antialiasing."""
    h, w = images.shape[-2:]
    small = (max(1, round(h * factor)), max(1, round(w * factor)))
    down = functional.interpolate(images, small, mode="bilinear", align_corners=False, antialias=True)
    return functional.interpolate(down, (h, w), mode="bilinear", align_corners=False).clamp(0, 1)


def shifted(images: Tensor, dy: int, dx: int) -> Tensor:
    """Moved by dy rows down and dx columns right; the edge is repeated."""
    h, w = images.shape[-2:]
    rows = (torch.arange(h) - dy).clamp(0, h - 1).to(images.device)
    columns = (torch.arange(w) - dx).clamp(0, w - 1).to(images.device)
    return images[..., rows, :][..., columns]


def printed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Printed and photographed: turned by up to 5°, scaled by up to 5 %, tilted a little, blurred, dimmed, with noise.

    x ↦ clamp(a · (blur ∘ warp)(x)^γ + b + noise), with a in [0.8, 1], b in [0, 0.08], γ in [0.8, 1.25] and noise of
    0.02, drawn for each picture.
    """
    n, c, h, w = images.shape

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=rng) * (high - low) + low

    angle, scale = draw(-5, 5).deg2rad(), draw(0.95, 1.05)
    theta = torch.stack([
        torch.stack([angle.cos() / scale, -angle.sin() / scale, torch.zeros(n)], 1),
        torch.stack([angle.sin() / scale, angle.cos() / scale, torch.zeros(n)], 1)], 1)
    grid = functional.affine_grid(theta, [n, c, h, w], align_corners=False)
    tilt = 1 + draw(-0.05, 0.05)[:, None, None] * grid[..., 0] + draw(-0.05, 0.05)[:, None, None] * grid[..., 1]
    warped = functional.grid_sample(images, (grid / tilt.unsqueeze(-1)).to(images), padding_mode="border",
                                    align_corners=False)
    line = torch.tensor([0.15, 0.7, 0.15]).to(images)
    padded = functional.pad(warped, (1, 1, 1, 1), mode="replicate")
    blurred = functional.conv2d(padded, (line[:, None] * line).expand(c, 1, 3, 3), groups=c)
    gamma, gain, lift = (draw(*r)[:, None, None, None].to(images) for r in ((0.8, 1.25), (0.8, 1.0), (0.0, 0.08)))
    noise = torch.randn(images.shape, generator=rng).to(images) * 0.02
    return (gain * blurred.clamp(0, 1) ** gamma + lift + noise).clamp(0, 1)


def journeys(side: int) -> dict[str, Distortion]:
    """The distortions that a trigger is tried on, by the name used in tables. Shifts are a sixteenth of the side."""
    step = max(1, round(side / 16))
    return {
        "jpeg_75": lambda x, rng: jpeg(x, 75),
        "jpeg_50": lambda x, rng: jpeg(x, 50),
        "resize_75": lambda x, rng: resized(x, 0.75),
        "resize_50": lambda x, rng: resized(x, 0.5),
        "shift": lambda x, rng: shifted(x, step, -step),
        "print": printed,
    }
