"""A state dict saved by torch: scanned first (`pickles`, `archives`), then loaded with weights_only."""

from __future__ import annotations

import argparse
import importlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.wording import first_line, printable

# Harmless things that training scripts leave beside the weights; what they rebuild holds data only.
_BESIDE = [np.dtype, np.ndarray, argparse.Namespace, *(type(np.dtype(k)) for k in (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"))]
_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "netC", "params", "weights",
          "module", "ema", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that has passed the static checks, floats as float32."""
    return tensors_of(load(path), path.name)


def load(path: Path) -> Any:
    """All that a checkpoint that has passed the static checks holds."""
    arrays = importlib.import_module("numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray")
    rebuild = [arrays.scalar, arrays._reconstruct]
    try:
        with torch.serialization.safe_globals([*_BESIDE, *rebuild]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError,
            struct.error, zipfile.BadZipFile, OSError, OverflowError, MemoryError) as error:
        raise BrokenFile(f"{path.name} cannot be read as a state dict ({first_line(error, 140)}).",
                         "It is truncated or damaged, or was not written by torch.save.") from error


def tensors_of(loaded: Any, name: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint: itself, or under one of the usual keys."""
    return {str(k): v for k, v in holder_of(loaded, name).items() if isinstance(v, Tensor)}


def holder_of(loaded: Any, name: str) -> Mapping[Any, Any]:
    """The mapping in a checkpoint that holds the tensors of its state dict."""
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        found = [v for v in loaded.values() if isinstance(v, Tensor)]
        if found and len(found) * 2 >= len(loaded):
            return loaded
        inner = next((loaded[k] for k in _USUAL if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    keys = (
        ", ".join(printable(k, 30) for k in list(loaded)[:6]) if isinstance(loaded, Mapping) else type(loaded).__name__
    )
    raise InputError(
        f"{name} holds no state dict (it has: {keys}).", "Save model.state_dict() and give its architecture."
    )


def stripped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys without the prefixes that wrappers put before all of them, to the keys as they are."""
    names = {key: key for key in state}
    for _ in range(3):
        common = [p for p in _PREFIXES if all(k.startswith(p) for k in names)]
        if not common or set(names) & set(wanted):
            break
        names = {k[len(common[0]):]: key for k, key in names.items()}
    return names


def fitted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state dict under the names that the architecture uses; errors say what is missing, left over or misshapen."""
    best = {short: state[key] for short, key in stripped(state, wanted).items()}
    ignorable = {k for k in wanted if k.endswith("num_batches_tracked")}
    missing = [k for k in wanted if k not in best and k not in ignorable]
    extra = [
        k for k in best if k not in wanted and not k.endswith(("total_ops", "total_params", "num_batches_tracked"))
    ]
    shaped = [f"{k} {list(best[k].shape)} instead of {list(wanted[k].shape)}" for k in wanted
              if k in best and best[k].shape != wanted[k].shape]
    # Whole numbers without their scale are other weights; as they stand they would be examined as huge floats.
    whole = [f"{k} of {str(best[k].dtype).removeprefix('torch.')}" for k in wanted
             if k in best and wanted[k].is_floating_point() and not best[k].is_floating_point()]
    problems = [
        f"{len(items)} {what}: {', '.join(printable(i, 80) for i in items[:3])}{' …' if len(items) > 3 else ''}"
        for what, items in (("missing", missing), ("not in the architecture", extra), ("of another shape", shaped),
                            ("whole numbers without a scale", whole))
        if items
    ]
    if problems:
        raise InputError(f"{name} does not fit the architecture ({'; '.join(problems)}).",
                         "Export the model with its scales, to ONNX for instance, or dequantise the weights."
                         if whole and not (missing or extra or shaped) else
                         "Give the architecture that these weights were trained with.")
    return {k: (v.float() if v.is_floating_point() else v) for k, v in best.items() if k in wanted}
