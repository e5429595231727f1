"""A recovered trigger as pictures: beside a clean image, alone, and stamped. PNG in data URIs, nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from laocoon.core.candidate import Candidate

MOST_STAMPED = 9  # one large, the others in two rows
LARGEST_SIDE = 320


@dataclass(frozen=True)
class Picture:
    """A picture for a page. `sharp`: few pixels, to be enlarged without smoothing."""

    uri: str
    caption: str
    sharp: bool = True
    checkered: bool = False


@dataclass(frozen=True)
class Exhibit:
    """What a candidate looks like."""

    clean: Picture
    trigger: Picture
    stamped: Picture
    pairs: tuple[tuple[Picture, Picture], ...]  # more clean images, each with its stamped twin


def exhibits(candidates: Sequence[object], pictures: object) -> list[Exhibit | None]:
    """One exhibit per candidate; None where inputs are no images."""
    usable = (
        isinstance(pictures, Tensor) and pictures.dim() == 4 and len(pictures) > 0 and pictures.shape[1] in (1, 3, 4)
    )
    return [
        _exhibit(c, pictures) if usable and isinstance(c, Candidate) and isinstance(pictures, Tensor) else None
        for c in candidates
    ]


@torch.no_grad()
def _exhibit(candidate: Candidate, pictures: Tensor) -> Exhibit:
    leaf = next(iter(candidate.trigger.values()))
    clean = pictures[:MOST_STAMPED].to(leaf.device).float()
    stamped = candidate.stamp(clean).clamp(0, 1)
    shown, caption, checkered = _trigger(candidate, clean)
    pairs = tuple((picture(a, "clean"), picture(b, "stamped")) for a, b in zip(clean[1:], stamped[1:], strict=True))
    return Exhibit(
        picture(clean[0], "clean image"),
        picture(shown, caption, checkered),
        picture(stamped[0], "with the trigger"),
        pairs,
    )


def _trigger(candidate: Candidate, clean: Tensor) -> tuple[Tensor, str, bool]:
    """The trigger alone: a patch on transparent ground, anything else as the change that it makes, amplified."""
    mask, pattern = candidate.trigger.get("mask"), candidate.trigger.get("pattern")
    if (
        mask is not None
        and pattern is not None
        and mask.shape[-2:] == clean.shape[-2:] == pattern.shape[-2:]
        and (pattern.shape[-3] in (1, 3))
    ):
        colour = pattern.reshape(-1, *pattern.shape[-3:])[0].expand(3, -1, -1)
        alpha = mask.reshape(-1, *mask.shape[-3:])[0][:1]
        return torch.cat([colour, alpha]).clamp(0, 1), "the trigger", True
    change = (candidate.stamp(clean) - clean).mean(0)
    if change.shape[0] == 4:
        change = change[:3]
    largest = float(change.abs().max())
    gain = 0.5 / largest if largest > 1e-6 else 1.0
    return (
        (0.5 + gain * change).clamp(0, 1),
        f"what it changes, ×{gain:.1f}" if gain >= 1.05 else "what it changes",
        False,
    )


def picture(image: Tensor, caption: str, checkered: bool = False) -> Picture:
    """A tensor [channels, height, width] in [0, 1] as a picture for a page."""
    pixels = (image.clamp(0, 1) * 255).round().byte().cpu()
    values = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    raster = Image.fromarray(values)
    if max(raster.size) > LARGEST_SIDE:
        raster.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    raster.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{data}", caption, max(raster.size) <= 128, checkered)
