"""A scikit-learn classifier over a table as a black box: rows in, logits out, nothing else to be seen."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files.wording import first_line, printable
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.tabular_model import MOST_COLUMNS, numbered

SMALLEST = 1e-7
ROWS = 4  # with which an estimator is tried
_WAYS = ("predict_proba", "decision_function", "predict")
_FAILURES = (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, NotImplementedError,
             AssertionError, OverflowError, ZeroDivisionError, MemoryError)


class Estimator(nn.Module):
    """Logarithms of probabilities, margins, or a score of 1 for the class that is named."""

    digest: Tensor

    def __init__(self, estimator: Any, way: str, digest: str) -> None:
        super().__init__()
        self.estimator, self.way = estimator, way
        self.named = {c: i for i, c in enumerate(np.asarray(estimator.classes_).tolist())}
        # Weights are out of sight: this tells one estimator from another.
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(digest or "00")), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().cpu().double().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that columns have no names here
            said = np.asarray(getattr(self.estimator, self.way)(rows))
        if self.way == "predict":
            places = torch.tensor([self.named[c] for c in said.tolist()])
            return nn.functional.one_hot(places, len(self.named)).float().to(x.device)
        values = torch.as_tensor(said, dtype=torch.float32)
        if self.way == "predict_proba":
            values = values.clamp_min(SMALLEST).log()
        elif values.dim() == 1:  # the margin of the second class against the first
            values = torch.stack([-values / 2, values / 2], 1)
        return values.to(x.device)


def adapted(estimator: Any, columns: tuple[str, ...] | None, provenance: Provenance) -> Subject:
    """A Subject that can only be asked; `columns` name what the archive does not."""
    where, kind = provenance.path, type(estimator).__name__
    classes, width = getattr(estimator, "classes_", None), getattr(estimator, "n_features_in_", None)
    if classes is None or np.ndim(classes) != 1 or len(classes) < 2:
        raise InputError(f"{where} holds a {printable(kind, 60)} that names no classes.",
                         "Only fitted classifiers are examined.")
    if not isinstance(width, int | np.integer) or not 1 <= width <= MOST_COLUMNS:
        raise InputError(f"{where} holds a {printable(kind, 60)} that does not say how many columns it takes.",
                         "Fit it on a table of numbers.")
    told = tuple(str(n) for n in getattr(estimator, "feature_names_in_", ()))
    names = columns or (told if len(told) == width and len(set(told)) == width else numbered(int(width)))
    if len(names) != width:
        raise InputError(f"{where} takes {width} columns, but {len(names)} are named.", "Name each once, in order.")
    way = next(w for w in _WAYS if hasattr(estimator, w))
    module = Estimator(estimator, way, provenance.sha256)
    try:
        answer = module(torch.zeros(ROWS, int(width)))
    except _FAILURES as error:
        raise BrokenFile(f"{where}: the {printable(kind, 60)} fails on rows of {width} numbers "
                         f"({first_line(error, 120)}).",
                         "It must take numbers, with categories as codes; save it with the installed scikit-learn."
                         ) from error
    if tuple(answer.shape) != (ROWS, len(classes)) or not bool(torch.isfinite(answer).all()):
        raise BrokenFile(f"{where} answers {list(answer.shape)} to {ROWS} rows of {len(classes)} classes.",
                         "Only classifiers of one label are examined.")
    labels = [str(c) for c in np.asarray(classes).tolist()]
    capabilities = {Capability.QUERY, *({Capability.HARD_LABEL} if way == "predict" else ())}
    notes = (*provenance.notes, f"a {kind} of scikit-learn: it can only be asked ({way})")
    return Subject(module, Tabular.unknown(names), len(classes), (int(width),), frozenset(capabilities),
                   replace(provenance, format="skops", notes=notes),
                   () if labels == [str(i) for i in range(len(labels))] else tuple(printable(c, 80) for c in labels))
