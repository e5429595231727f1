"""The operator graph of a subject's file, kept for detectors that read it without running it."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto


@dataclass(frozen=True, eq=False)
class ParsedGraph:
    """`model` is the ONNX graph as it was in the file, or as the file's own graph was converted to.

    Local functions are inlined and external data is read in; nothing else is changed: a softmax at the end, a fixed
    batch size and quantisation are still there.
    """

    format: str  # of the file: "onnx", "torchscript", "torch.export", "keras", "factory"
    model: ModelProto
    input: str  # name of the graph's image input
    outputs: tuple[str, ...]
