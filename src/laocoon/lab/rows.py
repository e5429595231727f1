"""Measure a bench with the scan's own methods, one row a specimen, and fit the reference file of its modality.

Rows are lines of JSON, appended as they come, one file for each process. A row says which methods it holds and under
which settings: what was measured before is not measured again, and a method that is added later (or whose parameters
change) costs that method alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, informed
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Detector
from laocoon.lab.scales import names_digest, scales, settings_digest
from laocoon.lab.specimens import CLEAN, Bench, Made, Specification, Split
from laocoon.verdict.calibrate import per_class
from laocoon.verdict.control import described
from laocoon.verdict.examination import made_ready, run
from laocoon.verdict.fuse import contrasted, statistics
from laocoon.verdict.schedule import Schedule, plan

Row = dict[str, Any]
SPLITS: tuple[Split, ...] = ("fusion", "calibration", "sealed")
SHOWN = 120  # characters of a trigger that a row keeps


def schedule_of(bench: Bench, budget: str = "deep", methods: Sequence[str] = ()) -> Schedule:
    """What is measured: the methods named, or those whose rules count in the fusion."""
    return plan(budget, list(methods) or sorted({rule.split(".")[0] for rule in bench.weights}), bench.modality)


def digest(bench: Bench, specification: Specification) -> str:
    return specification.digest(bench.settings(specification))


def measured(bench: Bench, specification: Specification, schedule: Schedule, seed: int = 0) -> Row:
    """One row: the specimen, made now, and what the code that a scan runs says of it."""
    made = bench.made(specification)
    subject = informed(made.subject, made.given)
    prepared = made_ready(subject, made.given, seed)
    case = ModelCase(subject, prepared.fit, prepared.held, graph=subject.graph)
    examined = run(schedule, case, Context(seed=seed, budget=schedule.passes))
    whole = [r for r in examined.reports if r.complete]
    row = asdict(specification) | {
        "digest": digest(bench, specification), "classes": subject.classes,
        "per_class": round(per_class(bench.modality, prepared.given, subject.classes), 2),
        "accuracy": _figure(made.accuracy),
        "methods": {m.card.name: settings_digest((m,)) for m in schedule.methods},
        "table": {rule: [None if v is None else round(v, 4) for v in values]
                  for rule, values in statistics(whole, subject.classes).items()},
        "reasons": {r.method: r.reason for r in examined.reports if r.reason},
        "seconds": {r.method: round(r.seconds, 2) for r in examined.reports},
        "spent": {r.method: round(r.spent) for r in examined.reports},
        "candidates": [_told(bench, made, candidate) for candidate in examined.candidates]}
    if specification.kind != CLEAN:
        row |= {"attack_success": _figure(made.success), "targets": list(_targets(made.trigger)),
                "planted": "" if made.trigger is None else described(subject, made.trigger)[:SHOWN]}
    return row


def _told(bench: Bench, made: Made, candidate: Candidate) -> dict[str, Any]:
    """A recovered trigger in plain data. `part`: it names a part of the true one."""
    return {"method": candidate.method, "rule": f"{candidate.method}.{candidate.family.name}",
            "targets": list(_targets(candidate)), "success": _figure(candidate.success),
            "shown": described(made.subject, candidate)[:SHOWN],
            "part": made.trigger is not None and bench.recovered(made, candidate)}


def _targets(candidate: Candidate | None) -> tuple[int, ...]:
    """The one class that everything is sent to, or nothing."""
    goal = None if candidate is None else candidate.goal
    return goal.targets if isinstance(goal, ClassGoal) and len(goal.targets) == 1 else ()


def _figure(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def measure(bench: Bench, folder: Path, split: Split, schedule: Schedule, *, share: tuple[int, int] = (0, 1),
            limit: int | None = None) -> Iterator[Row]:
    """Rows of a split, each written before it is handed out; only methods that a specimen lacks are run.

    share: (k, n), every n-th specimen from the k-th, so that n processes can work side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = _by_digest(_lines(folder))
    mine = list(bench.specifications(split))[:limit][share[0]::share[1]]
    path = folder / f"{split}-{share[0]}-{share[1]}.jsonl"
    torn = path.exists() and not path.read_text(encoding="utf-8").endswith("\n")  # by a process that was stopped
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn)
        for specification in mine:
            done = there.get(digest(bench, specification), [])
            lacking = tuple(m for m in schedule.methods if _holding(done, m) is None)
            if not lacking:
                continue
            row = measured(bench, specification, replace(schedule, methods=lacking))
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()
            yield row


