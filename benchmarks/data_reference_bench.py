"""Measure training sets of texts or tables and build the reference file of `laocoon sift` for them.

    python benchmarks/data_reference_bench.py measure --modality text --data-root DATA [--splits …] [--share 0 2]
    python benchmarks/data_reference_bench.py fit --modality text     (writes verdict/data_reference_text.json)
    python benchmarks/data_reference_bench.py test --modality text    (writes docs/results/sift_text.md)

As for images (`data_reference.py`): clean sets of the calibration split are the null, poisoned ones of the fusion split
give the power, clean and poisoned sets of the sealed split are the test. Each is sifted as by a user who has no model:
a small network is trained on it. A row is written as it comes to `--rows`; what is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from laocoon.core.errors import InputError
from laocoon.lab.benches import bench
from laocoon.lab.data_reference import WEIGHTS_OF, build, measure_made, table
from laocoon.lab.specimens import CLEAN, Bench, Specification
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.verdict.data_reference import DataReference, DataRow, parse, place

ROOT = Path(__file__).parent.parent
ALPHA = 0.05
MOST = {"fusion": (0, 3), "calibration": (80, 0), "sealed": (60, 4)}  # clean sets, and poisoned ones of each kind
Row = dict[str, Any]


def wanted(found: Bench, split: str) -> Iterator[Specification]:
    """The first ones of a split: no more than `MOST`."""
    counts: dict[str, int] = {}
    for specification in found.specifications(split):  # type: ignore[arg-type]
        kind = specification.kind
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= MOST[split][kind != CLEAN]:
            yield specification


def measured(found: Bench, specification: Specification) -> Row | None:
    """None: the poison could not be planted, or `sift` refuses the set (too small to tell a tail from chance)."""
    start = time.process_time()
    try:
        row = measure_made(found.made(specification))
    except InputError:
        return None
    if row is None:
        return None
    told = asdict(row)
    return {**told.pop("row"), **told, "specification": asdict(specification),
            "key": specification.digest(found.settings(specification)),
            "seconds": round(time.process_time() - start, 1)}


def measure(options: argparse.Namespace) -> Iterator[str]:
    found = bench(options.modality, options.data_root)
    for split in options.splits:
        path: Path = options.rows / options.modality / f"{split}-{options.share[0]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = {row["key"] for row in rows_of(options, split)} | skipped(options, split)
        k, n = options.share
        for specification in [*wanted(found, split)][k::n]:
            key = specification.digest(found.settings(specification))
            if key in done:
                continue
            row = measured(found, specification)
            with path.open("a") as file:
                file.write(json.dumps(row if row is not None else {"key": key, "skipped": True}) + "\n")
            if row is not None:
                yield (f"{split} {specification.data} {specification.kind} auroc {row['auroc']} flagged "
                       f"{row['flagged']} right {row['right']} of {row['poisoned']} {row['trigger']!r} "
                       f"worth {row['statistics'].get('lifted.worth')} {row['seconds']} s")


def _lines(options: argparse.Namespace, split: str) -> list[Row]:
    files = sorted((options.rows / options.modality).glob(f"{split}-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def rows_of(options: argparse.Namespace, split: str) -> list[Row]:
    """Each set once."""
    return list({row["digest"]: row for row in _lines(options, split) if not row.get("skipped")}.values())


def skipped(options: argparse.Namespace, split: str) -> set[str]:
    return {row["key"] for row in _lines(options, split) if row.get("skipped")}


def _data_rows(rows: Sequence[Row]) -> list[DataRow]:
    return [DataRow(r["digest"], r["source"], r["kind"], r["statistics"]) for r in rows]


def _known(options: argparse.Namespace) -> list[DataRow]:
    return _data_rows(rows_of(options, "calibration") + rows_of(options, "fusion"))


def fit(options: argparse.Namespace) -> None:
    rows, core = _known(options), bench(options.modality, options.data_root).core
    file = ROOT / "src" / "laocoon" / "verdict" / f"data_reference_{options.modality}.json"
    weights = WEIGHTS_OF[options.modality]
    note = "training sets of the lab's bench, a small network trained on each"
    file.write_text(build(rows, core, weights, note))
    print(table(rows, core, ALPHA, weights))


def _alarm(row: Row, reference: DataReference) -> bool:
    placed = place(row["statistics"], reference)
    return p_value(placed.score, placed.null) <= ALPHA


def test(options: argparse.Namespace) -> None:
    file = ROOT / "src" / "laocoon" / "verdict" / f"data_reference_{options.modality}.json"
    reference, held = parse(file.read_text()), rows_of(options, "sealed")
    core = bench(options.modality, options.data_root).core
    lines = ["| source | clean sets | false alarms at 0.05 |", "| - | -: | -: |"]
    clean = [r for r in held if r["kind"] == CLEAN]
    for source in [*sorted({r["source"] for r in clean}), "all"]:
        mine = [r for r in clean if source in ("all", r["source"])]
        found = sum(_alarm(r, reference) for r in mine)
        low, high = binomial_interval(found, len(mine))
        lines.append(f"| {source} | {len(mine)} | {found} [{low:.2f}, {high:.2f}] |")
    powers = ["| poison | sets | called suspicious | AUROC of samples, median (least) | flagged poison, share | "
              "flagged wrongly, share |", "| - | -: | -: | -: | -: | -: |"]
    for kind in sorted({r["kind"] for r in held} - {CLEAN}):
        own = [r for r in held if r["kind"] == kind]
        hits, areas = sum(_alarm(r, reference) for r in own), [r["auroc"] for r in own]
        recall = median(r["right"] / r["poisoned"] for r in own)
        wrong = median((r["flagged"] - r["right"]) / max(1, r["flagged"]) for r in own)
        mark = " (core)" if kind in core else ""
        powers.append(f"| {kind}{mark} | {len(own)} | {hits} | {median(areas):.3f} ({min(areas):.3f}) | {recall:.2f} | "
                      f"{wrong:.2f} |")
    page = ROOT / "docs" / "results" / f"sift_{options.modality}.md"
    page.write_text("\n".join([
        f"# Is a training set poisoned? ({options.modality})", "",
        f"Command: `python benchmarks/data_reference_bench.py test --modality {options.modality}`, tier `desk`, "
        f"seed 0; {reference.provenance['clean']} clean reference sets; a small network is trained on each set; "
        f"laocoon {reference.provenance['version']}.", "",
        "## Clean sets that nothing was chosen on (sealed split)", "", *lines, "",
        "## Sources left out (calibration split)", "", table(_known(options), core, ALPHA, reference.weights), "",
        "## Poisoned sets that nothing was chosen on (sealed split)", "", *powers, ""]))
    print(page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "fit", "test"])
    parser.add_argument("--modality", choices=["text", "tabular"], required=True)
    parser.add_argument("--rows", type=Path, default=Path.home() / ".cache" / "laocoon" / "sets")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--splits", nargs="+", default=["calibration", "fusion", "sealed"])
    parser.add_argument("--share", nargs=2, type=int, default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "measure":
        for line in measure(options):
            print(line, flush=True)
    else:
        (fit if options.what == "fit" else test)(options)


if __name__ == "__main__":
    main()
