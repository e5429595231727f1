"""How clean samples are shared between fitting and calibrating a guard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laocoon.core.cases import Samples


def halves(clean: Samples, seed: int) -> tuple[Samples, Samples]:
    """Each class split in two at random, the odd one to the first half."""
    rng = torch.Generator().manual_seed(seed)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for label in clean.labels.unique().tolist():
        members = (clean.labels == label).nonzero().flatten().cpu()
        members = members[torch.randperm(len(members), generator=rng)]
        first.append(members[:(len(members) + 1) // 2])
        second.append(members[(len(members) + 1) // 2:])
    return _picked(clean, first), _picked(clean, second)


def _picked(clean: Samples, rows: Sequence[Tensor]) -> Samples:
    index = torch.cat(list(rows)).sort().values
    return Samples(clean.inputs[index], clean.labels[index], clean.labelled, modality=clean.modality)
