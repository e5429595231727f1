"""Read an operator graph from whatever the files floor hands over. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto
from torch.export import ExportedProgram

from laocoon.core.errors import NotApplicable
from laocoon.files.graph import ParsedGraph
from laocoon.recipes.graphs_export import from_export
from laocoon.recipes.graphs_onnx import from_onnx
from laocoon.recipes.graphs_script import from_torchscript
from laocoon.recipes.operator_graph import Graph


def read_graph(source: object) -> Graph:
    """From a `ParsedGraph`, a `ModelProto`, an `ExportedProgram`, or the code texts of a TorchScript archive.

    The last is a mapping from paths in the archive ("code/__torch__.py") to text.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, ParsedGraph):
        return from_onnx(source.model, source.format)
    if isinstance(source, ModelProto):
        return from_onnx(source)
    if isinstance(source, ExportedProgram):
        return from_export(source)
    if isinstance(source, Mapping) and all(isinstance(v, str) for v in source.values()):
        return from_torchscript(source)
    raise NotApplicable(f"a graph of type {type(source).__name__} cannot be read.")
