"""The reference file: what clean models look like to every method, and the p-value of a score.

The file holds, for every clean model of the calibration split, the statistics of every rule. A scan that computed
only some rules (a smaller budget, a skipped method) is compared with the same rules of the references, so that the
null always belongs to what was really computed. Planted models of the fusion split give the power table.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from laocoon.core.report import Calibration, Power
from laocoon.modalities.encoder import encodes
from laocoon.recipes.conformal import binomial_interval, p_value, rank
from laocoon.verdict.fuse import KNOWN, Fused, Scale, fuse

LEAST_CLASSES, MOST_CLASSES = 8, 1000  # that references of tens speak for
PLAIN, BRANCHING = "plain", "branching"  # how layers are wired: `traits.wiring`
LEAST_ALIKE = 39  # references with branches, from which on they alone speak: one may stand above a p of 0.05


@dataclass(frozen=True)
class Row:
    """One reference model: its statistics and what is public about it."""

    digest: str
    data: str
    architecture: str
    kind: str  # "clean" or the name of what was planted
    classes: int
    table: Mapping[str, Sequence[float | None]]
    attack_success: float | None = None
    targets: tuple[int, ...] = ()
    group: str = ""  # what its inputs look like, see `group_of`
    wiring: str = ""  # how its layers are wired, see `traits.wiring`


@dataclass(frozen=True)
class Null:
    """Scores of clean references, and where a subject's score stands among them."""

    score: float
    references: Sequence[float]
    wiring: str = ""  # that all of them have; "" where they are of any

    @property
    def p(self) -> float:
        return p_value(self.score, self.references)


@dataclass(frozen=True)
class Reference:
    """The fitted file."""

    scales: Mapping[str, Scale]
    clean: tuple[Row, ...]
    planted: tuple[Row, ...]
    core: tuple[str, ...]
    provenance: Mapping[str, Any]
    digest: str

    def restricted(self, row: Row, rules: frozenset[str]) -> Fused:
        """A reference model's score from the same rules as the subject's."""
        table = {r: v for r, v in row.table.items() if r in rules or r.startswith(KNOWN)}
        return fuse(table, self.scales, row.classes, row.group)

    def comparable(self, rules: frozenset[str]) -> list[Row]:
        """Clean references that every one of the rules was measured on: fewer rules would make a smaller score.

        A rule that does not apply to a reference's inputs was measured on it and has no values there.
        """
        counted = frozenset(r for r in rules if r in self.scales and self.scales[r].weight > 0)
        return [row for row in self.clean if counted <= frozenset(row.table)]

    def scores(self, rules: frozenset[str]) -> list[float]:
        return [self.restricted(row, rules).score for row in self.comparable(rules)]

    def null(self, score: float, rules: frozenset[str], wiring: str) -> Null:
        """What a score is held against: of a network with branches the references with branches, of a plain one all.

        Clean networks with skips, branches, attention or depthwise layers score higher than plain chains of layers:
        held against both they are accused too often (docs/results/index.md). Plain ones are accused the less. Where the
        wiring is not known, the null that makes the larger p speaks.
        """
        rows = self.comparable(rules)
        scores = [self.restricted(row, rules).score for row in rows]
        every = Null(score, scores)
        alike = Null(score, [s for s, row in zip(scores, rows, strict=True) if row.wiring == BRANCHING], BRANCHING)
        if wiring == PLAIN or len(alike.references) < LEAST_ALIKE:
            return every
        return alike if wiring == BRANCHING else max(every, alike, key=lambda null: null.p)


@dataclass(frozen=True)
class Profile:
    """Facts of a scan that decide whether the references speak for it."""

    modality: str
    classes: int
    per_class: float  # clean samples a class
    accuracy: float | None
    wiring: str = ""


def group_of(modality: str, shape: Sequence[int]) -> str:
    """"grey" or "colour" for images [c, h, w]; "" for anything else."""
    return {1: "grey", 3: "colour"}.get(shape[0], "") if modality == "image" and len(shape) == 3 else ""


def parse(text: str) -> Reference:
    """A reference from its JSON."""
    data = json.loads(text)
    pairs = lambda slopes: {k: (b, mean) for k, (b, mean) in slopes.items()}  # noqa: E731
    silent = Scale(0.0, 1.0, 0.0)  # written as an empty list: the rule does not count for such inputs
    own = lambda groups: {g: Scale(fit[0], fit[1], 1.0, pairs(fit[2])) if fit else silent  # noqa: E731
                          for g, fit in groups.items()}
    scales = {rule: Scale(location, spread, weight, pairs(slopes), own(groups))
              for rule, (location, spread, weight, slopes, groups) in data["scales"].items()}
    row = lambda d: Row(d["digest"], d["data"], d["architecture"], d["kind"], d["classes"], d["table"],  # noqa: E731
                        d.get("attack_success"), tuple(d.get("targets", ())), d.get("group", ""),
                        d.get("wiring", ""))
    return Reference(scales, tuple(map(row, data["clean"])), tuple(map(row, data["planted"])),
                     tuple(data["core"]), data["provenance"], hashlib.sha256(text.encode()).hexdigest()[:16])


