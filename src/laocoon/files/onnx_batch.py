"""A fixed batch size in an ONNX graph, made free where that can be verified, respected otherwise."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper


def with_free_batch(model: ModelProto, batch: int) -> ModelProto:
    """A copy in which constant shapes that start with the batch size start with "as many as there are".

    Only a proposal: the caller compares the two graphs on samples.
    """
    free = ModelProto()
    free.CopyFrom(model)
    graph = free.graph
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].ClearField("value")
            dims[0].dim_param = "batch"
    del graph.value_info[:]
    tensors = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    added = 0
    fresh = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
        elif node.op_type == "Expand" and all(i in tensors for i in node.input):
            array, shape = (numpy_helper.to_array(tensors[i]) for i in node.input)
            if shape.size <= 8 and shape.prod() <= 2**24:
                wide = np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(shape.tolist())))
                tensors[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(wide), node.output[0])
        elif node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in tensors:
            target = [int(s) for s in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]
            changed = _free_shape(target, batch)
            if changed != target:
                name = f"laocoon free batch {added}"
                added += 1
                graph.initializer.append(numpy_helper.from_array(np.asarray(changed, dtype=np.int64), name))
                node.input[1] = name
        elif node.op_type == "Concat":
            fresh.append(node)
    for node in fresh:  # a class token stored as [batch, 1, width] must grow with the batch
        _grow(graph, node, tensors, batch)
    return free


def _free_shape(shape: list[int], batch: int) -> list[int]:
    if not shape or shape[0] <= 0 or shape[0] % batch:
        return shape
    if shape[0] == batch:
        return [0, *shape[1:]] if -1 in shape else [-1, *shape[1:]]
    return shape if -1 in shape else [-1, *shape[1:]]  # batch times heads, for instance


def _grow(graph: object, node: object, tensors: dict[str, object], batch: int) -> None:
    """Expand a constant of batch size 1 in a Concat to the batch of a neighbour that is computed."""
    inputs = list(node.input)  # type: ignore[attr-defined]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)  # type: ignore[attr-defined]
    fixed = [i for i, name in enumerate(inputs) if name in tensors]
    live = [name for name in inputs if name not in tensors]
    if axis == 0 or not fixed or not live:
        return
    at = list(graph.node).index(node)  # type: ignore[attr-defined]
    for i in fixed:
        array = numpy_helper.to_array(tensors[inputs[i]])  # type: ignore[arg-type]
        if array.ndim < 2 or array.shape[0] != batch:
            continue
        stem = f"laocoon grown {inputs[i]} {at}"
        first = numpy_helper.from_array(array[:1].copy(), f"{stem} one")
        tail = numpy_helper.from_array(np.ones(array.ndim - 1, dtype=np.int64), f"{stem} tail")
        graph.initializer.extend([first, tail])  # type: ignore[attr-defined]
        zero = numpy_helper.from_array(np.zeros(1, dtype=np.int64), f"{stem} zero")
        one = numpy_helper.from_array(np.ones(1, dtype=np.int64), f"{stem} end")
        graph.initializer.extend([zero, one])  # type: ignore[attr-defined]
        steps = [
            helper.make_node("Shape", [live[0]], [f"{stem} shape"]),
            helper.make_node("Slice", [f"{stem} shape", zero.name, one.name], [f"{stem} batch"]),
            helper.make_node("Concat", [f"{stem} batch", tail.name], [f"{stem} target"], axis=0),
            helper.make_node("Expand", [first.name, f"{stem} target"], [f"{stem} value"]),
        ]
        node.input[i] = f"{stem} value"  # type: ignore[attr-defined]
        for step in reversed(steps):
            graph.node.insert(at, step)  # type: ignore[attr-defined]
