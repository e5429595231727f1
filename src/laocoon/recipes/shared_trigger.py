"""What samples of one label share beside what they show: an estimate of the trigger from the poison itself.

A patch replaces pixels: where it lies, many suspects have one and the same value, which others do not have. An additive
trigger leaves a difference between a suspect and the unsuspected pictures that are most like it. Estimates are made to
stand a share of clean pictures among the suspects; whether they are a trigger is found out by stamping them elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

GREYS = 16  # levels in which values are counted
SHARED = 0.4  # share of suspects with the commonest value, beyond that of the others, from which a pixel is replaced
LARGEST = 0.2  # share of the pixels, above which it is no patch
NEAR = 3  # pictures that a suspect is compared with
POOL = 1000  # pictures among which these are looked for
CHUNK = 1024


def patch(suspects: Tensor, others: Tensor) -> dict[str, Tensor] | None:
    """Mask [1, 1, h, w] and pattern [1, channels, h, w]; None where nothing small is shared."""
    levels, rest = ((x * GREYS).round().long() for x in (suspects, others))
    counts = torch.stack([(levels == g).float().mean(0) for g in range(GREYS + 1)])
    usual = torch.stack([(rest == g).float().mean(0) for g in range(GREYS + 1)])
    near, near_usual = (c + torch.cat([c[1:], torch.zeros_like(c[:1])]) for c in (counts, usual))  # rounding splits
    excess, level = (near - near_usual).max(0)
    shared = excess.mean(0) > SHARED
    around = functional.avg_pool2d(shared[None, None].float(), 3, 1, 1)[0, 0] * 9
    mask = (shared & (around >= 2.5)).float()  # a lone pixel is chance
    if not bool(mask.any()) or float(mask.mean()) > LARGEST:
        return None
    inside = (levels == level) | (levels == level + 1)
    pattern = (suspects * inside).sum(0) / inside.sum(0).clamp_min(1)
    return {"mask": mask[None, None], "pattern": pattern[None]}


def additive(suspects: Tensor, others: Tensor) -> dict[str, Tensor]:
    """delta [1, channels, h, w]: median difference from the pictures that are most like a suspect."""
    away = suspects.mean(0, keepdim=True) - others.mean(0, keepdim=True)
    pool = others[:POOL]
    # Likeness is judged without what all suspects share.
    near = torch.cdist((suspects - away).flatten(1), pool.flatten(1)).topk(min(NEAR, len(pool)), largest=False).indices
    return {"delta": (suspects - pool[near].mean(1)).median(0).values[None]}


def bearing(images: Tensor, trigger: Mapping[str, Tensor], others: Tensor) -> Tensor:
    """How clearly each image bears the trigger, [n]; higher is more.

    A patch: −log of the mean difference from the pattern under the mask. An additive trigger: cosine between it and
    what tells the image from those most like it.
    """
    if "mask" in trigger:
        mask = trigger["mask"][0]
        apart = ((images - trigger["pattern"][0]).abs() * mask).flatten(1).sum(1) / (mask.sum() * images.shape[1])
        return -(apart + 0.01).log()
    delta, pool = trigger["delta"][0], others[:POOL]
    flat, found = pool.flatten(1), []
    for part in images.split(CHUNK):
        near = torch.cdist((part - delta).flatten(1), flat).topk(min(NEAR + 1, len(pool)), largest=False)
        # An image is not its own neighbour.
        rows = torch.where(near.values[:, :1] < 1e-4, near.indices[:, 1:], near.indices[:, :-1])
        found.append(functional.cosine_similarity((part - pool[rows].mean(1)).flatten(1), delta.flatten()[None], dim=1))
    return torch.cat(found)


def other_content(trigger: Mapping[str, Tensor], others: Tensor) -> dict[str, Tensor]:
    """A control of the same size: the mask with a picture's own content, or the opposite of the difference, moved."""
    if "mask" in trigger:
        return {"mask": trigger["mask"], "pattern": others.mean(0, keepdim=True).roll((1, 1), (2, 3))}
    h, w = trigger["delta"].shape[-2:]
    return {"delta": -trigger["delta"].roll((h // 2, w // 2), (2, 3))}