def per_class(modality: str, given: int, classes: int) -> float:
    """Clean samples a class; of an encoder, which knows no classes, all of them."""
    return float(given) if encodes(modality) else given / classes


@functools.cache
def shipped(modality: str = "image") -> Reference:
    """The reference file of a modality that comes with the package; an empty one where there is none."""
    name = "reference.json" if modality == "image" else f"reference_{modality}.json"
    file = files("laocoon.verdict") / name
    if not file.is_file():
        return Reference({}, (), (), (), {}, "")
    return parse(file.read_text(encoding="utf-8"))


def widening(profile: Profile, reference: Reference) -> tuple[float, str]:
    """Factor on p fixed beforehand, and why; infinity outside every profile."""
    if profile.modality != "image":
        return _within(profile, reference)
    counts = [row.classes for row in reference.clean]
    fewest, most = min(counts, default=0), max(counts, default=0)
    # References of tens of classes speak for others of eight and more; those of fewer for theirs alone: with four and
    # five, clean models held against references of ten were accused five times in seven.
    least, largest = (LEAST_CLASSES, MOST_CLASSES) if most >= LEAST_CLASSES else (fewest, most)
    if not least <= profile.classes <= largest:
        return float("inf"), f"no reference models with {profile.classes} classes (references: {fewest} to {most})"
    if profile.per_class and profile.per_class < 3:
        return float("inf"), f"{profile.per_class:.1f} clean samples a class; references have 20"
    factor = 1.0
    why: list[str] = []
    if profile.classes > 100:
        factor, why = factor * 2, [*why, f"{profile.classes} classes against {fewest} to {most} in the references"]
    if profile.per_class and profile.per_class < 8:
        factor, why = factor * 1.5, [*why, f"{profile.per_class:.0f} clean samples a class against 20"]
    if profile.accuracy is not None and profile.accuracy < 0.3:
        factor, why = factor * 2, [*why, f"accuracy {profile.accuracy:.0%}, below that of the references"]
    return factor, "; ".join(why)


def _within(profile: Profile, reference: Reference) -> tuple[float, str]:
    """Modalities with few references have no room for widening: a model is inside what was measured, or outside."""
    rows = [row for row in reference.clean if row.table]
    if not rows:
        return float("inf"), f"no reference models for {profile.modality}"
    fewest, most = min(row.classes for row in rows), max(row.classes for row in rows)
    if encodes(profile.modality):  # `classes` is the width of the embeddings
        if not fewest / 2 <= profile.classes <= 2 * most:
            return float("inf"), (f"no reference encoders with embeddings of {profile.classes} numbers "
                                  f"(references: {fewest} to {most})")
    elif not fewest <= profile.classes <= most:
        return float("inf"), f"no reference models with {profile.classes} classes (references: {fewest} to {most})"
    given = float(reference.provenance.get("samples_per_class", 20))
    if profile.per_class and profile.per_class < given / 2:
        each = "" if encodes(profile.modality) else " a class"
        return float("inf"), f"{profile.per_class:.3g} clean samples{each}; references have {given:g}"
    return 1.0, ""


def calibrate(fused: Fused, rules: frozenset[str], profile: Profile, reference: Reference,
              name: str) -> tuple[float | None, Calibration]:
    """The conformal p-value (None where no reference speaks for the subject) and what it rests on."""
    factor, why = widening(profile, reference)
    if not rules:  # the references would all score 0, and any score would stand out
        return None, Calibration(name, 0, 0, 1.0, 0.0, reference.digest, why)
    null = reference.null(fused.score, rules, profile.wiring)
    place, count = rank(fused.score, null.references), len(null.references)
    if factor == float("inf") or not count:
        return None, Calibration(name, count, place, 1.0, 0.0, reference.digest, why or "no references")
    name += f", {null.wiring} networks" if null.wiring else ""
    return min(1.0, null.p * factor), Calibration(name, count, place, factor, 0.0, reference.digest, why)


def similar_power(rules: frozenset[str], profile: Profile, reference: Reference, alpha: float) -> tuple[Power, ...]:
    """Found of tried per planted kind (attack success of 90 % or more), among references of the nearest class count."""
    counts = sorted({row.classes for row in reference.planted}, key=lambda c: abs(c - profile.classes))
    found: dict[str, list[bool]] = {}
    for row in reference.planted:
        near = encodes(profile.modality) or not counts or row.classes == counts[0]  # a width is no count of classes
        if (row.attack_success or 0) < 0.9 or not near:
            continue
        score = reference.restricted(row, rules).score
        hit = reference.null(score, rules, row.wiring).p <= alpha
        found.setdefault(row.kind, []).append(hit)
    return tuple(Power(kind, sum(hits), len(hits), *binomial_interval(sum(hits), len(hits)), "similar reference models",
                       kind in reference.core) for kind, hits in sorted(found.items()))
