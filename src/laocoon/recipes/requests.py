"""Requests from strangers: what a guard accepts as a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.core.methods import Checked

SLACK = 1e-3  # rounding of whoever scaled the pixels


def acceptable(batch: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The batch as float32 within [0, 1]; InputError where it is not one finite canonical batch [batch, *shape]."""
    if not isinstance(batch, Tensor):
        raise InputError(f"the batch is a {type(batch).__name__}.", "Pass a tensor.")
    if batch.dim() != len(shape) + 1 or tuple(batch.shape[1:]) != tuple(shape):
        raise InputError(f"the batch has shape {list(batch.shape)}.",
                         f"It must be [batch, {', '.join(map(str, shape))}].")
    if not batch.is_floating_point():
        raise InputError(f"the batch holds {str(batch.dtype).removeprefix('torch.')} numbers.",
                         "Pass floats in [0, 1]; divide bytes by 255.")
    batch = batch.detach().float()
    if not len(batch):
        return batch
    low, high = (float(v) for v in batch.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):  # also where either is NaN
        raise InputError(f"the batch holds values from {low:.4g} to {high:.4g}.",
                         "They must be finite and in [0, 1]; normalisation belongs inside the model.")
    return batch.clamp(0, 1) if low < 0 or high > 1 else batch


def nothing(answer: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> Checked:
    """What is said of a batch of none: a network may fail on it, so its answer to one sample gives the shape."""
    with torch.no_grad():
        logits = answer(torch.zeros(1, *shape, device=device))
    return Checked(logits[:0].float(), torch.zeros(0, device=device))
