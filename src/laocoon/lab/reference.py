"""Measure the zoo with the scan's own methods and fit the reference file that `scan` ships with."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laocoon import __version__
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.core.subject import Subject
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.scales import names_digest, scales, settings_digest
from laocoon.lab.zoo import ALL_TO_ONE, FEW, SEVERAL, Specimen, Split, specimens
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.verdict.examination import prepare, run
from laocoon.verdict.fuse import KNOWN, statistics
from laocoon.verdict.schedule import Schedule, plan
from laocoon.verdict.traits import traits, wiring

SAMPLES_PER_CLASS = 20
GREY = ("digits", "mnist")
# How much a rule counts in the fusion, fixed on the fusion split (docs/results/fusion.md) and by nothing else.
# A rule that is not named is reported but does not count.
WEIGHTS: dict[str, float] = {
    "trigger_inversion.patch": 1.0,
    "trigger_inversion.additive": 1.0,
    "whole_image_inversion.warp": 1.0,
    "whole_image_inversion.tone": 1.0,
    "whole_image_inversion.smooth": 1.0,
    "whole_image_inversion.spectral": 1.0,
    "bounded_inversion.wave": 1.0,
    "bounded_inversion.tone": 1.0,
    "mm_bd.margin": 1.0,  # its companion rule, mm_bd.cso, agrees nearly always and is not counted twice
    "all_to_all_inversion.patch": 1.0,
    "all_to_all_inversion.additive": 1.0,
    "all_to_all_inversion.shift": 0.5,  # a share of few classes: coarse
    "pair_inversion.cell": 1.0,
}
# Rules that say nothing of grey inputs. An empty row says so in the reference: they were measured, as far as they go.
COLOUR_RULES = ("bounded_inversion.tone",)
# Rules that do not count for some inputs, with eight classes and more: in grey pictures a wave of bounded strength can
# be a lift of the background, and that takes clean networks to one class of MNIST (docs/results/index.md).
SILENT = {"bounded_inversion.wave": ("grey",)}
TRAITS = "traits.json"  # in a specimen's folder, beside the rows of its statistics
DEEP = ("pair_inversion",)  # too dear for the default budget


def counted(deep: bool) -> list[str]:
    """Methods whose statistics count."""
    return sorted({r.split(".")[0] for r in WEIGHTS} - (set() if deep else set(DEEP)))


def clean_samples(dataset: Dataset, seed: int, per_class: int = SAMPLES_PER_CLASS) -> Samples:
    """What a user of the specimen would have: a few test images of every class."""
    rng = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(dataset.classes):
        members = (dataset.test_labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=rng)[:per_class]])
    index = torch.cat(chosen)
    return Samples(dataset.test_inputs[index].float() / 255, dataset.test_labels[index].long())


def measured(specimen: Specimen, dataset: Dataset, schedule: Schedule, seed: int = 0) -> dict[str, Any]:
    """One row: every rule's statistics, by the code that a scan runs, method by method and cached."""
    if not (specimen.folder / TRAITS).exists():
        _write(specimen.folder / TRAITS, traits(specimen.subject(dataset)))
    for method, path in _paths(specimen, schedule):
        if not path.exists():
            one = Schedule(schedule.budget, (method,), schedule.passes)
            subject = specimen.subject(dataset)
            data = clean_samples(dataset, specimen.specification.seed)
            prepared = prepare(subject.module, data, seed, subject.classes)
            report = run(one, ModelCase(subject, prepared.fit, prepared.held), Context(seed=seed)).reports[0]
            table = statistics([report], subject.classes) if report.complete else {}
            _write(path, {
                "table": {r: [None if v is None else round(v, 4) for v in row] for r, row in table.items()},
                "seconds": round(report.seconds, 2), "spent": round(report.spent), "reason": report.reason})
    return _read(specimen, schedule)


def _write(path: Path, what: Mapping[str, Any]) -> None:
    """Whole or not at all: an interrupted run leaves no half of a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(what))
    part.replace(path)


def _paths(specimen: Specimen, schedule: Schedule) -> Iterator[tuple[Detector, Path]]:
    for method in schedule.methods:
        one = Schedule(schedule.budget, (method,), schedule.passes)
        yield method, specimen.folder / f"row-{method.card.name}-{settings_digest(one.methods)}.json"


def _read(specimen: Specimen, schedule: Schedule) -> dict[str, Any]:
    rows = [json.loads(path.read_text()) for _, path in _paths(specimen, schedule) if path.exists()]
    seen = specimen.folder / TRAITS
    known = json.loads(seen.read_text()) if seen.exists() else {}
    return {"table": {rule: values for row in rows for rule, values in row["table"].items()} | known,
            "seconds": sum(row["seconds"] for row in rows), "spent": sum(row["spent"] for row in rows)}


def recorded(folder: Path, split: Split, least: Schedule,
             schedule: Schedule) -> Iterator[tuple[Specimen, dict[str, Any]]]:
    """Rows of what was measured before, by at least the methods of `least`; nothing is computed."""
    for specimen in specimens(folder, split):
        if all(path.exists() for _, path in _paths(specimen, least)):
            yield specimen, _read(specimen, schedule)


def measure(folder: Path, root: Path | None, split: Split, schedule: Schedule, share: tuple[int, int] = (0, 1),
            only: Sequence[str] = ()) -> Iterator[tuple[Specimen, dict[str, Any]]]:
    """Rows of a split; what was measured before is read, not repeated."""
    sets: dict[str, Dataset] = {}
    for specimen in specimens(folder, split)[share[0]::share[1]]:
        name = specimen.specification.data
        if only and name not in only and specimen.specification.plan not in only:
            continue
        if name not in sets:
            sets[name] = load(name, root, folder / "data")
        yield specimen, measured(specimen, sets[name], schedule)


@functools.cache
def wired(architecture: str) -> str:
    """How the layers of the zoo's networks of a name are wired; weights, inputs and classes change nothing of it."""
    module = build(architecture, 3, 32, 10, torch.Generator().manual_seed(0))
    return wiring(Subject(module, Image(), 10, (3, 32, 32)))


