"""An ONNX text classifier with its tokenizer beside it.

The graph is cut where it looks words up (a Gather of `input_ids` in a table), so that gradients reach the words; what
else reads the ids (their shape, where padding is) is given ids that tell the same. A graph that our reader cannot build
is asked through ONNX Runtime, without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.core.subject import Provenance, Subject
from laocoon.files import huggingface
from laocoon.files import onnx as onnx_files
from laocoon.files.graph import ParsedGraph
from laocoon.files.text_models import adapted
from laocoon.files.text_tokenizer import has_tokenizer, modality_of, read_tokenizer
from laocoon.files.wording import first_line, printable
from laocoon.modalities.class_head import detect_activation

LOWEST = -1e30  # instead of minus infinity, for what a mask adds to a score
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
WHOLE = (TensorProto.INT64, TensorProto.INT32)


@dataclass(frozen=True)
class Answer:
    """What a network of transformers returns, as far as the adapter looks at it."""

    logits: Tensor


class GraphNetwork(nn.Module):
    """A cut graph that is called like a network of transformers."""

    def __init__(self, graph: nn.Module, table: Tensor, inputs: tuple[str, ...], embedded: str, length: int | None,
                 batch: int | None, padding: int) -> None:
        super().__init__()
        self.graph, self.inputs, self.embedded = graph, inputs, embedded
        self.table: nn.Module = nn.Embedding.from_pretrained(table)
        self.length, self.batch, self.padding = length, batch, padding

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, attention_mask: Tensor, inputs_embeds: Tensor | None = None, input_ids: Tensor | None = None,
                return_dict: bool = True) -> Answer:
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.table(input_ids)
        ids = input_ids
        if ids is None:  # any word where there is one: only where padding is can be told from them
            ids = torch.where(attention_mask > 0, 1 if self.padding == 0 else 0, self.padding)
        values = {IDS: ids, MASK: attention_mask, TYPES: torch.zeros_like(ids), self.embedded: inputs_embeds}
        return Answer(_in_batches(lambda v: self.graph(*[v[name] for name in self.inputs]),
                                  _filled(values, self.length, self.padding), self.batch))


class RuntimeNetwork(nn.Module):
    """A graph that ONNX Runtime runs."""

    def __init__(self, path: Path, inputs: tuple[str, ...], length: int | None, batch: int | None, padding: int,
                 rows: int) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra(f"{path.name} has operators that only ONNX Runtime knows.",
                               "pip install 'laocoon[onnxruntime]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except RuntimeError as error:
            raise BrokenFile(f"{path.name} cannot be run ({first_line(error)}).", "Export it again.") from error
        self.inputs, self.length, self.batch, self.padding = inputs, length, batch, padding
        self.table = nn.Embedding(rows, 1)  # says how many tokens there are; nothing is looked up in it

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, attention_mask: Tensor, input_ids: Tensor, return_dict: bool = True) -> Answer:
        values = {IDS: input_ids, MASK: attention_mask, TYPES: torch.zeros_like(input_ids)}

        def run(part: Mapping[str, Tensor]) -> Tensor:
            said = self.session.run(None, {n: part[n].cpu().numpy().astype(np.int64) for n in self.inputs})
            return torch.as_tensor(np.asarray(said[0]), dtype=torch.float32).to(input_ids.device)

        return Answer(_in_batches(run, _filled(values, self.length, self.padding), self.batch))


def _filled(values: dict[str, Tensor], length: int | None, padding: int) -> dict[str, Tensor]:
    """Padded to the one length that a graph takes."""
    missing = 0 if length is None else length - values[MASK].shape[1]
    if missing <= 0:
        return values
    return {name: torch.cat([v, v.new_full((len(v), missing, *v.shape[2:]), padding if name == IDS else 0)], 1)
            for name, v in values.items()}


def _in_batches(run: Any, values: Mapping[str, Tensor], size: int | None) -> Tensor:
    """All at once, or as many at a time as a graph takes; the last ones are filled up and cut again."""
    if size is None:
        return _first(run(values))
    count, parts = len(values[MASK]), []
    for start in range(0, count, size):
        part = {k: v[start:start + size] for k, v in values.items()}
        short = size - len(part[MASK])
        part = {k: torch.cat([v, v[-1:].expand(short, *v.shape[1:])]) for k, v in part.items()} if short else part
        parts.append(_first(run(part)))
    return torch.cat(parts)[:count]


def _first(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def takes_ids(path: Path) -> bool:
    """Is a graph with a tokenizer beside it one over token ids?"""
    return has_tokenizer(path.parent) and any(i.name == IDS for i in onnx_files.read(path).graph.input)


def open_onnx(path: Path, provenance: Provenance) -> Subject:
    """A text classifier; its tokenizer, and where there is one its config.json, lie beside it."""
    around = read_tokenizer(path.parent)
    model = onnx_files.inlined(onnx_files.read(path), path.name)
    beside = path.parent / "config.json"
    config = huggingface.read_json(beside) if beside.is_file() else {}
    names, length, batch = _inputs(model, path.name)
    room = config | ({"max_position_embeddings": length, "model_type": "onnx"} if length else {})
    found = _lookup(model)
    parsed = ParsedGraph("onnx", model, IDS, tuple(o.name for o in model.graph.output))
    network: nn.Module
    if found is not None:
        table = next(t for t in model.graph.initializer if t.name == found.input[0])
        try:
            graph = onnx_files.network(_cut(model, found), path.name)
            weights = torch.from_numpy(numpy_helper.to_array(table).astype(np.float32))
            network = GraphNetwork(graph, weights, (*names, found.output[0]), found.output[0], length, batch,
                                   around.padding)
            subject = adapted(path.name, room, network.eval().requires_grad_(False), around, provenance)
            return replace(subject, graph=parsed, capabilities=subject.capabilities | {Capability.GRAPH})
        except InputError as error:  # an operator that is not read here
            provenance = replace(provenance, notes=(*provenance.notes, f"not read as a graph: {error.problem}"))
    rows = max(around.tokenizer.get_vocab().values(), default=0) + 1
    modality_of(around, rows, length or 512, path.name)
    network = RuntimeNetwork(path, names, length, batch, around.padding, rows)
    subject = adapted(path.name, room, network, around, provenance, detect_activation)
    return replace(subject, graph=parsed, capabilities=frozenset({Capability.QUERY, Capability.GRAPH}))


def _inputs(model: ModelProto, where: str) -> tuple[tuple[str, ...], int | None, int | None]:
    """Names of the inputs, and the length and batch size that they are fixed to."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    odd = next((i for i in inputs if i.name not in (IDS, MASK, TYPES) or i.type.tensor_type.elem_type not in WHOLE),
               None)
    if odd is not None or not inputs:
        raise InputError(f"{where} takes the input {printable(odd.name if odd else 'nothing', 60)!r}.",
                         f"A text classifier takes {IDS}, {MASK} and {TYPES}, as whole numbers.")
    dims = next([d.dim_value or None for d in i.type.tensor_type.shape.dim] for i in inputs if i.name == IDS)
    if len(dims) != 2 or any(d is not None and not 0 < d <= 2**16 for d in dims):
        raise BrokenFile(f"{where} takes ids of shape {dims}.", "They are [texts, tokens].")
    return tuple(i.name for i in inputs), dims[1], dims[0]


