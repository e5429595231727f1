"""What a subject returns for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Outputs of a batch. Classifiers fill `logits`, [batch, classes]; other modalities add fields here."""

    logits: Tensor
