"""What asking alone finds: the query-only methods on models of the zoo, by scores and by labels.

    python benchmarks/query_only.py measure ZOO ROWS.jsonl      # resumes; half an hour on one core
    python benchmarks/query_only.py others ZOO ROWS.jsonl       # b3d and aeva, on a few fusion models only
    python benchmarks/query_only.py fit ZOO ROWS.jsonl          # writes src/laocoon/verdict/reference_query.json
    python benchmarks/query_only.py table ZOO ROWS.jsonl        # writes docs/results/query_only.md

Every model is seen as an endpoint shows it: no gradient, no weights; once with scores, once with labels. Scales and the
power table come from the fusion split, the null from clean models of the calibration split, the table from the sealed
split, which nothing was chosen on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from laocoon import __version__
from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.detectors.model.aeva import Aeva
from laocoon.detectors.model.b3d import B3d
from laocoon.detectors.model.sparse_rs import SparseRs
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.reference import SAMPLES_PER_CLASS, as_row, clean_samples
from laocoon.lab.scales import names_digest, scales, settings_digest
from laocoon.lab.zoo import Specimen, Split, specimens
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.recipes.intervals import auroc_interval
from laocoon.recipes.ranking import auroc
from laocoon.verdict.calibrate import Profile, Reference, parse, similar_power
from laocoon.verdict.examination import prepare, run
from laocoon.verdict.fuse import fuse, statistics
from laocoon.verdict.schedule import Schedule

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "src" / "laocoon" / "verdict" / "reference_query.json"
TABLE = ROOT / "docs" / "results" / "query_only.md"
PATCHES = ("patch", "patch_low_rate", "multi_trigger")  # what the search claims to find; fixed on the fusion split
ALIKE = (*PATCHES, "label_consistent", "source_specific", "all_to_all", "adap_patch", "tact", "trojaning")
OTHERS = {"mnist": ("cnn", "separable", "resnet_small"), "cifar10": ("resnet_small", "separable", "vgg_small")}
ALPHA = 0.05
Row = dict[str, Any]
WEIGHTS = {"sparse_rs.margin": 1.0, "sparse_rs.labels": 1.0}
# Clean models of each data set; of each planted kind one a data set, patches all; sealed ones only where a square is
# pasted somewhere.
CLEAN: dict[Split, dict[str, int]] = {
    "fusion": {"digits": 10, "mnist": 16, "gtsrb": 4, "cifar10": 16},
    "calibration": {"digits": 18, "mnist": 22, "gtsrb": 4, "cifar10": 22},
    "sealed": {"digits": 15, "mnist": 17, "gtsrb": 0, "cifar10": 16}}


def chosen(folder: Path) -> Iterator[Specimen]:
    """By digest, so that nobody chose; the null first, the sealed ones last."""
    seen: dict[tuple[str, str, str], int] = {}
    splits: tuple[Split, ...] = ("fusion", "calibration", "sealed")
    for split in splits:
        for specimen in specimens(folder, split):
            s = specimen.specification
            most = CLEAN[split].get(s.data, 0) if s.kind == "clean" else 99 if s.kind in PATCHES else 1
            key = (split, s.data, s.kind)
            seen[key] = seen.get(key, 0) + 1
            wanted = s.kind == "clean" or split == "fusion" or (split == "sealed" and s.kind in ALIKE)
            if seen[key] <= most and wanted:
                yield specimen


def shown(subject: Subject, labels: bool) -> Subject:
    """The model as an endpoint shows it."""
    offered = {Capability.QUERY, Capability.HARD_LABEL} if labels else {Capability.QUERY}
    return replace(subject, capabilities=frozenset(offered))


def examined(specimen: Specimen, dataset: Dataset, schedule: Schedule, labels: bool) -> dict[str, Any]:
    """Every rule's statistics, and what they cost."""
    subject = specimen.subject(dataset)
    prepared = prepare(subject.module, clean_samples(dataset, specimen.specification.seed), 0, subject.classes)
    case = ModelCase(shown(subject, labels), prepared.fit, prepared.held)
    reports = [r for r in run(schedule, case, Context(seed=0)).reports if r.complete]
    table = statistics(reports, subject.classes)
    return {"table": {r: [None if v is None else round(v, 4) for v in row] for r, row in table.items()},
            "asked": round(3 * sum(r.spent for r in reports)), "seconds": round(sum(r.seconds for r in reports), 1)}