def _lookup(model: ModelProto) -> NodeProto | None:
    """The Gather that looks words up."""
    tables = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    same = {IDS}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in same:
            same.add(node.output[0])
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in same \
                and not any(a.name == "axis" and a.i for a in node.attribute):
            return node  # type: ignore[no-any-return]
    return None


def _cut(model: ModelProto, lookup: NodeProto) -> ModelProto:
    """The same graph, given word vectors instead of looking them up."""
    cut = ModelProto()
    cut.CopyFrom(model)
    cut.graph.node.remove(next(n for n in cut.graph.node if n.output[0] == lookup.output[0]))
    read = {name for node in cut.graph.node for name in node.input}
    for table in [t for t in cut.graph.initializer if t.name == lookup.input[0] and t.name not in read]:
        cut.graph.initializer.remove(table)
    for tensor in onnx_files.tensors_of(cut):  # masks: the same numbers, but none that is no weight
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) == 1:
            value = numpy_helper.to_array(tensor)
            if bool(np.isneginf(value).all()):
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(value, LOWEST), tensor.name))
    width = next(t.dims[1] for t in model.graph.initializer if t.name == lookup.input[0])
    cut.graph.input.append(helper.make_tensor_value_info(lookup.output[0], TensorProto.FLOAT, ["n", "length", width]))
    return cut
