"""Photo filters that leave the picture recognisable, of whatever strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from laocoon.triggers.tone import Tone

WINDOW = 5  # pixels: what is compared is a picture less its mean over such a window


@dataclass(frozen=True)
class FaithfulTone(Tone):
    """The filters of `Tone`, whose size is what of the local contrast they lose.

    Size: how much the contrast that is kept falls short of `kept`, and its likeness to the original of `alike`; 0 for
    a filter that does neither, however much it changes tones. Darkness, glare and grey fog send any network's images
    to one class, since they take the picture away; a filter that an attacker would use does not.
    """

    unit: str = "share of local contrast missing"
    scale: float = 0.1
    count: int = 600
    kept: float = 0.5  # of the local contrast, in the direction of the original
    alike: float = 0.9  # correlation with the original local contrast

    def size(self, trigger: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        stamped = self.stamp(batch, trigger)
        after = _contrast(stamped).flatten(2)
        before = _contrast(batch if batch.dim() == 5 else batch.unsqueeze(0)).flatten(2)
        both, own = (after * before).sum(-1), before.pow(2).sum(-1).clamp_min(1e-4)
        left, likeness = both / own, both / (after.pow(2).sum(-1) * own).clamp_min(1e-8).sqrt()
        return (functional.relu(self.kept - left) + functional.relu(self.alike - likeness)).mean(1)

    def largest(self, like: Tensor) -> float:
        return self.kept + self.alike


def _contrast(batch: Tensor) -> Tensor:
    """Luminance less its local mean, [arms, n, 1, h, w]."""
    grey = batch.mean(-3).flatten(0, 1).unsqueeze(1)
    around = functional.avg_pool2d(grey, WINDOW, 1, WINDOW // 2, count_include_pad=False)
    return (grey - around).reshape(*batch.shape[:2], 1, *batch.shape[-2:])
