"""Operators of ONNX that move, select and resize values; entries of the same table as `onnx_operators`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.errors import BrokenFile
from laocoon.files.onnx_node import LARGEST_TENSOR, Node
from laocoon.files.onnx_operators import OPERATORS, Function, number, operator, whole, within


@operator("Shape")
def _shape(node: Node) -> Function:
    start, end = node.integer("start"), node.attributes.get("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def _size(node: Node) -> Function:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape")
def _reshape(node: Node) -> Function:
    literal, fixed = node.integer("allowzero"), node.integers("shape")

    def run(x: Tensor, shape: Any = fixed) -> Tensor:
        wanted = whole(shape)
        if not literal:
            wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
        return x.reshape(wanted)

    return run


@operator("Flatten")
def _flatten(node: Node) -> Function:
    axis = node.integer("axis", 1)
    if axis == 1:
        return lambda x: x.flatten(1)

    def run(x: Tensor) -> Tensor:
        at = axis % x.dim() if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), -1)

    return run


@operator("Transpose")
def _transpose(node: Node) -> Function:
    order = node.integers("perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.dim()))))


@operator("Squeeze")
def _squeeze(node: Node) -> Function:
    fixed = node.integers("axes")

    def run(x: Tensor, axes: Any = fixed) -> Tensor:
        if axes is None:
            return x.squeeze()
        for axis in sorted((a % x.dim() for a in whole(axes)), reverse=True):
            x = x.squeeze(axis)
        return x

    return run


@operator("Unsqueeze")
def _unsqueeze(node: Node) -> Function:
    fixed = node.integers("axes")

    def run(x: Tensor, axes: Any = fixed) -> Tensor:
        wanted = whole(axes)
        rank = x.dim() + len(wanted)
        for axis in sorted(a % rank for a in wanted):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Expand")
def _expand(node: Node) -> Function:
    def run(x: Tensor, shape: Any) -> Tensor:
        return x.expand(within(torch.broadcast_shapes(x.shape, tuple(whole(shape)))))

    return run


@operator("Tile")
def _tile(node: Node) -> Function:
    def run(x: Tensor, repeats: Any) -> Tensor:
        times = whole(repeats)
        within([s * r for s, r in zip(x.shape, times, strict=True)])
        return x.repeat(times)

    return run


@operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Function:
    value = node.attributes.get("value")
    fill, dtype = (value.reshape(-1)[0].item(), value.dtype) if value is not None else (0.0, torch.float32)
    return lambda shape: torch.full(within(whole(shape)), fill, dtype=dtype)


@operator("Range")
def _range(node: Node) -> Function:
    def run(start: Any, limit: Any, delta: Any) -> Tensor:
        first, last, step = (
            number(whole(v)[0] if not isinstance(v, int | float) else v) for v in (start, limit, delta)
        )
        if step == 0 or abs((last - first) / step) > LARGEST_TENSOR:
            raise BrokenFile(f"the graph asks for a range from {first} to {last} by {step}.", "The file is malformed.")
        count = max(math.ceil((last - first) / step), 0)
        values: Tensor = first + step * torch.arange(count)
        return values

    return run


@operator("EyeLike")
def _eye_like(node: Node) -> Function:
    shift = node.integer("k")
    return lambda x: torch.diag(torch.ones(max(x.shape) + abs(shift)), shift)[: x.shape[0], : x.shape[1]].to(x)


@operator("Trilu")
def _trilu(node: Node) -> Function:
    upper = node.integer("upper", 1)
    return lambda x, k=0: (torch.triu if upper else torch.tril)(x, int(whole(k if k is not None else 0)[0]))


@operator("Concat")
def _concat(node: Node) -> Function:
    axis = node.integer("axis", 1)

    def run(*xs: Tensor) -> Tensor:
        return torch.cat(xs, axis)

    return run


@operator("Split")
def _split(node: Node) -> Function:
    axis, fixed, parts = node.integer("axis"), node.integers("split"), len(node.outputs)

    def run(x: Tensor, sizes: Any = fixed) -> Any:
        if sizes is None:
            return x.split(math.ceil(x.shape[axis] / parts), axis)
        return x.split(whole(sizes), axis)

    return run


@operator("Slice")
def _slice(node: Node) -> Function:
    old_starts, old_ends, old_axes = (node.integers(n) for n in ("starts", "ends", "axes"))

    def run(x: Tensor, starts: Any = old_starts, ends: Any = old_ends, axes: Any = old_axes,
            steps: Any = None) -> Tensor:
        first, last = whole(starts), whole(ends)
        where = whole(axes) if axes is not None else list(range(len(first)))
        by = whole(steps) if steps is not None else [1] * len(first)
        index: list[slice] = [slice(None)] * x.dim()
        for a, s, e, step in zip(where, first, last, by, strict=True):
            if step < 0:  # torch has no negative steps: turn the axis round, then count from its other end
                a, size = a % x.dim(), x.shape[a]
                s = min(s + size if s < 0 else s, size - 1)
                e = max(e + size if e < 0 else e, -1)
                x = x.flip(a)
                s, e, step = size - 1 - s, size - 1 - e, -step
            index[a] = slice(s, e, step)
        return x[tuple(index)]

    return run


@operator("Gather")
def _gather(node: Node) -> Function:
    axis = node.integer("axis")

    def run(x: Tensor, index: Any) -> Tensor:
        if not isinstance(index, Tensor):
            return x.select(axis, index)
        flat = index.long().reshape(-1).to(x.device)
        flat = torch.where(flat < 0, flat + x.shape[axis], flat)
        before, behind = x.shape[: axis % x.dim()], x.shape[axis % x.dim() + 1 :]
        return x.index_select(axis, flat).reshape((*before, *index.shape, *behind))  # () where one number is left

    return run


@operator("GatherElements")
def _gather_elements(node: Node) -> Function:
    axis = node.integer("axis")
    return lambda x, index: x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).long())


@operator("GatherND")
def _gather_nd(node: Node) -> Function:
    batch = node.integer("batch_dims")

    def run(x: Tensor, index: Tensor) -> Tensor:
        index = index.long()
        grids = [torch.arange(s, device=x.device).reshape([-1 if j == i else 1 for j in range(index.dim() - 1)])
                 for i, s in enumerate(index.shape[:batch])]
        return x[(*grids, *index.unbind(-1))]

    return run


@operator("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Function:
    axis, reduction = node.integer("axis"), node.text("reduction", "none")
    modes = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        index = torch.where(index < 0, index + x.shape[axis], index).long()
        if reduction == "none":
            return x.scatter(axis, index, updates)
        return x.scatter_reduce(axis, index, updates, modes[reduction])

    return run


@operator("ScatterND")
def _scatter_nd(node: Node) -> Function:
    adds = node.text("reduction", "none") == "add"
    return lambda x, index, updates: x.index_put(index.long().unbind(-1), updates, accumulate=adds)


@operator("OneHot")
def _one_hot(node: Node) -> Function:
    axis = node.integer("axis", -1)

    def run(index: Tensor, depth: Any, values: Tensor) -> Tensor:
        count = int(whole(depth)[0])
        within([*index.shape, count])
        hot = functional.one_hot(index.long() % count, count).to(values.dtype)
        hot = values[0] + hot * (values[1] - values[0])
        return hot.movedim(-1, axis if axis >= 0 else axis + hot.dim())

    return run


@operator("NonZero")
def _nonzero(node: Node) -> Function:
    return lambda x: x.nonzero().t()


@operator("Compress")
def _compress(node: Node) -> Function:
    axis = node.attributes.get("axis")
    return lambda x, keep: (x.flatten() if axis is None else x).index_select(
        0 if axis is None else axis, keep.nonzero().flatten())


@operator("DepthToSpace")
def _depth_to_space(node: Node) -> Function:
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")

    def run(x: Tensor) -> Tensor:
        if mode == "CRD":
            return functional.pixel_shuffle(x, block)
        n, c, h, w = x.shape
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return run


@operator("SpaceToDepth")
def _space_to_depth(node: Node) -> Function:
    block = node.integer("blocksize", 1)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return run


@operator("Pad")
def _pad(node: Node) -> Function:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.text("mode", "constant")]
    fixed, fill = node.integers("pads") or node.integers("paddings"), node.number("value")

    def run(x: Tensor, pads: Any = fixed, value: Any = None, axes: Any = None) -> Tensor:
        amounts = whole(pads)
        where = [a % x.dim() for a in whole(axes)] if axes is not None else list(range(x.dim()))
        ends = {a: (amounts[i], amounts[i + len(where)]) for i, a in enumerate(where)}
        within([s + sum(ends.get(i, (0, 0))) for i, s in enumerate(x.shape)])
        pairs = [ends.get(a, (0, 0)) for a in reversed(range(x.dim()))]
        if mode == "constant":
            level = fill if value is None else number(value if isinstance(value, Tensor) else whole(value)[0])
            return functional.pad(x, list(itertools.chain(*pairs)), value=level)
        while pairs and pairs[-1] == (0, 0):  # the other modes pad the last dimensions only
            pairs.pop()
        return functional.pad(x, list(itertools.chain(*pairs)), mode=mode) if pairs else x

    return run


@operator("Resize", "Upsample")
def _resize(node: Node) -> Function:
    """Torch's own kernels where they agree with the attributes, an explicit linear map of each axis otherwise."""
    mode, round_down = node.text("mode", "nearest"), node.text("nearest_mode", "round_prefer_floor")
    where_from = node.text("coordinate_transformation_mode", "half_pixel")
    if node.op == "Upsample" or node.opset < 11:
        where_from, round_down = "asymmetric", "floor"
    fixed, cubic = node.attributes.get("scales"), node.number("cubic_coeff_a", -0.75)
    if where_from == "tf_crop_and_resize" or node.integer("antialias"):
        raise BrokenFile(f"node {node.name!r} resizes with {where_from}, antialias {node.integer('antialias')}.",
                         "Export the model without that resize.")
    only = node.integers("axes")

    def run(x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
        if node.op == "Upsample" or node.opset < 11:
            scales = fixed if roi is None else roi
        old = list(x.shape)
        factors: list[float] = [1.0] * x.dim()
        axes = list(only) if only is not None else list(range(x.dim()))
        if sizes is not None and whole(sizes):
            new = list(old)
            for a, s in zip(axes, whole(sizes), strict=True):
                new[a], factors[a] = int(s), s / old[a]
        else:
            for a, f in zip(axes, whole(scales), strict=True):
                factors[a] = float(f)
            new = [math.floor(s * f + 1e-6) for s, f in zip(old, factors, strict=True)]
        within(new)
        moved = [i for i in range(x.dim()) if new[i] != old[i]]
        if not moved:
            return x
        if x.dim() == 4 and min(moved) >= 2:
            size = (new[2], new[3])
            if mode == "nearest" and where_from == "asymmetric" and round_down == "floor":
                return functional.interpolate(x, size=size, mode="nearest")
            if mode == "linear" and where_from in ("half_pixel", "pytorch_half_pixel", "align_corners"):
                exact = all(abs(new[i] / old[i] - factors[i]) < 1e-6 for i in moved)
                if exact and (where_from != "pytorch_half_pixel" or min(size) > 1):
                    return functional.interpolate(x, size=size, mode="bilinear",
                                                  align_corners=where_from == "align_corners")
        for axis in moved:
            matrix = _weights(old[axis], new[axis], factors[axis], mode, where_from, round_down, cubic).to(x)
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix, -1, axis)
        return x

    return run


