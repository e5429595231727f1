"""What a defender may legitimately see. No field for the truth, anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.context import Context
from laocoon.core.subject import Modality, Subject


@dataclass(frozen=True, eq=False)
class Samples:
    """Clean samples in canonical form: inputs [n, …], labels [n] (given, or the model's own predictions)."""

    inputs: Tensor
    labels: Tensor
    labelled: bool = True  # False: `labels` are the model's predictions
    notes: tuple[str, ...] = ()  # what was assumed, skipped or missing when they were read
    class_names: tuple[str, ...] = ()  # of the labels, where the data names them; for the reader only
    modality: Modality | None = None  # what the data tell of inputs and a model does not: a table's columns

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: object) -> Samples:
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))  # type: ignore[call-overload]


def informed(subject: Subject, samples: Samples | None) -> Subject:
    """The subject, knowing what the data tell of its inputs."""
    known = None if samples is None else samples.modality
    return subject if known is None else replace(subject, modality=known)


@dataclass(frozen=True, eq=False)
class ModelCase:
    """A model under examination. `fit` is what triggers are fitted on, `held` what they are judged on."""

    subject: Subject
    fit: Samples | None = None
    held: Samples | None = None
    candidates: tuple[Candidate, ...] = field(default=())
    graph: object | None = None

    @property
    def modality(self) -> str:
        return self.subject.modality.name


@dataclass(frozen=True, eq=False)
class DataCase:
    """A training set that may hold poison. `suspects.labels` are those that were delivered with it.

    `subject` was trained on the suspects, by the user or for the purpose; `trusted` samples are known to be clean from
    elsewhere; `untrained` makes a new network of the architecture that will be trained, for methods that train.
    """

    suspects: Samples
    classes: int
    subject: Subject | None = None
    trusted: Samples | None = None
    untrained: Callable[[Context], Subject] | None = None
    modality: str = "image"
