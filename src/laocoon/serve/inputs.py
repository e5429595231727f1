"""A model's inputs on the wire: images and tables as numbers, texts as bytes. Bounded before they are unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.core.subject import Modality
from laocoon.files.tensors import Named
from laocoon.modalities.accepted import SLACK, blank, canonical
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text

LONGEST_TEXT = 65536  # bytes of one text
_JSON_NUMBER = 32  # bytes that a float may take as JSON, its comma included
_JSON_BYTE = 6  # bytes that one byte of a text may take as JSON, escaped


class Inputs(Protocol):
    """How one modality comes in."""

    @property
    def datatypes(self) -> tuple[str, ...]:
        """Of the protocol, the first is the usual one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample on the wire."""

    @property
    def largest(self) -> int:
        """Bytes that one sample may take as JSON."""

    def read(self, tensor: Named) -> Tensor:
        """The canonical batch; InputError where the values are not what the model takes."""

    def blank(self) -> Tensor:
        """One empty sample, canonical."""


@dataclass(frozen=True)
class Pixels:
    """Images [channels, height, width] in [0, 1]."""

    shape: tuple[int, ...]
    datatypes: tuple[str, ...] = ("FP32",)

    @property
    def largest(self) -> int:
        return _JSON_NUMBER * int(np.prod(self.shape))

    def read(self, tensor: Named) -> Tensor:
        low, high = float(tensor.array.min()), float(tensor.array.max())
        if not (low >= -SLACK and high <= 1 + SLACK):  # also where either is NaN
            raise InputError(f"the input holds values from {low:.4g} to {high:.4g}.",
                             "They must be finite and in [0, 1].")
        return torch.from_numpy(np.clip(np.asarray(tensor.array, np.float32), 0, 1))

    def blank(self) -> Tensor:
        return torch.zeros(1, *self.shape)


@dataclass(frozen=True, eq=False)
class Words:
    """Texts in UTF-8; they are cut into tokens here, as the guarded model's tokenizer does."""

    text: Text
    datatypes: tuple[str, ...] = ("BYTES",)
    shape: tuple[int, ...] = ()
    largest: int = _JSON_BYTE * LONGEST_TEXT

    def read(self, tensor: Named) -> Tensor:
        texts = []
        for number, raw in enumerate(tensor.array.ravel().tolist()):
            if len(raw) > LONGEST_TEXT:
                raise InputError(f"text {number} has {len(raw)} bytes.", f"At most {LONGEST_TEXT} are taken.")
            try:
                texts.append(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"text {number} is not UTF-8 (byte {error.start}).", "Send texts in UTF-8.") from None
        return self.text.encode(texts)

    def blank(self) -> Tensor:
        return blank((self.text.length,), self.text, torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows of a table, in the columns' own units."""

    table: Tabular
    shape: tuple[int, ...]
    datatypes: tuple[str, ...] = ("FP32", "FP64", "INT64", "INT32")

    @property
    def largest(self) -> int:
        return _JSON_NUMBER * int(np.prod(self.shape))

    def read(self, tensor: Named) -> Tensor:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            return canonical(torch.from_numpy(np.array(tensor.array, np.float32)), self.table)

    def blank(self) -> Tensor:
        return torch.zeros(1, *self.shape)


def inputs_of(modality: Modality, shape: tuple[int, ...]) -> Inputs:
    """How the inputs of a model come in; InputError where nobody has said how."""
    if isinstance(modality, Text):
        return Words(modality)
    if isinstance(modality, Tabular):
        return Cells(modality, shape)
    if modality.name != "image":
        raise InputError(f"the model takes {modality.name}.", "Classifiers of images, texts and tables are served.")
    return Pixels(shape)