def _weights(old: int, new: int, factor: float, mode: str, where_from: str, rounding: str, a: float) -> Tensor:
    """[old, new]: how much of each old position each new one takes."""
    position = torch.arange(new, dtype=torch.float64)
    if where_from == "align_corners":
        source = position * (old - 1) / max(new - 1, 1)
    elif where_from == "asymmetric":
        source = position / factor
    elif where_from == "pytorch_half_pixel" and new == 1:
        source = position * 0 - 0.5
    elif where_from == "half_pixel_symmetric":
        source = old / 2 * (1 - new / (old * factor)) + (position + 0.5) / factor - 0.5
    else:
        source = (position + 0.5) / factor - 0.5
    matrix = torch.zeros(old, new, dtype=torch.float64)
    columns = torch.arange(new)
    if mode == "nearest":
        rounded = {"floor": source.floor(), "ceil": source.ceil(), "round_prefer_ceil": (source + 0.5).floor(),
                   "round_prefer_floor": (source - 0.5).ceil()}[rounding]
        matrix[rounded.clamp(0, old - 1).long(), columns] = 1.0
        return matrix
    base = source.floor()
    t = source - base
    if mode == "linear":
        taps = {0: 1 - t, 1: t}
    else:
        def near(d: Tensor) -> Tensor:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1

        def far(d: Tensor) -> Tensor:
            return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a

        taps = {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}
    for offset, weight in taps.items():
        matrix.index_put_(((base + offset).clamp(0, old - 1).long(), columns), weight, accumulate=True)
    return matrix


__all__ = ["OPERATORS"]
