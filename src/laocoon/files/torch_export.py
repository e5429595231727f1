"""Archives of torch.export (.pt2): loaded in the child, converted there to ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laocoon.core.errors import MissingExtra


def convert(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """In the child: load the exported program and write model.onnx."""
    import warnings

    import torch

    if find_spec("onnxscript") is None:
        raise MissingExtra("a torch.export archive needs onnxscript.", "pip install 'laocoon[lab]'")
    warnings.simplefilter("ignore")
    program = torch.export.load(arguments["path"])
    torch.onnx.export(program, (), str(folder / "model.onnx"), dynamo=True, external_data=False, optimize=False,
                      verbose=False)
    return {}
