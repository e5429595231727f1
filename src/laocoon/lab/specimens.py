"""Zoos of modalities whose models train in seconds: what a bench for one of them offers.

Nothing is kept but rows: a specimen is made again from its specification wherever it is needed. Three disjoint splits,
as in `lab/zoo.py`: `fusion` (what scales are fitted on, and where settings are chosen), `calibration` (the null),
`sealed` (the test, never looked at while tuning).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject

Split = Literal["fusion", "calibration", "sealed"]
CLEAN = "clean"


@dataclass(frozen=True)
class Specification:
    """Everything that determines a specimen."""

    modality: str
    data: str
    architecture: str
    kind: str  # CLEAN, or the name of what is planted, as tables say it
    seed: int
    split: Split

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of the specification and the settings (of recipe and attack) that it leaves open."""
        whole = json.dumps([asdict(self), settings], sort_keys=True, default=str)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Made:
    """A specimen. Only a judge looks at `trigger` and `poisoned`."""

    specification: Specification
    subject: Subject
    given: Samples  # clean, disjoint from `train` and `test`: what a defender has
    test: Samples  # what is judged on
    train: Samples  # what the victim trained on, poison included
    poisoned: Tensor  # indices of changed samples in `train`, [k]
    trigger: Candidate | None  # the truth; None for clean models
    success: float  # of the attack on `test`; NaN for clean models
    accuracy: float  # clean
    plan: Plan  # what the attacker started from


class Bench(Protocol):
    """A modality's specimens. One file each in the lab."""

    @property
    def modality(self) -> str: ...

    @property
    def core(self) -> tuple[str, ...]:
        """Kinds whose power a NO_EVIDENCE rests on."""

    @property
    def weights(self) -> Mapping[str, float]:
        """How much each rule counts in the fusion; fixed on the fusion split and by nothing else."""

    def attack(self, kind: str) -> Attack | None:
        """What is planted; None for CLEAN."""

    def settings(self, specification: Specification) -> Mapping[str, Any]:
        """Recipe and attack parameters, JSON-able: changing one makes another specimen."""

    def specifications(self, split: Split) -> Iterator[Specification]:
        """Of a split, clean and planted interleaved, so that a partial build is balanced."""

    def made(self, specification: Specification) -> Made:
        """Trained now; the same each time."""

    def recovered(self, made: Made, candidate: Candidate) -> bool:
        """Does the recovered trigger name a part of the true one: a token, a column?"""
