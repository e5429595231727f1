"""What a data set offers before a single picture is decoded, and how its pictures are then read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_decode import Frame

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataOptions:
    """How clean samples are to be read; None: found out from the data."""

    image_key: str | None = None  # name of the Parquet column or the array that holds the images
    text_column: str | None = None  # name of the column that holds the texts
    label_key: str | None = None  # name of the column or the array that holds the labels
    split: str | None = None  # "train", "validation" or "test", where the data set has several
    data_range: str | None = None  # of arrays: "0-1", "0-255", "0-65535" or "-1-1"
    data_layout: str | None = None  # of arrays: "NCHW" or "NHWC"
    fit: str = "stretch"  # of pictures of another shape: "stretch", or "crop" to keep the proportions
    fixed: tuple[str, ...] | None = None  # columns of a table that an attacker cannot touch
    drop: tuple[str, ...] | None = None  # columns of a table that the model does not take
    first_label: int = 0  # number of the first class in labels and folder names, 0 or 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("data_range", (None, "0-1", "0-255", "0-65535", "-1-1")),
            ("data_layout", (None, "NCHW", "NHWC")),
            ("fit", ("stretch", "crop")),
            ("first_label", (0, 1)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}.",
                    f"It is one of {', '.join(str(a) for a in allowed if a is not None)}.",
                )


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture, or why it could not be decoded."""

    row: int
    image: Tensor | None
    broken: BrokenFile | None = None


Read = Callable[[Sequence[int], Frame], Iterator[Picture]]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: labels are known, pictures are decoded on demand, in any number of passes."""

    count: int
    labels: Labels | None  # [count]; indices into `names` where there are names, else numbers from the data
    names: tuple[str, ...]
    read: Read  # yields a Picture for each row asked for, in an order of its own
    named_by: str = "labels"  # what the labels come from, for messages: "folders", "column label" …
    notes: tuple[str, ...] = ()
    stream: Callable[[Frame], Iterator[Picture]] | None = None  # every row in one pass, where `read` would make several
    paths: Sequence[Path] = ()  # of the pictures, where each is a file
