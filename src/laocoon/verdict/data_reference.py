"""The reference file of `sift`: what clean training sets look like to every method, and the p-value of a set.

It holds the raw statistics of every reference set. The scale of a rule (what a clean set's value is expected to be,
and its spread) is fitted on the references and the set in question together, all treated alike: full conformal
prediction (Vovk, Gammerman and Shafer, 2005), which needs no second half of references to be valid. Expected values
are a ridge regression on what is `known.` of a set whether or not it is poisoned: how well its model fits it, how many
classes it has. Standardised values are clipped and put together by the p-norm of `fuse`.

References that come from one source are no independent draws: the file names the sources, `laocoon lab` tells the
false alarms when a source is left out, and the report says on how many sources a p-value stands.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from laocoon.core.errors import BrokenFile
from laocoon.core.report import Calibration, Power
from laocoon.recipes.conformal import binomial_interval, p_value, rank
from laocoon.recipes.false_discovery import Tail
from laocoon.verdict.data_statistics import CURVE, KNOWN
from laocoon.verdict.fuse import POWER

OTHERS = "*"  # among the weights: every rule that is not named
COVARIATES = ("accuracy", "classes")  # of a rule's expected value
RIDGE = 4.0  # in sets' worth: few sources, whose differences must not be mistaken for laws
FLOOR = 0.25  # least spread of a rule, as a share of that between its quartiles
LEAST_SPREAD = 0.05  # of a covariate: sets that agree in it but for rounding do not differ in it
UPPER = 12.0  # larger standardised values count as this one
NEAREST = 20  # references whose tails speak for the samples of a set
LEAST = 10  # references: with fewer there is no p-value
MOST_CLASSES, FEWEST_SAMPLES = 200, 500  # outside, no reference speaks for a set

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DataRow:
    """One reference set: its statistics and what is public about it."""

    digest: str
    source: str  # where its pictures come from; sets of one source are one cluster
    kind: str  # "clean", or the name of the attack
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class DataReference:
    """The file."""

    clean: tuple[DataRow, ...]
    planted: tuple[DataRow, ...]
    core: tuple[str, ...]  # kinds of poison that the power is told for
    weights: Mapping[str, float]  # of rules; where not named, that of OTHERS, or 1
    provenance: Mapping[str, Any]
    digest: str

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({row.source for row in self.clean}))

    def tails(self, method: str, known: Mapping[str, float] | None = None) -> tuple[Tail, ...]:
        """How a method's scores are spread on clean sets, one a set; on the `NEAREST` to a set of which this is known.

        How many classes, samples and channels there are, and how well they are fitted, says much about tails.
        """
        names = [f"{method}.{level}" for level in CURVE]
        rows = [row for row in self.clean if all(n in row.statistics for n in names)]
        if known is not None and len(rows) > NEAREST:
            keys = sorted(k for k in known if k.startswith(KNOWN) and all(k in row.statistics for row in rows))
            table = np.array([[row.statistics[k] for k in keys] for row in rows])
            away = (table - np.array([known[k] for k in keys])) / np.maximum(table.std(0), LEAST_SPREAD)
            rows = [rows[i] for i in np.argsort((away**2).sum(1), kind="stable")[:NEAREST]]
        return tuple(Tail(tuple(row.statistics[n] for n in names)) for row in rows)


@dataclass(frozen=True)
class Placed:
    """A set among the references: its score, theirs, and what each rule adds to its own."""

    score: float
    null: tuple[float, ...]
    contributions: Mapping[str, float]
    rules: tuple[str, ...]


def parse(text: str) -> DataReference:
    """A reference from its JSON."""
    try:
        data = json.loads(text)
        row = lambda d: DataRow(str(d["digest"]), str(d["source"]), str(d["kind"]),  # noqa: E731
                                {str(k): float(v) for k, v in d["statistics"].items()})
        return DataReference(tuple(map(row, data["clean"])), tuple(map(row, data["planted"])), tuple(data["core"]),
                             dict(data["weights"]), data["provenance"],
                             hashlib.sha256(text.encode()).hexdigest()[:16])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFile(f"the reference file of data sets cannot be read ({error}).",
                         "Install laocoon again.") from None


@functools.cache
def shipped(modality: str = "image") -> DataReference:
    """The reference file of a modality that comes with the package; an empty one where there is none."""
    name = "data_reference.json" if modality == "image" else f"data_reference_{modality}.json"
    file = files("laocoon.verdict") / name
    if not file.is_file():
        return DataReference((), (), (), {}, {}, "")
    return parse(file.read_text(encoding="utf-8"))


def weight(name: str, weights: Mapping[str, float]) -> float:
    """How much a rule counts."""
    return weights.get(name, weights.get(OTHERS, 1.0))


def counted(name: str, weights: Mapping[str, float]) -> bool:
    """Whether a statistic takes part in the score: not those that only describe, or that are a curve's points."""
    return not name.startswith(KNOWN) and name.rsplit(".", 1)[-1] not in CURVE and weight(name, weights) > 0


