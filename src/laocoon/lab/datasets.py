"""Training data for the lab: scikit-learn's digits (always there) and Parquet sets in a folder of the user's."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from laocoon.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """uint8 images [n, channels, height, width] and labels [n], train and test."""

    name: str
    classes: int
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = (bunch.images / 16 * 255).round().astype(np.uint8)[:, None]
    a, b, y, z = train_test_split(images, bunch.target, test_size=0.35, random_state=0, stratify=bunch.target)
    return Dataset("digits", 10, *(torch.as_tensor(v) for v in (a, y, b, z)))


def _parquet(path: Path) -> tuple[Tensor, Tensor]:
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(path)
    image = next((n for n in ("image", "img") if n in table.column_names), table.column_names[0])
    label = next((n for n in ("label", "labels", "class") if n in table.column_names), table.column_names[-1])
    pictures = [np.asarray(Image.open(io.BytesIO(v["bytes"]))) for v in table[image].to_pylist()]
    stacked = np.stack([p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in pictures])
    return torch.as_tensor(stacked), torch.as_tensor(table[label].to_numpy(), dtype=torch.long)


def load(name: str, root: Path | None, cache: Path) -> Dataset:
    """A data set by name, or some of its classes (`mnist:3,8`); decoded Parquet is cached as `.npz` under `cache`."""
    name, _, some = name.partition(":")
    whole = _digits() if name == "digits" else _cached(name, root, cache)
    return of_classes(whole, some) if some else whole


def of_classes(whole: Dataset, some: str) -> Dataset:
    """The samples of some classes, which are numbered anew in the order in which they are named."""
    try:
        chosen = [int(c) for c in some.split(",")]
    except ValueError:
        chosen = []
    if len(set(chosen)) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(whole.classes)):
        raise InputError(f"{whole.name}:{some} does not name two or more different classes of {whole.name}.",
                         f"Write for instance {whole.name}:0,1 with classes from 0 to {whole.classes - 1}.")
    number = torch.full((whole.classes,), -1)
    number[chosen] = torch.arange(len(chosen))
    parts = []
    for inputs, labels in ((whole.train_inputs, whole.train_labels), (whole.test_inputs, whole.test_labels)):
        kept = number[labels] >= 0
        parts += [inputs[kept], number[labels[kept]]]
    return Dataset(f"{whole.name}:{some}", len(chosen), *parts)


def _cached(name: str, root: Path | None, cache: Path) -> Dataset:
    cached = cache / f"{name}.npz"
    if not cached.exists():
        if root is None or not (root / name).is_dir():
            raise InputError(f"data set {name!r} is not in {root}.",
                             "Pass the folder that holds it with --data-root, or choose digits.")
        arrays = {}
        for split in ("train", "test"):
            inputs, labels = _parquet(root / name / f"{split}.parquet")
            arrays[f"{split}_inputs"], arrays[f"{split}_labels"] = inputs.numpy(), labels.numpy()
        cache.mkdir(parents=True, exist_ok=True)
        part = cached.with_name(f"{name}.{os.getpid()}.part.npz")  # several processes may want it at once
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(cached)
    with np.load(cached, allow_pickle=False) as data:
        parts = {k: torch.as_tensor(data[k]) for k in data.files}
    return Dataset(name, int(parts["train_labels"].max()) + 1, **parts)
