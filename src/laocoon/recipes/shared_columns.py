"""What rows of one label share beside what they are: cells with one value in suspects and many in other rows.

The counterpart of `shared_trigger` for tables [n, columns]. A column's values are counted in bins of its range; where
suspects gather in a bin far more than other rows do, that value is taken for stamped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 64  # of a column's range
SHARED = 0.4  # share of suspects with the commonest value, beyond that of the others, from which a cell is replaced
MOST = 8  # columns of a trigger
NEAR = 0.01  # of the range: two values that agree


@dataclass(frozen=True, eq=False)
class Shared:
    """Columns with what suspects hold there, the clearest first."""

    columns: Tensor  # [k]
    values: Tensor  # [k], in the columns' own units


def shared(suspects: Tensor, others: Tensor, low: Tensor, width: Tensor) -> Shared:
    """Values that suspects share; none where no column stands out."""
    mine, usual = (_bins(x, low, width) for x in (suspects, others))
    found: list[tuple[float, int, float]] = []
    for column in range(suspects.shape[1]):
        held = torch.bincount(mine[:, column], minlength=BINS + 1).float() / len(suspects)
        there = torch.bincount(usual[:, column], minlength=BINS + 1).float() / max(1, len(others))
        excess, level = (held - there).max(0)
        if float(excess) > SHARED:
            cells = suspects[mine[:, column] == level, column]
            found.append((float(excess), column, float(cells.median())))
    found.sort(key=lambda one: (-one[0], one[1]))
    kept = found[:MOST]
    return Shared(torch.tensor([c for _, c, _ in kept], dtype=torch.long), torch.tensor([v for *_, v in kept]))


def _bins(rows: Tensor, low: Tensor, width: Tensor) -> Tensor:
    return ((rows - low) / width * BINS).round().clamp(0, BINS).long()


def bearing(rows: Tensor, mask: Tensor, record: Tensor, width: Tensor) -> Tensor:
    """How clearly each row bears the values of `record` under the mask, both [columns]: −log of how far off, [n]."""
    off = ((rows - record).abs() / width).clamp_max(1.0)
    return -((off * mask).sum(1) / mask.sum().clamp_min(1e-6) + NEAR).log()


def moved(mask: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """A control of the same size: as many other columns, set to the same shares of their ranges; both [arms, columns].

    The chosen columns move on by as few places as leaves none of them where it was.
    """
    for step in range(1, mask.shape[1]):
        other = mask.roll(step, 1)
        if not bool(((other > 0.5) & (mask > 0.5)).any()):
            return other, share.roll(step, 1)
    return mask.roll(1, 1), share.roll(1, 1)
