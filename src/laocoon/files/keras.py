"""Keras files (.keras and .h5): an allow-list first (`keras_config`), then Keras 3 on torch in the child, then ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laocoon.core.errors import BrokenFile, MissingExtra
from laocoon.files import keras_config
from laocoon.files.archives import member_ending, opened, read_member
from laocoon.files.danger import Danger
from laocoon.files.sandbox import Limits, confined
from laocoon.files.wording import first_line, printable

EXTRA = "pip install 'laocoon[keras]'"


def inspect(path: Path, kind: str) -> list[Danger]:
    """Layers that are not on the allow-list, and HDF5 data that lies in other files."""
    found: list[Danger] = []
    if kind == "keras":
        with opened(path, path.name) as archive:
            names = archive.namelist()
            member = member_ending(names, "config.json")
            text = read_member(archive, member, keras_config.LARGEST_CONFIG) if member else b"null"
            if any(n.endswith((".pkl", ".pickle", ".py")) for n in names):
                found.append(Danger("keras-code", "the archive brings code or pickles", tuple(
                    printable(n) for n in names if n.endswith((".pkl", ".pickle", ".py")))[:8]))
    else:
        _need("h5py")
        with confined("laocoon.files.keras_config:read_h5", {"path": str(path.resolve())}, what=f"reading {path.name}",
                      readable=(path,), limits=Limits(seconds=60, memory=2**31, written=2**28)) as result:
            text = (result.folder / "config.json").read_bytes()
            outside = tuple(printable(o) for o in result.answer.get("outside", ()))
        if outside:
            found.append(Danger("external-data", "the HDF5 file reads other files or follows links", outside))
    try:
        config = keras_config.parsed(text)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path.name} has a configuration that is not JSON ({first_line(error, 80)}).",
                         "It is truncated or damaged.") from error
    if not isinstance(config, dict):
        raise BrokenFile(f"{path.name} holds no Keras model, at most its weights.", "Save the whole model.")
    bad = keras_config.refused(config)
    if bad:
        found.append(Danger("keras-layers", "the model names layers or functions that are not on the allow-list",
                            tuple(printable(b, 120) for b in bad[:16]),
                            "Ask for the model with standard layers only, or as ONNX."))
    return found


def _need(*modules: str) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingExtra(f"a Keras model needs {' and '.join(missing)}.", EXTRA)


def need_keras() -> None:
    _need("keras", "h5py")


def convert(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """In the child: load with Keras 3 on torch, find the input, write model.onnx."""
    import os

    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    from laocoon.core.errors import InputError
    from laocoon.files.to_onnx import export

    link = folder / ("model.keras" if arguments["kind"] == "keras" else "model.h5")  # Keras goes by the suffix
    link.symlink_to(arguments["path"])
    model = keras.saving.load_model(link, compile=False, safe_mode=True)
    shape = model.input_shape
    if isinstance(shape, list | dict) or not shape or len(shape) not in (2, 3, 4):
        raise InputError(f"the Keras model takes inputs of shape {shape}.", "An image classifier takes one image.")
    size = arguments.get("size")
    known = list(shape[1:])
    if len(known) == 3 and None in known[:2]:
        if not size:
            raise InputError(
                "the Keras model takes images of any size.", "Pass the height and width that it was trained on."
            )
        known[:2] = size
    if None in known:
        known = [3 if v is None else v for v in known]
    model.eval()
    example = torch.rand(2, *known)
    export(model, example, folder / "model.onnx")
    return {"shape": known}
