"""Images: canonical batches are float32 [n, channels, height, width] in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """The image modality."""

    name: str = "image"
