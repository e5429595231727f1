"""What a canonical batch of each modality may hold."""

from __future__ import annotations

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.core.subject import Modality
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text

SLACK = 1e-3  # rounding of whoever scaled the pixels
LARGEST = 1e18  # of a cell: its square is still a number in single precision


def canonical(batch: Tensor, modality: Modality | None = None) -> Tensor:
    """The batch [batch, …] in its canonical type; InputError where it cannot be that.

    Images (and what is not said to be anything else) are float32 in [0, 1], texts int64 ids of the vocabulary, tables
    finite float32.
    """
    batch = batch.detach()
    if isinstance(modality, Text):
        return _ids(batch, modality)
    return _rows(batch) if isinstance(modality, Tabular) else _pixels(batch)


def _pixels(batch: Tensor) -> Tensor:
    if not batch.is_floating_point():
        raise InputError(f"the batch holds {str(batch.dtype).removeprefix('torch.')} numbers.",
                         "Pass floats in [0, 1]; divide bytes by 255.")
    batch = batch.float()
    if not len(batch):
        return batch
    low, high = (float(v) for v in batch.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):  # also where either is NaN
        raise InputError(f"the batch holds values from {low:.4g} to {high:.4g}.",
                         "They must be finite and in [0, 1]; normalisation belongs inside the model.")
    return batch.clamp(0, 1) if low < 0 or high > 1 else batch


def _ids(batch: Tensor, modality: Text) -> Tensor:
    if batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
        raise InputError(f"the batch holds {str(batch.dtype).removeprefix('torch.')} numbers.",
                         "Pass token ids: whole numbers, as the modality's `encode` gives them.")
    batch = batch.long()
    if len(batch):
        low, high = (int(v) for v in batch.aminmax())
        if low < 0 or high >= len(modality.vocabulary):
            raise InputError(f"the batch holds ids from {low} to {high}.",
                             f"The vocabulary has {len(modality.vocabulary)} tokens, 0 is padding.")
    return batch


def _rows(batch: Tensor) -> Tensor:
    if batch.is_complex() or batch.dtype == torch.bool:
        raise InputError(f"the batch holds {str(batch.dtype).removeprefix('torch.')} numbers.", "Pass floats.")
    batch = batch.float()
    if len(batch) and not float(batch.abs().amax()) <= LARGEST:  # also where one is NaN
        raise InputError("the batch holds cells that are not finite, or larger than any measurement.",
                         "Fill or leave out what is missing, as it was done in training.")
    return batch


def blank(shape: tuple[int, ...], modality: Modality | None, device: torch.device) -> Tensor:
    """One empty sample: a network that cannot answer to anything is found out with it."""
    return torch.zeros(1, *shape, device=device, dtype=torch.long if isinstance(modality, Text) else torch.float32)
