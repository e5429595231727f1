"""Small constants that an ONNX file makes out of others: exporters that fold nothing write the bounds of a slice so.

ONNX's shape inference does not follow them, and without shapes a cut-out of the input cannot be told from the input.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

MOST = 64  # elements of a constant that is followed
_PLUMBING = ("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Cast", "Identity", "Concat")

Small = dict[str, "NDArray[np.generic]"]


def with_small_constants(model: ModelProto) -> ModelProto:
    """The same model, in place, with plumbing between small constants of its main graph worked out."""
    known: Small = {}
    for tensor in model.graph.initializer:
        _keep(known, tensor.name, tensor)
    kept: list[NodeProto] = []
    for node in model.graph.node:
        made = _value(node, known) if node.output else None
        if made is None:
            kept.append(node)
        elif node.output[0] not in known and made.size <= MOST:
            known[node.output[0]] = made
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(made), node.output[0]))
    if len(kept) < len(model.graph.node):
        copies = [NodeProto.FromString(n.SerializeToString()) for n in kept]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    return model


def _keep(known: Small, name: str, tensor: TensorProto) -> None:
    count = int(np.prod([float(d) for d in tensor.dims]))
    if 0 <= count <= MOST and tensor.data_location != TensorProto.EXTERNAL:
        try:
            value = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, OverflowError):
            return
        if value.dtype.kind in "iufb":
            known[name] = value


def _value(node: NodeProto, known: Small) -> NDArray[np.generic] | None:
    """What a node makes of small constants; None where it does anything else."""
    if node.op_type == "Constant":
        tensors: Small = {}
        for attribute in node.attribute:
            if attribute.name == "value":
                _keep(tensors, "value", attribute.t)
            elif attribute.name in ("value_int", "value_ints"):
                given = helper.get_attribute_value(attribute)
                tensors["value"] = np.asarray(given if isinstance(given, int) else list(given)[:MOST + 1], np.int64)
        return tensors.get("value")
    if node.op_type not in _PLUMBING or not node.input or any(n not in known for n in node.input):
        return None
    given = [known[n] for n in node.input]
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        return _plumbed(node.op_type, given, settings)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _plumbed(op: str, given: list[NDArray[np.generic]], settings: dict[str, object]) -> NDArray[np.generic] | None:
    value = given[0]
    if op == "Concat":
        return np.concatenate(given, axis=_whole(settings.get("axis", 0)))
    if op == "Cast":
        wanted = helper.tensor_dtype_to_np_dtype(_whole(settings.get("to", TensorProto.FLOAT)))
        return value.astype(wanted) if wanted.kind in "iufb" else None
    if op == "Reshape":
        return value.reshape([_whole(d) for d in given[1].reshape(-1)])
    if op == "Flatten":
        return value.reshape(1, -1) if value.ndim < 2 else None
    if op == "Identity":
        return value
    axes = given[1].reshape(-1) if len(given) > 1 else settings.get("axes")
    if axes is None:
        return value.squeeze() if op == "Squeeze" else None
    places = tuple(_whole(a) for a in axes) if isinstance(axes, Iterable) else ()
    if len(places) > 8 or value.ndim > 8:
        return None
    return np.expand_dims(value, places) if op == "Unsqueeze" else np.squeeze(value, places)


def _whole(number: object) -> int:
    return int(number)  # type: ignore[call-overload,no-any-return]
