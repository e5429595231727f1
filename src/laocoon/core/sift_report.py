"""The answer of a sift: is this training set poisoned, and which samples. Plain data but for the table of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from laocoon.core.report import Calibration, Power, Report, Verdict, _plain

KEPT, POISON, MISLABELLED = 0, 1, 2  # what is made of a sample
KINDS = ("kept", "poison", "mislabelled")
MOST_LISTED = 10_000  # samples named one by one in the JSON; the Parquet table holds all


@dataclass(frozen=True)
class Suspect:
    """One sample that is not kept."""

    row: int  # its place in the data, 0 first
    name: str  # its file, or its row in words
    kind: str  # "poison" or "mislabelled"
    label: int  # as delivered
    prediction: int  # the model's
    nearest: int  # class whose samples lie nearest in feature space
    suspicion: float  # higher is more suspicious: −log₁₀ of the q-value
    p_value: float
    q_value: float
    scores: Mapping[str, float] = field(default_factory=dict)  # of each method, in units of the bulk's spread


@dataclass(frozen=True)
class ClassRow:
    """What was found among the samples of one label."""

    label: int
    samples: int
    poison: int
    mislabelled: int
    accuracy: float | None  # share that the model answers as labelled
    score: float  # largest suspicion


@dataclass(frozen=True)
class TriggerFound:
    """A trigger that suspected samples share, stamped on samples of other labels."""

    label: int  # to which stamped samples go; −1 where each goes somewhere else
    family: str
    size: float
    unit: str
    success: float  # share of the stamped samples that go there, or that go elsewhere than before
    low: float
    high: float
    samples: int
    natural_control: float  # the same of a control of the same size: other content in its place
    shown: str = ""  # in words, where its family has any: the tokens, the columns with their values


@dataclass(frozen=True, eq=False)
class SampleTable:
    """One row a sample, in the order of the data; what was not scored by the methods themselves says so."""

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]  # of the model in the label that was delivered
    nearest: npt.NDArray[np.int64]
    suspicion: npt.NDArray[np.float32]
    p_values: npt.NDArray[np.float64]
    q_values: npt.NDArray[np.float64]
    kinds: npt.NDArray[np.int8]
    scored: npt.NDArray[np.bool_]  # False: judged by its neighbours among those that the methods saw
    methods: Mapping[str, npt.NDArray[np.float32]]  # standardised scores, NaN where not scored

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Rows to train on."""
        found: npt.NDArray[np.int64] = self.rows[self.kinds == KEPT]
        return found


@dataclass(frozen=True, eq=False)
class Exhibits:
    """What a page shows: suspects as pictures or in words, a map of the features. Not in the JSON."""

    pictures: Any = None  # [k, channels, height, width] of the first suspects that are poison
    clean: Any = None  # [k, …] of their nearest unsuspected samples
    oddities: Any = None  # of the first mislabelled
    poison_rows: tuple[int, ...] = ()  # of the first pictures, in the data
    odd_rows: tuple[int, ...] = ()
    points: Any = None  # [m, 2] principal components of the features, of the most suspected label
    point_kinds: Any = None  # [m]
    candidate: Any = None  # the trigger, as a Candidate
    stamped: Any = None  # clean pictures to stamp it on
    words: tuple[str, ...] = ()  # of the first suspects that are poison, where inputs are told in words
    clean_words: tuple[str, ...] = ()
    odd_words: tuple[str, ...] = ()
    stamped_words: tuple[tuple[str, str], ...] = ()  # clean samples, each with what the trigger makes of it


@dataclass(frozen=True)
class SiftReport:
    """The answer. `to_dict` is the public JSON; the table of samples goes to Parquet."""

    verdict: Verdict
    reason: str
    p_value: float | None
    score: float
    alpha: float
    fdr: float
    poison: int
    mislabelled: int
    kept: int
    suspects: tuple[Suspect, ...]  # the most suspicious first, at most MOST_LISTED
    classes: tuple[ClassRow, ...]
    trigger: TriggerFound | None
    statistics: Mapping[str, float]
    contributions: Mapping[str, float]  # rule to its standardised value, the largest first
    power: tuple[Power, ...]
    calibration: Calibration | None
    reports: tuple[Report, ...]
    examined: tuple[str, ...]
    skipped: Mapping[str, str]
    misses: Mapping[str, str]
    data: Mapping[str, Any]  # path, digest, samples, classes, shape, notes …
    model: Mapping[str, Any]  # path, or how the proxy was trained
    null: str  # what the p-values of samples rest on
    spent: float
    seconds: float
    seed: int
    version: str
    command: str = ""
    table: SampleTable | None = field(default=None, repr=False, compare=False)
    exhibits: Exhibits | None = field(default=None, repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """0 no evidence, 1 findings, 3 inconclusive (2 is for usage errors and failures)."""
        return {Verdict.NO_EVIDENCE: 0, Verdict.SUSPICIOUS: 1, Verdict.INCONCLUSIVE: 3}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; non-finite numbers become None."""
        slim = {f: getattr(self, f) for f in self.__dataclass_fields__ if f not in ("table", "exhibits")}
        return {"schema": "laocoon-sift/1", "exit_code": self.exit_code, **_plain(slim)}

    def canonical(self) -> dict[str, Any]:
        """Without times and the command line: two runs with one seed agree on this."""
        data = self.to_dict()
        for key in ("seconds", "command"):
            data.pop(key)
        for report in data["reports"]:
            report.pop("seconds")
        return data
