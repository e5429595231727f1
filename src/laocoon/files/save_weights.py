"""Changed weights written into a copy of the file that they came from, under its own keys and in its own types."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files import huggingface, safetensors, save_onnx, state_dict
from laocoon.files.wording import printable
from laocoon.modalities.image import ImageAdapter
from laocoon.modalities.raw import EachBatch
from laocoon.modalities.tabular_model import TableAdapter

# Weights in forms that are not opened here: in a copy of a folder they would still be those from before the repair.
OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".tflite", ".ot",
                           ".safetensors", ".gguf", ".keras", ".pb", ".data", ".npz"})
REMEDY = "Pass --format onnx: the network is then exported."


def core_of(subject: Subject) -> nn.Module:
    """The network as its file has it, without what makes it uniform."""
    module = subject.module.core if isinstance(subject.module, ImageAdapter | TableAdapter) else subject.module
    return module.module if isinstance(module, EachBatch) else module


def named(subject: Subject) -> dict[str, Tensor]:
    """Float tensors of a subject's network by name. A graph that was traced has the names of its source's modules."""
    network = save_onnx.graph_module(subject.module) or core_of(subject)
    return {k: v.detach().cpu() for k, v in network.state_dict().items() if v.is_floating_point()}


def read(place: Path, kind: str) -> dict[str, Tensor]:
    """All tensors of a file or folder of weights, as they are there."""
    if kind == "huggingface":
        state: dict[str, Tensor] = {}
        for file in huggingface.weights_of(place):
            state.update(safetensors.read(file))
        return state
    return safetensors.read(place) if kind == "safetensors" else state_dict.read(place)


def keys(names: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """For each name the key in the file: the same name, else the one tensor with the same numbers."""
    short = state_dict.stripped(state, names)
    core = {k.removeprefix("network."): k for k in names}  # how a network of transformers is wrapped here
    by_core = {core[k]: key for k, key in short.items() if k in core}
    found = {}
    for name, value in names.items():
        key = short.get(name, by_core.get(name, ""))
        if not key or not _same(state[key], value):
            alike = [k for k, v in state.items() if _same(v, value)]
            if len(alike) != 1:
                raise InputError(f"{where}: weight {printable(name, 80)!r} has no tensor of its own in the file.",
                                 REMEDY)
            key = alike[0]
        found[name] = key
    return found


def _same(stored: Tensor, value: Tensor) -> bool:
    return stored.shape == value.shape and stored.is_floating_point() and torch.equal(stored.float(), value.float())


def replaced(state: Mapping[str, Tensor], where: Mapping[str, str], before: Mapping[str, Tensor],
             after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New values for the keys whose tensors a repair changed, in the types that the file has them in."""
    new: dict[str, Tensor] = {}
    for name, value in after.items():
        if name not in before or torch.equal(before[name], value):
            continue
        if name not in where:
            raise InputError(f"weight {printable(name, 80)!r} was changed, and is not in the file.", REMEDY)
        key = where[name]
        fresh = value.to(state[key].dtype).contiguous()
        if key in new and not torch.equal(new[key], fresh):
            raise InputError(f"tensor {printable(key, 80)!r} is shared by layers that were changed apart.", REMEDY)
        new[key] = fresh
    return new


def write_safetensors(origin: Path, target: Path, new: Mapping[str, Tensor], note: str) -> None:
    """The tensors of one file with some replaced; its metadata with the note."""
    with safe_open(str(origin), framework="pt") as file:  # type: ignore[no-untyped-call]
        metadata = dict(file.metadata() or {})
    state = safetensors.read(origin)
    state.update({k: v for k, v in new.items() if k in state})
    # What `laocoon train` wrote under the usual key says how the network is built again.
    safetensors.write(target, state, {**metadata, "laocoon-note" if "laocoon" in metadata else "laocoon": note})


def write_state_dict(origin: Path, target: Path, new: Mapping[str, Tensor], note: str) -> None:
    """The whole checkpoint with some tensors replaced. The note is the archive's comment: a key would be a weight."""
    loaded = state_dict.load(origin)
    holder = state_dict.holder_of(loaded, origin.name)
    real = {str(k): k for k in holder}
    for key, value in new.items():
        holder[real[key]] = value  # type: ignore[index]
    torch.save(loaded, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.comment = note.encode()


def write_folder(origin: Path, target: Path, new: Mapping[str, Tensor], note: str) -> tuple[str, ...]:
    """A Hugging Face folder with new weights. Says which other weights were left out."""
    files = huggingface.weights_of(origin)
    left = []
    for entry in sorted(origin.iterdir()):
        if entry in files:
            write_safetensors(entry, target / entry.name, new, note)
        elif not entry.is_file() or entry.suffix in OTHER_WEIGHTS or _index_of_others(entry.name):
            left.append(entry.name)
        else:
            shutil.copyfile(entry, target / entry.name)  # what a link of the hub's cache points to, not the link
    (target / "laocoon.json").write_text(json.dumps({"laocoon": note}) + "\n")
    names = ", ".join(printable(n, 60) for n in left[:8])
    return (f"left out, because they may hold the weights from before: {names}",) if left else ()


def _index_of_others(name: str) -> bool:
    return name.endswith(".index.json") and name != "model.safetensors.index.json"