def as_row(specimen: Specimen, row: dict[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    """The public form of a row, as the reference file holds it."""
    s, facts = specimen.specification, specimen.facts
    table = {r: v for r, v in row["table"].items() if r in rules or r.startswith(KNOWN)}
    grey = s.source in GREY
    if grey and any(r.split(".")[0] == rule.split(".")[0] for rule in COLOUR_RULES for r in table):
        table |= {rule: [] for rule in COLOUR_RULES if rule in rules}
    destinations = facts.get("destinations", [])
    targets = sorted({d for y, d in enumerate(destinations) if d >= 0 and d != y})
    classes = max((len(v) for v in table.values()), default=0)
    found = {"digest": s.digest, "data": s.source, "architecture": s.architecture, "kind": s.kind, "classes": classes,
             "group": "grey" if grey else "colour", "wiring": wired(s.architecture), "table": table}
    if s.kind != "clean":
        found |= {"attack_success": facts["attack_success"], "targets": targets if len(targets) == 1 else []}
    return found


def fit_reference(folder: Path, without: str = "", *, subsets: str = "",
                  earlier: Sequence[Mapping[str, Any]] = ()) -> str:
    """The reference file as JSON text: scales from clean fusion models, the null from the calibration split.

    Fits on what `measure` recorded. Models measured without the methods of the deep budget count for the others.
    without: an architecture (and its variants) to leave out, to see what its absence costs. subsets: a plan of models
    that know some classes, instead of the others. earlier: planted rows of the file before. Of models that were not
    measured here they are kept: they serve for power alone, and rules that they lack can only understate it.
    """
    least, schedule = plan("deep", counted(deep=False)), plan("deep", counted(deep=True))
    fusion = [as_row(s, r, list(WEIGHTS)) for s, r in recorded(folder, "fusion", least, schedule)
              if s.specification.plan == subsets]
    clean = [as_row(s, r, list(WEIGHTS)) for s, r in recorded(folder, "calibration", least, schedule)
             if s.specification.kind == "clean" and s.specification.plan == subsets]
    fusion, clean = ([r for r in rows if not without or r["architecture"].split("_")[0] != without]
                     for rows in (fusion, clean))
    honest, planted = ([row for row in fusion if (row["kind"] == "clean") is clear] for clear in (True, False))
    measured_here = {row["digest"] for row in planted}
    kept = [{**row, "wiring": wired(row["architecture"])} for row in earlier if row["digest"] not in measured_here]
    provenance = {
        "version": __version__, "samples_per_class": SAMPLES_PER_CLASS, "settings": settings_digest(schedule.methods),
        "fusion": len(fusion), "calibration": len(clean), "kept": len(kept),
        "command": f"laocoon lab zoo fit{' --subsets ' * bool(subsets)}{subsets}{' --keep-planted' * bool(kept)}",
        "data": sorted({r["data"] for r in clean}), "architectures": sorted({r["architecture"] for r in clean}),
        "splits": {name: names_digest([s.folder.name for s in specimens(folder, name)])  # type: ignore[arg-type]
                   for name in ("fusion", "calibration", "sealed")}}
    # A map of all classes can be searched with three, not with two: no rule that only some references know. And of two
    # classes one is so often reached by a change of tone that the rule finds less than it costs; with up to seven, too
    # few clean colour models of the fusion split say what is usual (docs/results/index.md).
    left = {FEW.name: ("all_to_all_inversion", "bounded_inversion.tone"), SEVERAL.name: ("bounded_inversion.tone",)}
    weights = {r: w for r, w in WEIGHTS.items() if not r.startswith(left.get(subsets, ()))}
    fitted = scales(honest, weights, ("colour", "grey"), {} if subsets else SILENT)
    return json.dumps({"provenance": provenance, "core": list(ALL_TO_ONE), "scales": fitted,
                       "clean": clean, "planted": [*planted, *kept]},
                      separators=(",", ":"), sort_keys=True)
