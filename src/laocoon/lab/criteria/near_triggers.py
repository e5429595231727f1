"""A fixed family of triggers that are nearly the attacker's: elsewhere, in other colours, larger, weaker, mirrored.

Most are the trigger's own stamp T between a change of the picture and its inverse, S⁻¹ ∘ T ∘ S, so that they are exact
for every kind of trigger, sample-specific ones included. The rest change the trace that it leaves, δ = T(x) − x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Stamp = Callable[[Tensor], Tensor]
SAME = 0.1  # a near trigger that differs from the true one by less than this share of its trace is the trigger itself


@dataclass(frozen=True, eq=False)
class NearTrigger:
    name: str
    stamped: Tensor


def near_triggers(stamp: Stamp, inputs: Tensor) -> Iterator[NearTrigger]:
    """Inputs [n, channels, height, width] under each near trigger that is not the trigger itself."""
    true = stamp(inputs)
    trace = true - inputs
    reach = trace.abs().mean()
    for name, make in _family(stamp, inputs, trace):
        found = make().clamp(0, 1)
        if (found - true).abs().mean() >= SAME * reach:
            yield NearTrigger(name, found)


def _family(stamp: Stamp, x: Tensor, trace: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    h, w = x.shape[-2:]
    for name, dy, dx in (("moved_down", max(1, h // 8), 0), ("moved_right", 0, max(1, w // 8)),
                         ("moved_across", h // 2, w // 2)):
        yield name, lambda dy=dy, dx=dx: stamp(x.roll((-dy, -dx), (-2, -1))).roll((dy, dx), (-2, -1))  # type: ignore[misc]
    yield "mirrored", lambda: stamp(x.flip(-1)).flip(-1)
    yield "opposite_colours", lambda: 1 - stamp(1 - x)
    if x.shape[1] == 3:
        yield "rotated_colours", lambda: stamp(x.roll(1, 1)).roll(-1, 1)
    yield "half_strength", lambda: x + trace / 2
    yield "smaller", lambda: x + _zoomed(trace, 0.6)
    yield "larger", lambda: x + _zoomed(trace, 1.6)


def _zoomed(trace: Tensor, factor: float) -> Tensor:
    """The trace enlarged about its own centre of mass, the same for all samples; nothing outside."""
    n, c, h, w = trace.shape
    mass = trace.abs().mean((0, 1))
    total = mass.sum().clamp_min(1e-12)
    y = float((mass.sum(1) * torch.linspace(-1 + 1 / h, 1 - 1 / h, h, device=trace.device)).sum() / total)
    x = float((mass.sum(0) * torch.linspace(-1 + 1 / w, 1 - 1 / w, w, device=trace.device)).sum() / total)
    s = 1 / factor
    theta = torch.tensor([[s, 0.0, x * (1 - s)], [0.0, s, y * (1 - s)]], device=trace.device).expand(n, 2, 3)
    grid = functional.affine_grid(theta, [n, c, h, w], align_corners=False)
    return functional.grid_sample(trace, grid, align_corners=False)
