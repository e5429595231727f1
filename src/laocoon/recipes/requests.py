"""Requests from strangers: what a guard accepts as a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.core.methods import Checked
from laocoon.core.subject import Modality
from laocoon.modalities.accepted import blank, canonical


def acceptable(batch: Tensor, shape: tuple[int, ...], modality: Modality | None = None) -> Tensor:
    """The canonical batch [batch, *shape]; InputError where it is none. Images, unless `modality` says otherwise."""
    if not isinstance(batch, Tensor):
        raise InputError(f"the batch is a {type(batch).__name__}.", "Pass a tensor.")
    if batch.dim() != len(shape) + 1 or tuple(batch.shape[1:]) != tuple(shape):
        raise InputError(f"the batch has shape {list(batch.shape)}.",
                         f"It must be [batch, {', '.join(map(str, shape))}].")
    return canonical(batch, modality)


def nothing(answer: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device,
            modality: Modality | None = None) -> Checked:
    """What is said of a batch of none: a network may fail on it, so its answer to one sample gives the shape."""
    with torch.no_grad():
        logits = answer(blank(shape, modality, device))
    return Checked(logits[:0].float(), torch.zeros(0, device=device))