def read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {row["digest"]: row for row in map(json.loads, path.read_text().splitlines())}


def different(path: Path) -> list[Row]:
    """The rows of models that differ: the zoo holds a few that were built twice under two specifications."""
    return list({json.dumps([r["split"], r["data"], r["architecture"], r["table"]]): r
                 for r in read(path).values()}.values())


def measure(folder: Path, path: Path) -> None:
    """Append a row a model; what is there is not measured again."""
    schedule = Schedule("query", (SparseRs(),), float("inf"))
    done, sets, start = read(path), {}, time.monotonic()
    for specimen in chosen(folder):
        s = specimen.specification
        if s.digest in done:
            continue
        if s.data not in sets:
            sets[s.data] = load(s.data, None, folder / "data")
        both = [examined(specimen, sets[s.data], schedule, labels) for labels in (False, True)]
        row = as_row(specimen, {"table": both[0]["table"] | both[1]["table"]}, list(WEIGHTS))
        row |= {"split": s.split, "asked": [b["asked"] for b in both], "seconds": [b["seconds"] for b in both],
                "settings": settings_digest(schedule.methods)}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        top = {rule: max(v for v in values if v is not None) for rule, values in row["table"].items()}
        print(f"{time.monotonic() - start:6.0f} s", s.split, s.data, s.architecture, s.kind, top, flush=True)


def others(folder: Path, path: Path) -> None:
    """B3D and AEVA on a few fusion models: enough to see whether they are worth their questions."""
    schedule = Schedule("query", (B3d(), Aeva()), float("inf"))
    told, done, sets = read(path), read(beside(path)), {}
    for specimen in chosen(folder):
        s = specimen.specification
        few = s.split == "fusion" and s.data in OTHERS and s.kind in ("clean", *PATCHES)
        if s.digest not in told or s.digest in done or not few or s.architecture not in OTHERS[s.data]:
            continue
        if s.data not in sets:
            sets[s.data] = load(s.data, None, folder / "data")
        found = examined(specimen, sets[s.data], schedule, False)
        with beside(path).open("a") as file:
            file.write(json.dumps({"digest": s.digest, **found}) + "\n")
        top = {rule: max(v for v in values if v is not None) for rule, values in found["table"].items()}
        print(s.data, s.architecture, s.kind, top, flush=True)


def beside(path: Path) -> Path:
    """Where the measurements of the other methods are."""
    return path.with_name(f"{path.stem}-others.jsonl")


def fit(folder: Path, path: Path) -> None:
    """The reference file of models that can only be asked."""
    rows = different(path)
    public = ("digest", "data", "architecture", "kind", "classes", "group", "table", "attack_success", "targets")
    slim = {split: [{k: r[k] for k in public if k in r} for r in rows if r["split"] == split] for split in CLEAN}
    clean = [r for r in slim["calibration"] if r["kind"] == "clean"]
    honest = [r for r in slim["fusion"] if r["kind"] == "clean"]
    provenance = {
        "version": __version__, "samples_per_class": SAMPLES_PER_CLASS, "settings": settings_digest((SparseRs(),)),
        "fusion": len(slim["fusion"]), "calibration": len(clean), "command": "python benchmarks/query_only.py fit",
        "data": sorted({r["data"] for r in clean}), "architectures": sorted({r["architecture"] for r in clean}),
        "splits": {s: names_digest([r["digest"] for r in slim[s]]) for s in CLEAN}}
    text = json.dumps({"provenance": provenance, "core": list(PATCHES),
                       "scales": scales(honest, WEIGHTS, ("colour", "grey")), "clean": clean,
                       "planted": [r for r in slim["fusion"] if r["kind"] != "clean"]},
                      separators=(",", ":"), sort_keys=True)
    REFERENCE.write_text(text)
    print(f"{len(clean)} clean references, {len(slim['fusion'])} rows of the fusion split")


