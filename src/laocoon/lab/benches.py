"""The benches by modality. Each module offers `bench(root)`; one whose libraries are missing hurts nobody else."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from laocoon.core.errors import InputError
from laocoon.lab.specimens import Bench

MODULES = {"text": "text_bench", "tabular": "table_bench", "image_encoder": "encoder_bench"}


def bench(modality: str, root: Path | None) -> Bench:
    """root: the folder with data sets; None for what is always there."""
    if modality not in MODULES:
        raise InputError(f"there is no bench for {modality!r}.", f"It is one of {', '.join(MODULES)}.")
    if root is not None and not root.is_dir():
        raise InputError(f"{root} is no folder.", "Pass the folder that holds the data sets, one folder each.")
    return cast(Bench, import_module(f"laocoon.lab.{MODULES[modality]}").bench(root))
