"""ONNX files: bounds and checks first, then a differentiable module (`onnx_build`)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError, UnsafeFile
from laocoon.files.bounded import Bounded
from laocoon.files.graph import ParsedGraph
from laocoon.files.onnx_batch import with_free_batch
from laocoon.files.onnx_build import Builder, data_conditions
from laocoon.files.table_onnx import merged
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import EachBatch, ModelOptions, RawModel

LARGEST_FILE = 2**31 - 1  # a protobuf message cannot be larger
MOST_NODES = 50_000
LOWEST_OPSET = 7
_FLOAT_INPUTS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.UINT8,
                 TensorProto.INT8}


def looks_like_onnx(head: bytes, size: int) -> bool:
    """Do the top-level fields of the protobuf message fit a ModelProto? Reads lengths only."""
    at, graph = 0, False
    for _ in range(64):
        if at >= len(head) or at >= size:
            break
        tag, at = _varint(head, at)
        if tag >> 3 not in (1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26):
            return False
        if tag & 7 == 0:
            _, at = _varint(head, at)
        elif tag & 7 == 2:
            length, at = _varint(head, at)
            graph = graph or tag >> 3 == 7
            at += length
        else:
            return False
    return graph


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return value, at


def open_onnx(path: Path, options: ModelOptions) -> RawModel:
    if path.stat().st_size > LARGEST_FILE:
        raise BrokenFile(f"{path.name} has {path.stat().st_size} bytes; an ONNX file has at most {LARGEST_FILE}.",
                         "Store large weights as external data.")
    return open_bytes(path.read_bytes(), path.name, path.parent, options, "onnx")


def inspect(path: Path) -> None:
    """The static checks alone; raises what they find."""
    check(_parsed(path.read_bytes(), path.name), path.name, path.parent)


def read(path: Path) -> ModelProto:
    """A checked model with its external data read in, otherwise as it is in the file."""
    model = _parsed(path.read_bytes(), path.name)
    check(model, path.name, path.parent)
    return model


def network(model: ModelProto, name: str) -> nn.Module:
    """The module that a checked model's graph becomes, with the parameter names that `open_onnx` gives."""
    working = ModelProto()
    working.CopyFrom(inlined(model, name))
    for index in range(len(working.graph.output)):
        _cut_activation(working, index)
    with torch.no_grad(), Bounded():
        return _build(working, name)


def _parsed(data: bytes, name: str) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise BrokenFile(f"{name} is not a complete ONNX file ({first_line(error)}).",
                         "It is truncated or damaged: fetch it again.") from error
    return model


def open_bytes(data: bytes, name: str, folder: Path | None, options: ModelOptions, origin: str) -> RawModel:
    """A model from the bytes of an ONNX file; `folder` is where its external data may lie."""
    model = _parsed(data, name)
    check(model, name, folder)
    model = inlined(model, name)
    names: tuple[str, ...] = ()
    if options.modality == "tabular":
        model, names = merged(model, name)
    raw = _raw(model, name, options, origin)
    return replace(raw, metadata={"columns": json.dumps(names), **raw.metadata}) if names else raw


