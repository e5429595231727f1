"""Is there a patch, of this size at this place, that sends these inputs to a class? Searched by gradient, or excluded
by bounds over boxes of patches that are halved until each is decided."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.recipes.bounds import crown, intervals

MARGIN = 1e-5  # logits; far above the rounding of float64 on networks of this size


@dataclass(frozen=True)
class Place:
    """A rectangle of an image: rows and columns counted from the top left, negative ones from the other end."""

    row: int
    column: int
    height: int
    width: int

    def within(self, shape: tuple[int, ...]) -> Place:
        """The same with non-negative numbers; InputError where it leaves the image."""
        h, w = shape[-2:]
        row = self.row + h if self.row < 0 else self.row
        column = self.column + w if self.column < 0 else self.column
        if self.height < 1 or self.width < 1 or not (0 <= row <= h - self.height and 0 <= column <= w - self.width):
            raise InputError(f"a patch of {self.height} x {self.width} pixels at row {self.row}, column {self.column} "
                             f"does not lie within {h} x {w}.", "Give a smaller one, or another place.")
        return Place(row, column, self.height, self.width)

    def put(self, inputs: Tensor, patch: Tensor) -> Tensor:
        """Inputs [batch, channels, …] with a patch [channels, height, width] or one each, [batch, …]."""
        stamped = inputs.clone()
        stamped[..., self.row:self.row + self.height, self.column:self.column + self.width] = patch
        return stamped

    def cut(self, images: Tensor) -> Tensor:
        """What lies at this place."""
        return images[..., self.row:self.row + self.height, self.column:self.column + self.width]


@dataclass(frozen=True, eq=False)
class Searched:
    """The best patch of a search, [channels, height, width], and the share of the inputs that it sends to the class."""

    patch: Tensor
    share: float


def hits(scores: Callable[[Tensor], Tensor], inputs: Tensor, place: Place, patch: Tensor, target: int) -> float:
    """Share of the inputs that a patch sends to the class."""
    with torch.no_grad():
        return float((scores(place.put(inputs, patch)).argmax(-1) == target).float().mean())


def search_patch(scores: Callable[[Tensor], Tensor], inputs: Tensor, place: Place, target: int, ctx: Context, *,
                 starts: int, steps: int, rate: float = 0.1) -> Searched:
    """One patch for all inputs by projected gradient ascent (Adam) of their mean margin towards the class."""
    best = Searched(place.cut(inputs[0]).clone(), -1.0)
    shape = (inputs.shape[1], place.height, place.width)
    for _ in range(starts):
        patch = torch.rand(shape, generator=ctx.rng).to(inputs).requires_grad_()
        optimiser = torch.optim.Adam([patch], lr=rate)
        for _ in range(steps):
            ctx.spend(len(inputs))
            with torch.enable_grad():
                said = scores(place.put(inputs, patch))
                rest = said.clone()
                rest[:, target] = -torch.inf
                margin = said[:, target] - rest.amax(1)
                (gradient,) = torch.autograd.grad(margin.clamp_max(1.0).mean(), patch)
            share = float((margin > 0).float().mean())
            if share > best.share:
                best = Searched(patch.detach().clone(), share)
            patch.grad = -gradient
            optimiser.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
        if best.share >= 1:
            break
    return best


@dataclass(frozen=True, eq=False)
class Excluded:
    """What a proof came to. `possible`: the most inputs that any patch may still send to the class."""

    possible: int
    boxes: int
    patch: Tensor | None = None  # a patch met on the way that reaches the wanted number of inputs


def exclude_patches(module: nn.Module, inputs: Tensor, place: Place, target: int, wanted: int, ctx: Context, *,
                    boxes: int, rivals: int = 2) -> Excluded:
    """Bound how many inputs one patch can send to the class; stops below `wanted`, or after so many boxes.

    module is sealed (float64). An input is safe in a box of patches where some other class provably stays ahead; the
    box is closed when fewer than `wanted` inputs are not safe, and halved along the pixel that matters most otherwise.
    """
    shape = (inputs.shape[1], place.height, place.width)
    blank = torch.zeros(shape, dtype=inputs.dtype, device=inputs.device)
    everyone = torch.arange(len(inputs), device=inputs.device)
    open_: list[tuple[int, int, Tensor, Tensor, Tensor]] = [(-len(inputs), 0, blank, blank + 1, everyone)]
    looked = 0
    while open_ and -open_[0][0] >= wanted and looked < boxes:
        _, _, lower, upper, rows = heapq.heappop(open_)
        looked += 1
        middle = (lower + upper) / 2
        ctx.spend(len(rows), backward=False)
        with torch.no_grad():
            said = module(place.put(inputs[rows], middle))
        if int((said.argmax(-1) == target).sum()) >= wanted:
            return Excluded(len(rows), looked, middle)
        unsafe, weight = _unsafe(module, place.put(inputs[rows], lower), place.put(inputs[rows], upper), said, target,
                                 place, rivals, ctx)
        left = rows[unsafe]
        if len(left) < wanted:
            continue
        pixel = int((weight * (upper - lower)).argmax())
        for half in range(2):
            low, high = lower.flatten().clone(), upper.flatten().clone()
            (low if half else high)[pixel] = middle.flatten()[pixel]
            # The count first, so that the worst box comes first; then a number, since tensors cannot be compared.
            heapq.heappush(open_, (-len(left), 2 * looked + half, low.view(shape), high.view(shape), left))
        ctx.progress("patch_absence", -1.0, f"{looked} boxes, {len(open_)} open")
    return Excluded(max((-b[0] for b in open_), default=wanted - 1), looked)


def _unsafe(module: nn.Module, lower: Tensor, upper: Tensor, said: Tensor, target: int, place: Place, rivals: int,
            ctx: Context) -> tuple[Tensor, Tensor]:
    """Which inputs may reach the class somewhere in the box, and how much each pixel of the patch has to do with it."""
    ctx.spend(2 * len(lower), backward=False)
    bounds = intervals(module, lower, upper)
    others = said.clone()
    others[:, target] = -torch.inf
    rival = others.topk(min(rivals, said.shape[1] - 1), 1).indices
    wanted = torch.zeros(*rival.shape, said.shape[1], dtype=said.dtype, device=said.device)
    wanted.scatter_(2, rival[..., None], 1.0)
    wanted[..., target] = -1.0
    ctx.spend(rival.numel())
    ctx.spend(rival.numel(), backward=False)
    ahead, slope = crown(module, lower, upper, bounds.units, wanted)
    plain = (bounds.lower.gather(1, rival) - bounds.upper[:, [target]])
    unsafe = torch.maximum(ahead, plain).amax(1) <= MARGIN
    weight = place.cut(slope[unsafe]).abs().mean((0, 1)) if bool(unsafe.any()) else place.cut(slope).abs().mean((0, 1))
    return unsafe, weight
