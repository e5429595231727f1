"""One ONNX node with its attributes decoded once, as the operator tables see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from laocoon.core.errors import BrokenFile

LARGEST_TENSOR = 2**28  # elements of one value of the graph for one or a few samples: 1 GiB of float32

_FLOATS = frozenset({
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
})
# Quantised integers are carried as float32 that hold whole numbers, so that gradients pass through them.
_QUANTISED = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4})
_INTEGERS = frozenset({TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64,
                       TensorProto.UINT64})
INTEGER_RANGE = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT4: (-8, 7),
                 TensorProto.UINT4: (0, 15)}


def dtype_of(kind: int) -> torch.dtype:
    """The type that values of an ONNX element type have here: float32, int64 or bool."""
    if kind in _FLOATS or kind in _QUANTISED:
        return torch.float32
    if kind in _INTEGERS:
        return torch.int64
    if kind == TensorProto.BOOL:
        return torch.bool
    name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
    raise BrokenFile(f"the ONNX graph holds values of type {name}.",
                     "Only numeric and boolean tensors can be examined.")


def is_quantised(kind: int) -> bool:
    return kind in _QUANTISED


def tensor_of(proto: TensorProto) -> Tensor:
    """A constant, after checking that its data has the length that its shape promises."""
    count = 1
    for size in proto.dims:
        if size < 0 or count * max(size, 1) > LARGEST_TENSOR * 8:
            raise BrokenFile(f"tensor {proto.name!r} claims the shape {list(proto.dims)}.", "The file is malformed.")
        count *= size
    target = dtype_of(proto.data_type)
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenFile(f"tensor {proto.name!r} of shape {list(proto.dims)} cannot be read ({error}).",
                         "The file is truncated or malformed.") from error
    if target is torch.float32:
        array = array.astype("float32")
    elif target is torch.int64:
        array = array.astype("int64")
    return torch.from_numpy(array.copy() if not array.flags.writeable else array).contiguous()


@dataclass(frozen=True)
class Node:
    """`statics` holds the inputs known when the graph was read, as Python values, by position."""

    op: str
    domain: str
    name: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kind: int = 0  # element type of the first output where it matters (Cast)

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> tuple[int, ...] | None:
        value = self.attributes.get(name)
        return None if value is None else tuple(int(v) for v in value)


def decode(proto: NodeProto, opset: int, number: int) -> Node:
    """A node of the file as a Node."""
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        kind = attribute.type
        if kind == AttributeProto.FLOAT:
            attributes[attribute.name] = attribute.f
        elif kind == AttributeProto.INT:
            attributes[attribute.name] = attribute.i
        elif kind == AttributeProto.STRING:
            attributes[attribute.name] = attribute.s
        elif kind == AttributeProto.TENSOR:
            attributes[attribute.name] = tensor_of(attribute.t)
        elif kind == AttributeProto.FLOATS:
            attributes[attribute.name] = tuple(attribute.floats)
        elif kind == AttributeProto.INTS:
            attributes[attribute.name] = tuple(attribute.ints)
        elif kind == AttributeProto.STRINGS:
            attributes[attribute.name] = tuple(attribute.strings)
        elif kind == AttributeProto.GRAPH:
            attributes[attribute.name] = attribute.g
    domain = "" if proto.domain in ("", "ai.onnx") else proto.domain
    return Node(proto.op_type, domain, proto.name or f"{proto.op_type}_{number}", opset, tuple(proto.input),
                tuple(proto.output), attributes)
