"""Changed weights written back into the ONNX graph that they came from, so that all else in it stays as it was.

What the importer did to a tensor on the way to a parameter (a transpose, a reshape, a bias spread over its rows) is not
guessed: the graph is built again with numbered elements in place of the weights, and each parameter then shows which
element of which tensor it is. A parameter that is no plain copy of elements (a dequantised or scaled weight) shows
itself by that, and is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

from laocoon.core.errors import InputError, LaocoonError
from laocoon.files.onnx import network, tensors_of
from laocoon.files.onnx_graph import GraphModule
from laocoon.files.wording import printable

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_BASE = 4096  # element numbers are told in two digits to this base, each exact in float32
_LARGEST = 2**31 - 1
REMEDY = "Pass --format onnx: the network is then exported anew."


class Unwritable(InputError):
    """New weights that do not fit into the graph as it is."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a parameter comes from: the position of its tensor among `tensors_of(model)`, and its elements there."""

    tensor: int
    elements: Tensor  # [numel], in the order of the parameter


def graph_module(module: nn.Module) -> GraphModule | None:
    """The one network in a subject's module that was built from a graph."""
    return next((m for m in module.modules() if isinstance(m, GraphModule)), None)


def sources(model: ModelProto, built: GraphModule, name: str) -> dict[str, Source]:
    """For each key of the network's state dict that is a plain copy of a tensor's elements: which."""
    tensors = tensors_of(model)
    known = set(built.origins.values())
    chosen = {i for i, t in enumerate(tensors)
              if t.data_type in _FLOATS and (t.name in known or int(np.prod(t.dims or [1])) > 1)}
    state = {k: v.detach().cpu().float() for k, v in built.state_dict().items() if v.is_floating_point()}
    try:
        which = _numbered(model, chosen, name, lambda i, n: np.full(n, i + 1))
        low = _numbered(model, chosen, name, lambda _, n: np.arange(n) % _BASE + 1)
        high = _numbered(model, chosen, name, lambda _, n: np.arange(n) // _BASE + 1)
    except LaocoonError:  # a constant that steers a shape: the graph cannot be built with other numbers
        return {}
    found = {}
    for key, value in state.items():
        parts = [built_state.get(key) for built_state in (which, low, high)]
        if any(p is None or p.shape != value.shape for p in parts) or not value.numel():
            continue
        first, digits, more = (p.flatten() for p in parts if p is not None)
        index = int(first[0]) - 1
        if not bool((first == first[0]).all()) or index not in chosen or float(first[0]) != index + 1:
            continue
        elements = ((more - 1) * _BASE + digits - 1).round().long()
        array = torch.from_numpy(_array(tensors[index]).astype(np.float32)).flatten()
        fits = bool(((elements >= 0) & (elements < array.numel())).all())
        if fits and torch.equal(array[elements], value.flatten()):
            found[key] = Source(index, elements)
    return found


def _numbered(model: ModelProto, chosen: set[int], name: str,
              values: Callable[[int, int], NDArray[Any]]) -> dict[str, Tensor]:
    """The state dict of the graph with these values in the chosen tensors."""
    other = ModelProto()
    other.CopyFrom(model)
    for i, tensor in enumerate(tensors_of(other)):
        if i in chosen:
            shape = tuple(tensor.dims)
            array = values(i, int(np.prod(shape or (1,)))).astype(np.float32).reshape(shape)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return {k: v.detach().float() for k, v in network(other, name).state_dict().items()}


def _array(tensor: TensorProto) -> NDArray[Any]:
    return np.asarray(numpy_helper.to_array(tensor))


def unwritable(built: GraphModule, found: Mapping[str, Source]) -> list[str]:
    """Trainable weights that cannot be written back, by name."""
    return [k for k, _ in built.named_parameters(remove_duplicate=False) if k not in found]


def changed(model: ModelProto, built: GraphModule, mended: GraphModule,
            found: Mapping[str, Source]) -> dict[int, NDArray[Any]]:
    """New values of the tensors that a repair changed, by position, in the type that the file has them in.

    Unwritable where a changed weight is no plain copy, or where layers that shared one tensor were changed apart.
    """
    before, after = built.state_dict(), mended.state_dict()
    tensors = tensors_of(model)
    new: dict[int, tuple[Tensor, Tensor]] = {}  # values, and which elements have been told
    moved = {found[k].tensor for k in found if not torch.equal(before[k].cpu(), after[k].cpu())}
    for key, value in after.items():
        same = torch.equal(before[key].cpu(), value.cpu())
        source = found.get(key)
        if source is None:
            if not same and not key.endswith("num_batches_tracked"):
                raise Unwritable(f"weight {printable(key, 80)!r} was changed, and is no plain copy of a tensor of the "
                                 "file.", REMEDY)
            continue
        if source.tensor not in moved:
            continue
        if source.tensor not in new:
            start = torch.from_numpy(_array(tensors[source.tensor]).astype(np.float32).copy()).flatten()
            new[source.tensor] = (start, torch.zeros(start.numel(), dtype=torch.bool))
        values, told = new[source.tensor]
        wanted = value.detach().cpu().float().flatten()
        again = told[source.elements]
        spread = values.clone()
        spread[source.elements] = wanted
        if not torch.equal(values[source.elements[again]], wanted[again]) \
                or not torch.equal(spread[source.elements], wanted):
            raise Unwritable(f"tensor {printable(tensors[source.tensor].name, 80)!r} is shared by layers that were "
                             "changed apart.", REMEDY)
        told[source.elements] = True
        new[source.tensor] = (spread, told)
    return {i: values.numpy().reshape(tuple(tensors[i].dims)) for i, (values, _) in new.items()}


def written_back(model: ModelProto, values: Mapping[int, NDArray[Any]], note: str) -> bytes:
    """The file with new values in some tensors and a note in its metadata; nothing else differs."""
    other = ModelProto()
    other.CopyFrom(model)
    for i, tensor in enumerate(tensors_of(other)):
        if i not in values:
            continue
        kind, name, text = tensor.data_type, tensor.name, tensor.doc_string
        fresh = numpy_helper.from_array(values[i].astype(_array(tensor).dtype), name)
        if fresh.data_type != kind:
            raise Unwritable(f"tensor {printable(name, 80)!r} is of the type {TensorProto.DataType.Name(kind)}, which "
                             "cannot be written here.", REMEDY)
        tensor.CopyFrom(fresh)
        tensor.doc_string = text
    return noted(other, note)


def noted(model: ModelProto, note: str) -> bytes:
    """The bytes of a model with the note under the key `laocoon`."""
    kept = [(p.key, p.value) for p in model.metadata_props if p.key != "laocoon"]
    del model.metadata_props[:]
    for key, value in (*kept, ("laocoon", note)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    if model.ByteSize() > _LARGEST:
        raise InputError(f"the model has {model.ByteSize()} bytes; one ONNX file holds at most {_LARGEST}.",
                         "Its weights would need external data, which is not written.")
    return bytes(model.SerializeToString())