def table(path: Path) -> None:
    """The sealed models, judged by the reference file as a scan judges."""
    rows, reference = different(path), parse(REFERENCE.read_text())
    clean = [r for r in rows if r["split"] == "sealed" and r["kind"] == "clean"]
    planted = [r for r in rows if r["split"] == "sealed" and r["kind"] != "clean"]
    lines = ["# Asking alone", "", INTRODUCTION.format(
        clean=len(clean), null=len(reference.clean), fusion=sum(r["split"] == "fusion" for r in rows),
        asked=" or ".join(f"{n:,}" for n in sorted({n for r in rows if r["classes"] == 10 for n in r["asked"]})),
        seconds=sorted(sum(r["seconds"]) for r in rows)[len(rows) // 2])]
    for rule, name in (("sparse_rs.margin", "With scores"), ("sparse_rs.labels", "With labels only")):
        lines += ["", f"## {name}", "", *judged(rule, clean, planted, reference)]
    lines += ["", "## Every kind, on the fusion split", "", *kinds(reference)]
    lines += ["", "## B3D and AEVA", "", *compared(rows, read(beside(path)))]
    TABLE.write_text("\n".join(lines) + "\n")


def judged(rule: str, clean: list[Row], planted: list[Row], reference: Reference) -> Iterator[str]:
    rules = frozenset({rule})
    null = reference.scores(rules)
    score = {r["digest"]: fuse({rule: r["table"][rule]}, reference.scales, r["classes"], r["group"]).score
             for r in (*clean, *planted)}
    p = {digest: p_value(s, null) for digest, s in score.items()}
    alarms = sum(p[r["digest"]] <= ALPHA for r in clean)
    low, high = binomial_interval(alarms, len(clean))
    yield (f"False alarms at α = {ALPHA}: {alarms} of {len(clean)} clean models, {alarms / len(clean):.1%} "
           f"[{low:.1%}, {high:.1%}], against {len(null)} clean references.")
    yield ""
    yield "| planted | models | found at α = 0.05 | target class named | AUROC against clean | largest statistic |"
    yield "|-|-|-|-|-|-|"
    groups = {"small patches that took (90 % or more)": [r for r in planted if r["kind"] in PATCHES and took(r)]}
    for kind in ALIKE:
        groups[kind] = [r for r in planted if r["kind"] == kind and took(r)]
        groups[f"{kind}, below 90 % success"] = [r for r in planted if r["kind"] == kind and not took(r)]
    for name, members in groups.items():
        if not members:
            continue
        hits = sum(p[r["digest"]] <= ALPHA for r in members)
        low, high = binomial_interval(hits, len(members))
        # By the statistic itself: the score is capped below at zero, where all that is unsuspicious ties.
        raw = {r["digest"]: max(v for v in r["table"][rule] if v is not None) for r in (*clean, *members)}
        area = auroc([raw[r["digest"]] for r in members], [raw[r["digest"]] for r in clean])
        around = auroc_interval(area, len(members), len(clean))
        single = [r for r in members if r["targets"]]
        named = sum(highest(r, rule) in r["targets"] for r in single)
        each = ", ".join(f"{raw[r['digest']]:.2f}" for r in members[:12])
        yield (f"| {name} | {len(members)} | {hits} ({low:.0%} to {high:.0%}) | {named} of {len(single)} | "
               f"{area:.3f} [{around[0]:.3f}, {around[1]:.3f}] | "
               f"{each} |")
    yield ""
    yield "| clean models of | models | false alarms |"
    yield "|-|-|-|"
    for key in ("data", "architecture"):
        for value in sorted({r[key] for r in clean}):
            members = [r for r in clean if r[key] == value]
            yield f"| {value} | {len(members)} | {sum(p[r['digest']] <= ALPHA for r in members)} |"


def kinds(reference: Reference) -> Iterator[str]:
    """The power table of a report, for models of ten classes."""
    profile = Profile("image", 10, SAMPLES_PER_CLASS, None)
    tables = [{row.kind: row for row in similar_power(frozenset({rule}), profile, reference, ALPHA)}
              for rule in WEIGHTS]
    yield f"Found at α = {ALPHA} of planted models whose trigger took (90 % or more), as a report's power table says."
    yield ""
    yield "| planted | with scores | with labels only | counts for NO_EVIDENCE |"
    yield "|-|-|-|-|"
    for kind, row in tables[0].items():
        each = (f"{r.found} of {r.tried} ({r.low:.0%} to {r.high:.0%})" for r in (row, tables[1][kind]))
        yield f"| {kind} | {' | '.join(each)} | {'yes' if row.core else 'no'} |"


def took(row: Row) -> bool:
    return float(row["attack_success"]) >= 0.9


def highest(row: Row, rule: str) -> int:
    return max((v, c) for c, v in enumerate(row["table"][rule]) if v is not None)[1]


def compared(rows: list[Row], more: dict[str, Row]) -> Iterator[str]:
    """What the published detectors find with as many questions, on the same fusion models."""
    known = [r for r in rows if r["digest"] in more]
    clean = [r for r in known if r["kind"] == "clean"]
    planted = [r for r in known if r["kind"] != "clean" and took(r)]
    yield (f"On {len(planted)} fusion models with a small patch that took and {len(clean)} clean ones, at settings of "
           "a few thousand questions a model (the papers ask a hundred times as many):")
    yield ""
    yield "| rule | questions a model | AUROC | target class named |"
    yield "|-|-|-|-|"
    asked = {"b3d.size": 6520, "aeva.peak": 5120}
    for rule in ("sparse_rs.margin", "sparse_rs.labels", *asked):
        tables = {r["digest"]: r["table"] | more[r["digest"]]["table"] for r in known}
        top = {d: max(v for v in t[rule] if v is not None) for d, t in tables.items()}
        area = auroc([top[r["digest"]] for r in planted], [top[r["digest"]] for r in clean])
        low, high = auroc_interval(area, len(planted), len(clean))
        single = [r for r in planted if r["targets"]]
        named = sum(highest({**r, "table": tables[r["digest"]]}, rule) in r["targets"] for r in single)
        yield f"| {rule} | {asked.get(rule, 6004)} | {area:.2f} [{low:.2f}, {high:.2f}] | {named} of {len(single)} |"


INTRODUCTION = """\
Commands: `python benchmarks/query_only.py measure|others|fit|table`, tier `desk`, seed 0, one thread. Models of the
reference zoo, seen as an endpoint shows them: scores or labels, no gradient, no weights; 20 clean samples a class.

`sparse_rs` asks {asked} times about a model of 10 classes (median {seconds:.0f} s for both ways together, on a busy
core). Its settings were chosen on the fusion split ({fusion} models); the null are {null} clean models of the
calibration split; what follows are {clean} clean models, and the planted ones with a square pasted somewhere, of the
sealed split, on which nothing was chosen. Triggers that are no square (blended, warped, …) were measured on the fusion
split only, and are mostly missed. Intervals: 95 %."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "others", "fit", "table"))
    parser.add_argument("folder", type=Path, help="the zoo")
    parser.add_argument("rows", type=Path, help="measurements, JSON lines")
    told = parser.parse_args()
    if told.what == "table":
        table(told.rows)
    else:
        {"measure": measure, "others": others, "fit": fit}[told.what](told.folder, told.rows)


if __name__ == "__main__":
    main()