def recorded(bench: Bench, folder: Path, split: Split, schedule: Schedule) -> list[Row]:
    """What was measured of a split by every method of the schedule, one row a specimen; nothing is computed.

    Rows of specimens whose recipe has changed since are passed over.
    """
    there, found = _by_digest(_lines(folder)), []
    for specification in bench.specifications(split):
        lines = there.get(digest(bench, specification), [])
        held = [(m.card.name, _holding(lines, m)) for m in schedule.methods]
        if held and all(line is not None for _, line in held):
            found.append(_merged([(name, line) for name, line in held if line is not None]))
    return found


def _lines(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.endswith("}"):  # a process that was stopped may leave half a line
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _by_digest(lines: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for line in lines:
        found.setdefault(line["digest"], []).append(line)
    return found


def _holding(lines: Sequence[Row], method: Detector) -> Row | None:
    """The last line that holds a method under these settings."""
    wanted = settings_digest((method,))
    return next((line for line in reversed(lines) if line["methods"].get(method.card.name) == wanted), None)


def _merged(held: Sequence[tuple[str, Row]]) -> Row:
    """One row of several methods' lines."""
    whole = dict(held[0][1])
    for key in ("methods", "table", "reasons", "seconds", "spent"):
        whole[key] = {name: value for method, line in held for name, value in line[key].items()
                      if name.split(".")[0] == method}
    whole["table"] = contrasted(whole["table"])
    whole["candidates"] = [c for method, line in held for c in line["candidates"] if c["method"] == method]
    return whole


def public(row: Row, rules: Iterable[str]) -> Row:
    """The form in which the reference file holds a row."""
    kept = {key: row[key] for key in ("digest", "data", "architecture", "kind", "classes")}
    kept |= {"group": "", "table": {rule: row["table"][rule] for rule in rules if rule in row["table"]}}
    return kept if row["kind"] == CLEAN else kept | {"attack_success": row["attack_success"],
                                                     "targets": row["targets"]}


def fit(bench: Bench, rows: Sequence[Row]) -> str:
    """The reference file as JSON text, as `verdict.calibrate.parse` reads it.

    Scales from the clean models of the fusion split, the null from those of the calibration split, power from what was
    planted in the fusion split. Sealed rows are passed over.
    """
    fusion = [public(row, bench.weights) for row in rows if row["split"] == "fusion"]
    clean = [public(row, bench.weights) for row in rows if row["split"] == "calibration" and row["kind"] == CLEAN]
    honest, planted = ([r for r in fusion if (r["kind"] == CLEAN) == wanted] for wanted in (True, False))
    given = [row["per_class"] for row in rows if row["kind"] == CLEAN]
    settings: Mapping[str, str] = {k: v for row in rows for k, v in row["methods"].items()}
    provenance = {
        "version": __version__, "samples_per_class": round(median(given)) if given else 0,
        "settings": names_digest([f"{k}:{v}" for k, v in settings.items()]), "fusion": len(fusion),
        "calibration": len(clean), "command": f"laocoon lab bench fit --modality {bench.modality}",
        "data": sorted({r["data"] for r in clean}), "architectures": sorted({r["architecture"] for r in clean}),
        "splits": {name: names_digest([digest(bench, s) for s in bench.specifications(name)]) for name in SPLITS}}
    return json.dumps({"provenance": provenance, "core": list(bench.core), "scales": scales(honest, bench.weights),
                       "clean": clean, "planted": planted}, separators=(",", ":"), sort_keys=True)
