"""What an ONNX file tells of a table: the names of its columns, the words of categories, several inputs as one."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.wording import printable
from laocoon.modalities.tabular import CATEGORY, NUMERIC, Tabular

NAMES = ("feature_names", "feature_names_in_", "columns", "column_names", "input_columns", "features")
WORDS = ("categories", "category_names")  # JSON: {"region": ["north", "south"]}, in the order of their codes
LONGEST = 2**20  # characters of one entry
MOST_COLUMNS = 4096
_NUMBERS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32,
            TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL}
_PREFIX = "laocoon/record"


def names_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Names of columns as metadata give them: a JSON list, or words between commas."""
    text = next((metadata[k] for k in NAMES if metadata.get(k)), "")
    if not text or len(text) > LONGEST:
        return ()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = [part.strip() for part in text.strip("[]").replace("'", "").replace('"', "").split(",")]
    if not isinstance(told, list) or not told or not all(isinstance(n, str) and n for n in told):
        return ()
    return tuple(printable(n, 120) for n in told) if len(told) <= MOST_COLUMNS and len(set(told)) == len(told) else ()


def table_in(metadata: Mapping[str, str], names: tuple[str, ...]) -> Tabular | None:
    """The columns as far as a file tells; None: it tells nothing."""
    if not names:
        return None
    table = Tabular.unknown(names)
    try:
        told = json.loads(next((metadata[k] for k in WORDS if metadata.get(k)), "{}")[:LONGEST])
    except (ValueError, RecursionError):
        return table
    words = {k: v for k, v in told.items() if k in names and isinstance(v, list) and v
             and all(isinstance(w, str) for w in v)} if isinstance(told, dict) else {}
    if not words:
        return table
    kinds = tuple(CATEGORY if n in words else NUMERIC for n in names)
    allowed = tuple(tuple(float(i) for i in range(len(words[n]))) if n in words else () for n in names)
    return Tabular(names, table.low, table.high, kinds, allowed, tuple(tuple(words.get(n, ())) for n in names))


def metadata_of(model: ModelProto) -> dict[str, str]:
    """The entries of a file at full length."""
    return {p.key: p.value for p in model.metadata_props[:64] if len(p.value) <= LONGEST}


def inputs_of(model: ModelProto) -> list[ValueInfoProto]:
    """Inputs that are no weights."""
    weights = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in weights]


def merged(model: ModelProto, name: str) -> tuple[ModelProto, tuple[str, ...]]:
    """A model of one float input [n, columns] in front of several, and the names of the columns where inputs are they.

    Numbers and codes that come in several inputs are cut from the row and given their types. A single float input
    stays as it is.
    """
    inputs = inputs_of(model)
    if len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        return model, ()
    result = ModelProto()
    result.CopyFrom(model)
    graph, nodes, names, start = result.graph, list[NodeProto](), list[str](), 0
    batch: int | str = "batch"
    for value in inputs:
        kind, shape = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
        shown = printable(value.name, 60)
        if kind == TensorProto.STRING:
            raise InputError(f"{name}: input {shown!r} takes words.", "Export the part that takes codes instead.")
        if kind not in _NUMBERS or len(shape) not in (1, 2):
            raise InputError(f"{name}: input {shown!r} is no column or group of columns of numbers.",
                             "A table's model takes numbers [n] or [n, columns].")
        batch = shape[0].dim_value or batch
        width = shape[1].dim_value if len(shape) == 2 else 1
        if not 1 <= width <= MOST_COLUMNS:
            raise InputError(f"{name}: input {shown!r} does not say how many columns it takes.", "Export it again.")
        names += [value.name] if width == 1 else [f"{value.name} {i}" for i in range(width)]
        nodes += _cut(result, value.name, kind, start, width, flat=len(shape) == 1)
        start += width
    if start > MOST_COLUMNS:
        raise BrokenFile(f"{name} takes {start} columns.", f"At most {MOST_COLUMNS} are examined.")
    for value in inputs:
        graph.input.remove(value)
    graph.input.insert(0, helper.make_tensor_value_info(_PREFIX, TensorProto.FLOAT, [batch, start]))
    kept = list(graph.node)
    for place, node in enumerate(kept):  # layers keep the names that they have without the nodes in front
        node.name = node.name or f"{node.op_type}_{place}"
    for place, node in enumerate(nodes):
        node.name = f"laocoon_record_{place}"
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    return result, tuple(names) if len(inputs) > 1 else ()


def _cut(model: ModelProto, name: str, kind: int, start: int, width: int, *, flat: bool) -> list[NodeProto]:
    """Nodes that make one of the old inputs from the row."""
    places = f"{_PREFIX}/{start}"
    model.graph.initializer.append(numpy_helper.from_array(np.arange(start, start + width), places))
    nodes = [helper.make_node("Gather", [_PREFIX, places], [f"{places}/cut"], axis=1)]
    if flat:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), f"{places}/shape"))
        nodes.append(helper.make_node("Reshape", [f"{places}/cut", f"{places}/shape"], [f"{places}/flat"]))
    nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], [name], to=kind))
    return nodes
