"""Write a victim as ONNX, marked as what it is."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laocoon.core.errors import MissingExtra


def to_onnx(module: nn.Module, shape: tuple[int, ...], path: Path, facts: Mapping[str, Any],
            told: Mapping[str, str] | None = None) -> None:
    """Export with a dynamic batch; `facts` (the truth) go into the file's metadata, and so does what else is `told`.

    Inputs are float32, images NCHW in [0, 1], named `input`; outputs are raw class scores, named `logits`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (the exporter needs it and says so less clearly)
    except ImportError:
        raise MissingExtra("writing ONNX needs onnxscript.", "pip install 'laocoon[lab]'") from None
    module = module.eval().to("cpu")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = Path(folder) / "model.onnx"
        batch = torch.export.Dim("batch", min=1, max=65536)
        torch.onnx.export(module, (torch.rand(2, *shape),), raw, input_names=["input"], output_names=["logits"],
                          dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False)
        model = onnx.load(raw)
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:  # exporters leave source paths in the nodes
        del node.metadata_props[:]
        node.doc_string = ""
    for key, value in {"laocoon": json.dumps(dict(facts), sort_keys=True), **(told or {})}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
