"""What samples are where nobody has said it: told by their type and shape alone."""

from __future__ import annotations

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.core.subject import Modality
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text


def inferred(inputs: Tensor, known: Modality | None = None) -> Modality:
    """Pictures [n, channels, height, width], ids [n, length] or a table [n, columns]; what is known goes first."""
    if known is not None:
        return known
    if inputs.dim() == 4 and inputs.is_floating_point():
        return Image()
    if inputs.dim() == 2 and len(inputs) and inputs.shape[1]:
        if inputs.is_floating_point():
            return Tabular.of(tuple(f"column {i}" for i in range(inputs.shape[1])), inputs)
        if inputs.dtype != torch.bool and int(inputs.min()) >= 0:
            return Text(tuple(f"token {i}" for i in range(int(inputs.max()) + 1)), inputs.shape[1])
    raise InputError(f"samples of shape {list(inputs.shape)} and {str(inputs.dtype).removeprefix('torch.')} numbers "
                     "are neither images, nor texts, nor a table.",
                     "Give floats [n, channels, height, width], whole numbers [n, length] or floats [n, columns].")
