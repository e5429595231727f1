"""TorchScript: its code is checked as text, then run only in the child, where it is converted to ONNX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laocoon.files.archives import opened, read_member
from laocoon.files.danger import Danger
from laocoon.files.wording import printable

LARGEST_CODE = 64 * 2**20
_FILES = re.compile(r"\b(?:torch|ops\.aten|aten)[.:]+(from_file|save|load|_open_\w+|set_num_threads_\w+)\b")
_SPACES = re.compile(r"(?<![\w.])ops\.(\w+)\.(\w+)")  # not a class of the module torchvision.ops.misc
_KNOWN_SPACES = frozenset({"aten", "prim", "prims", "quantized", "torchvision", "mkldnn_prepacked", "prepacked"})
_REMOTE = re.compile(r"\b(rpc_async|rpc_sync|rpc_remote|dist_rpc|c10d|torch\.classes\.dist_\w+)\b")


def inspect(path: Path) -> list[Danger]:
    """Operators in the script's code that touch files or the network, or that come from another library."""
    files: list[str] = []
    foreign: list[str] = []
    with opened(path, path.name) as archive:
        left = LARGEST_CODE
        for info in archive.infolist():
            if not re.search(r"(^|/)code/.*\.py$", info.filename):
                continue
            code = read_member(archive, info.filename, left)
            left -= len(code)
            text, where = code.decode("utf-8", "replace"), printable(info.filename, 60)
            files += [f"{m.group(0)} in {where}" for m in _FILES.finditer(text)]
            files += [f"{m.group(0)} in {where}" for m in _REMOTE.finditer(text)]
            foreign += [f"{m.group(0)} in {where}" for m in _SPACES.finditer(text) if m.group(1) not in _KNOWN_SPACES]
    found = []
    if files:
        found.append(Danger("script-access", "the TorchScript code reads or writes files or uses the network",
                            tuple(dict.fromkeys(files))[:16]))
    if foreign:
        found.append(Danger("script-foreign-operators", "the TorchScript code calls operators of other libraries",
                            tuple(dict.fromkeys(foreign))[:16], "Ask for the model as ONNX.", 0.6))
    return found


def convert(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """In the child: load the script, find an input that it takes, write model.onnx."""
    import torch

    from laocoon.files.to_onnx import example_for, export

    script = torch.jit.load(arguments["path"], map_location="cpu").eval()
    for tensor in (*script.parameters(), *script.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float64):
            tensor.data = tensor.data.float()
    shapes = {name: tuple(tensor.shape) for name, tensor in script.state_dict().items()}
    example = example_for(script, shapes, arguments)
    export(script, example, folder / "model.onnx")
    return {"shape": list(example.shape[1:])}