def inlined(model: ModelProto, name: str) -> ModelProto:
    """The same model without functions of its own."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise BrokenFile(f"{name} has functions that cannot be inlined ({first_line(error)}).",
                         "Export it again without them.") from error


def tensors_of(model: ModelProto) -> list[TensorProto]:
    """Every tensor of the file, those in nodes and sub-graphs too."""
    found: list[TensorProto] = []
    graphs = [model.graph]
    nodes: list[NodeProto] = [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            found.extend(graph.initializer)
            nodes.extend(graph.node)
        while nodes:
            for attribute in nodes.pop().attribute:
                if attribute.HasField("t"):
                    found.append(attribute.t)
                found.extend(attribute.tensors)
                graphs.extend([attribute.g] if attribute.HasField("g") else [])
                graphs.extend(attribute.graphs)
    return found


def check(model: ModelProto, name: str, folder: Path | None) -> None:
    """Static checks: size, external data, operator set, and what the ONNX checker says."""
    if not model.graph.node or not model.graph.output:
        raise BrokenFile(f"{name} holds an ONNX graph without nodes or outputs.", "Export the model again.")
    if len(model.graph.node) > MOST_NODES:
        raise BrokenFile(f"{name} has {len(model.graph.node)} nodes.", f"At most {MOST_NODES} are examined.")
    for tensor in tensors_of(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            _read_external(tensor, name, folder)
    opset = opset_of(model)
    if opset < LOWEST_OPSET or opset > onnx.defs.onnx_opset_version():
        raise InputError(f"{name} uses operator set {opset} of ONNX.",
                         f"Convert it to one between {LOWEST_OPSET} and {onnx.defs.onnx_opset_version()}.")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BrokenFile(f"{name} is not a valid ONNX model ({first_line(error)}).",
                         "Export the model again.") from error
    except (ValueError, RuntimeError) as error:
        raise BrokenFile(f"{name} cannot be checked as ONNX ({first_line(error)}).",
                         "Export the model again.") from error


def opset_of(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _read_external(tensor: TensorProto, name: str, folder: Path | None) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    outside = UnsafeFile(
        f"{name}: tensor {printable(tensor.name)!r} reads the file {printable(location)!r}, outside of "
        "the model's folder.",
        "Do not load this model.",
        rule="path-traversal",
        details=(f"external data: {printable(location)}",),
    )
    if not location or "\0" in location or os.path.isabs(location) or ".." in Path(location).parts or "\\" in location:
        raise outside
    if folder is None:
        raise BrokenFile(
            f"{name}: tensor {printable(tensor.name)!r} has its data in another file.", "Keep them together."
        )
    target = (folder / location).resolve()
    if not target.is_relative_to(folder.resolve()) or (folder / location).is_symlink():
        raise outside
    if not target.is_file():
        raise BrokenFile(f"{name}: the file {printable(location)!r} with the data of tensor {printable(tensor.name)!r} "
                         "is missing.", "Put it beside the model.")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(target.stat().st_size - offset)))
    except ValueError as error:
        raise BrokenFile(f"{name}: tensor {printable(tensor.name)!r} has a malformed offset or length.", "") from error
    if offset < 0 or length < 0 or offset + length > target.stat().st_size or length > LARGEST_FILE:
        raise BrokenFile(f"{name}: tensor {printable(tensor.name)!r} claims bytes {offset} to {offset + length} of "
                         f"{printable(location)!r}, which has {target.stat().st_size}.", "The file is truncated.")
    with target.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


# ---------------------------------------------------------------- reading the ends of the graph
def _raw(model: ModelProto, name: str, options: ModelOptions, origin: str) -> RawModel:
    graph = model.graph
    constants = {i.name for i in graph.initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    if any(i.name == "input_ids" for i in inputs):
        raise InputError(f"{name} takes token ids, and no tokenizer lies beside it.",
                         "Put the tokenizer.json that belongs to it into the same folder.")
    if len(inputs) != 1:
        raise InputError(f"{name} takes {len(inputs)} inputs ({', '.join(printable(i.name, 40) for i in inputs[:5])}).",
                         "An image classifier takes one.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _FLOAT_INPUTS:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise InputError(f"{name} takes inputs of type {kind}.", "An image classifier takes float or uint8 images.")
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    if any(d is not None and d > 2**16 for d in dims):
        raise BrokenFile(
            f"{name} takes inputs of shape {list(dims)}.", "Images of at most 65536 pixels a side are examined."
        )
    kept = ParsedGraph(origin, model, inputs[0].name, tuple(o.name for o in graph.output))
    working = ModelProto()
    working.CopyFrom(model)
    cuts = tuple(_cut_activation(working, i) for i in range(len(graph.output)))
    notes = [f"the {cut} at the end of output {printable(o.name, 40)!r} was taken off to get at the logits"
             for cut, o in zip(cuts, graph.output, strict=True) if cut]
    quantised = any(n.op_type.startswith(("QuantizeLinear", "QLinear", "DynamicQuantize")) for n in graph.node)
    if quantised:
        notes.append("quantised: gradients pass straight through the rounding")
    if any(t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for t in graph.initializer):
        notes.append("half-precision weights were raised to float32")
    module, whole = _module(working, dims, options, notes, name)
    metadata = {printable(p.key, 60): printable(p.value, 400) for p in model.metadata_props[:64]}
    metadata.update(
        {
            k: printable(v)
            for k, v in (
                ("producer", f"{model.producer_name} {model.producer_version}".strip()),
                ("opset", opset_of(model)),
            )
            if v
        }
    )
    return RawModel(
        module=module,
        format=origin,
        input_shape=dims[1:],
        output_names=tuple(o.name for o in graph.output),
        known_logits=tuple(bool(c) for c in cuts),
        cut=cuts,
        input_range=_input_range(model, inputs[0].name, tensor.elem_type),
        graph=kept,
        notes=tuple(notes),
        metadata=metadata,
        whole_batch=whole,
        class_names=_class_names(metadata),
    )


def _module(model: ModelProto, dims: tuple[int | None, ...], options: ModelOptions, notes: list[str],
            name: str) -> tuple[nn.Module, bool]:
    """The module for any batch size, and whether it sees each batch as a whole (no chunks)."""
    with torch.no_grad(), Bounded():
        plain = _build(model, name)
    fixed = dims[0] if dims else None
    if fixed is None and not data_conditions(model.graph):
        return plain, True
    chunk = fixed or 1
    shape = [chunk, *(d if d is not None else s for d, s in zip(dims[1:], _guess(dims[1:], options), strict=True))]
    if not data_conditions(model.graph) and all(s is not None for s in shape):
        with torch.no_grad(), Bounded():
            free = _build(with_free_batch(model, chunk), name)
            if _agree(plain, free, shape):
                notes.append(f"the fixed batch size of {chunk} was made free")
                return free, True
    notes.append(f"the model sees {chunk} sample{'s' if chunk > 1 else ''} at a time; hidden features cannot be read")
    return EachBatch(plain, chunk), False


def _build(model: ModelProto, name: str) -> nn.Module:
    graph = model.graph
    constants = {i.name for i in graph.initializer}
    try:
        return Builder(
            graph, opset_of(model), {}, tuple(i.name for i in graph.input if i.name not in constants)
        ).build().eval()  # a batch norm in training mode would answer otherwise, and learn
    except (
        RuntimeError,
        ValueError,
        IndexError,
        TypeError,
        KeyError,
        OverflowError,
        ZeroDivisionError,
        AttributeError,
    ) as error:
        raise BrokenFile(
            f"{name}: the graph cannot be read ({type(error).__name__}: {first_line(error)}).",
            "The file is malformed, or uses an operator in an unusual way.",
        ) from error


def _guess(dims: tuple[int | None, ...], options: ModelOptions) -> tuple[int | None, ...]:
    if options.size is None or len(dims) != 3:
        return dims
    h, w = options.size
    return (dims[0], h, w) if dims[0] in (1, 3, 4) else (h, w, dims[2])


def _agree(plain: nn.Module, free: nn.Module, shape: list[int | None]) -> bool:
    """Does the module with a free batch give, for several samples at once, what the file gives batch by batch?"""
    chunk, rest = int(shape[0] or 1), [int(s or 1) for s in shape[1:]]
    x = torch.rand(chunk + 1, *rest, generator=torch.Generator().manual_seed(0))
    try:
        wanted, got = plain(x[:chunk]), free(x)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    pairs = zip(
        wanted if isinstance(wanted, tuple) else (wanted,), got if isinstance(got, tuple) else (got,), strict=True
    )
    for a, b in pairs:
        if not isinstance(a, Tensor) or b.dim() != a.dim() or b.dim() == 0 or len(b) != chunk + 1:
            return False
        scale = float(a.float().abs().max().clamp_min(1e-3))
        if not torch.allclose(a.float(), b[:chunk].float(), atol=1e-3 * scale, rtol=1e-3):
            return False
    return True


def _producers(model: ModelProto) -> dict[str, NodeProto]:
    return {o: n for n in model.graph.node for o in n.output if o}


def _cut_activation(model: ModelProto, index: int) -> str:
    """Redirect an output to the input of the softmax, sigmoid or argmax that ends it; what was cut, or ''."""
    producers, output = _producers(model), model.graph.output[index]
    rank = len(output.type.tensor_type.shape.dim) or 2
    name = output.name
    for _ in range(8):
        node = producers.get(name)
        if node is None or not node.input:
            return ""
        if node.op_type == "Identity" or (node.op_type == "Cast" and _attribute(node, "to", 1) in _FLOAT_INPUTS):
            name = node.input[0]
            continue
        axis = _attribute(node, "axis", 1 if opset_of(model) < 13 else -1)
        if node.op_type in ("Softmax", "LogSoftmax") and axis in (1, 1 - rank):
            break
        if node.op_type == "Sigmoid" or (node.op_type == "ArgMax" and _attribute(node, "axis", 0) in (1, -1)):
            break
        return ""
    else:
        return ""
    output.name = node.input[0]
    return {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid", "ArgMax": "argmax"}[node.op_type]


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _input_range(model: ModelProto, name: str, kind: int) -> str | None:
    """0-255 where the graph itself starts by dividing by 255, or by subtracting something over 1.5."""
    if kind in (TensorProto.UINT8, TensorProto.INT8):
        return "0-255"
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for i in node.input:
            users.setdefault(i, []).append(node)
    for _ in range(6):
        consumers = users.get(name, [])
        if len(consumers) != 1:
            return None
        node = consumers[0]
        if node.op_type in ("Transpose", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Split", "Gather"):
            name = node.output[0]
            continue
        others = [constants[i] for i in node.input if i in constants and i != name]
        if not others or math.prod(others[0].dims) > 16:
            return None
        try:
            value = float(abs(numpy_helper.to_array(others[0]).astype("float64")).max())
        except (ValueError, TypeError):
            return None
        high = {"Div": value > 100, "Mul": 0 < value < 0.02, "Sub": value > 1.5, "Add": value > 1.5,
                "QuantizeLinear": value > 0.2}.get(node.op_type, False)
        return "0-255" if high else None
    return None


def _class_names(metadata: dict[str, str]) -> tuple[str, ...]:
    text = next((metadata[k] for k in ("names", "classes", "class_names", "labels") if k in metadata), "")
    if not text or text.endswith("…") or text[0] not in "[{":
        return ()
    parts = [p.split(":")[-1].strip(" '\"{}[]") for p in text.strip("{}[]").split(",")]
    return tuple(parts) if all(parts) else ()


__all__ = ["check", "looks_like_onnx", "open_bytes", "open_onnx"]