def place(statistics: Mapping[str, float], reference: DataReference) -> Placed:
    """The score of a set and those of the references, by the rules that both have."""
    own = [name for name in statistics if counted(name, reference.weights)]
    rows = [row.statistics for row in reference.clean]
    rules = sorted(name for name in own if sum(name in r for r in rows) >= LEAST)
    # References that lack a rule would score lower for that alone: they are left out.
    rows = [r for r in rows if all(name in r for name in rules)]
    if not rules or len(rows) < LEAST:
        return Placed(0.0, (), {}, tuple(rules))
    everyone = [statistics, *rows]
    known = np.array([[r.get(f"{KNOWN}{c}", 0.0) for c in COVARIATES] for r in everyone])
    z = np.stack([weight(rule, reference.weights) * _standard(np.array([r[rule] for r in everyone]), known)
                  for rule in rules], axis=1)
    scores = (np.clip(z, 0.0, UPPER) ** POWER).sum(1) ** (1 / POWER)
    parts = sorted(((rule, round(float(v), 3)) for rule, v in zip(rules, z[0], strict=True) if v > 0),
                   key=lambda item: -item[1])
    return Placed(float(scores[0]), tuple(map(float, scores[1:])), dict(parts), tuple(rules))


def _standard(values: Numbers, known: Numbers) -> Numbers:
    """z of one rule over all sets: (value − expected) / spread of the upper half."""
    centred = known - known.mean(0)
    unit = centred / np.maximum(centred.std(0), LEAST_SPREAD)
    middle = np.median(values)
    spread = max(float(np.median(np.abs(values - middle))), 1e-9)
    # One set far out must not bend the line that the others stand on.
    tame = np.clip(values, middle - 4 * spread, middle + 4 * spread)
    slopes = np.linalg.solve(unit.T @ unit + RIDGE * np.eye(unit.shape[1]), unit.T @ (tame - tame.mean()))
    rest = values - unit @ slopes
    location = np.median(rest)
    upper = float(np.quantile(rest, 0.9) - location) / 1.2816
    whole = float(np.quantile(rest, 0.75) - np.quantile(rest, 0.25)) / 1.349
    found: Numbers = (rest - location) / max(upper, FLOOR * whole, 1e-6 + 1e-3 * abs(float(middle)))
    return found


def outside(statistics: Mapping[str, float]) -> str:
    """Why no reference speaks for a set; empty when they do."""
    classes = float(np.exp(statistics.get(f"{KNOWN}classes", np.log(10.0))))
    samples = float(np.exp(statistics.get(f"{KNOWN}samples", np.log(1e4))))
    if classes > MOST_CLASSES + 0.5:
        return f"no reference set has {classes:.0f} classes (at most {MOST_CLASSES})"
    if samples < FEWEST_SAMPLES - 0.5:
        return f"{samples:.0f} samples; references have {FEWEST_SAMPLES} or more"
    if statistics.get(f"{KNOWN}accuracy", 1.0) < 0.3:
        return (f"the model answers {statistics[f'{KNOWN}accuracy']:.0%} of the samples as labelled: it was not "
                "trained on them, or not enough")
    return ""


def calibrate(statistics: Mapping[str, float], reference: DataReference) -> tuple[Placed, float | None, Calibration]:
    """The place of a set, its conformal p-value (None where no reference speaks for it) and what that rests on."""
    placed, why = place(statistics, reference), outside(statistics)
    why = why or ("" if reference.clean else "no clean sets of this kind of data were measured as references")
    name = f"data sets of {len(reference.sources)} sources"
    told = Calibration(name, len(placed.null), rank(placed.score, placed.null), 1.0, 0.0, reference.digest, why)
    if why or not placed.null:
        return placed, None, told
    return placed, p_value(placed.score, placed.null), told


def power(reference: DataReference, rules: Sequence[str], alpha: float) -> tuple[Power, ...]:
    """Poisoned reference sets found of tried, per kind, by the same rules."""
    found: dict[str, list[bool]] = {}
    for row in reference.planted:
        if all(rule in row.statistics for rule in rules):
            placed = place({k: v for k, v in row.statistics.items() if k in rules or k.startswith(KNOWN)}, reference)
            if placed.null:
                found.setdefault(row.kind, []).append(p_value(placed.score, placed.null) <= alpha)
    return tuple(Power(kind, sum(hits), len(hits), *binomial_interval(sum(hits), len(hits)), "poisoned reference sets",
                       kind in reference.core) for kind, hits in sorted(found.items()))
