"""Whole scans of the zoo's models, as a user runs them: verdicts, the share that is INCONCLUSIVE, seconds.

    python benchmarks/verdicts.py DATA_ROOT [--zoo FOLDER] [--split sealed] [--each N]
        [--subsets few|several] [--rows FILE] [--out FILE.md]

`laocoon lab zoo table` judges the statistics that were measured; this runs all that `scan` does, the methods that
do not count and the verification included, on the first N specimens by digest of every data set, clean and planted
(attack success of 90 % or more) each. Networks of few classes are asked for apart. Rows are kept, so that an
interrupted run goes on. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch

from laocoon.cli.memory import keep_freed_memory
from laocoon.lab.datasets import load
from laocoon.lab.reference import clean_samples
from laocoon.lab.zoo import Specimen, specimens
from laocoon.recipes.conformal import binomial_interval
from laocoon.verdict.scan import scan

VERDICTS = ("SUSPICIOUS", "NO_EVIDENCE", "INCONCLUSIVE")


def chosen(folder: Path, split: str, each: int, subsets: str) -> list[Specimen]:
    """The first `each` clean and planted specimens of every data set, by digest; subsets count for their source."""
    seen: Counter[tuple[str, bool]] = Counter()
    found = []
    for specimen in specimens(folder, split):  # type: ignore[arg-type]
        kind = specimen.specification.kind
        if specimen.specification.plan != subsets or (kind != "clean" and specimen.facts["attack_success"] < 0.9):
            continue
        cell = (specimen.specification.source, kind == "clean")
        seen[cell] += 1
        if seen[cell] <= each:
            found.append(specimen)
    return found


def one(specimen: Specimen, root: Path, cache: Path, budget: str) -> dict[str, object]:
    s = specimen.specification
    dataset = load(s.data, root, cache)
    start = time.process_time()
    said = scan(specimen.subject(dataset), clean_samples(dataset, s.seed), budget=budget)
    targets = {d for y, d in enumerate(specimen.facts.get("destinations", [])) if d >= 0 and d != y}
    return {"digest": specimen.folder.name, "data": s.data, "architecture": s.architecture, "kind": s.kind,
            "verdict": said.verdict.value, "p": said.p_value, "reason": said.reason,
            "named": said.target_classes[:1] == tuple(targets) if len(targets) == 1 else None,
            "passes": said.spent, "seconds": time.process_time() - start}


def page(rows: list[dict[str, object]], command: str) -> str:
    lines = ["| data | models | SUSPICIOUS | NO_EVIDENCE | INCONCLUSIVE | seconds, median (largest) |", "|-|-|-|-|-|-|"]
    for data in sorted({str(r["data"]) for r in rows}):
        for clean in (True, False):
            cell = [r for r in rows if r["data"] == data and (r["kind"] == "clean") == clean]
            if cell:
                counts = Counter(r["verdict"] for r in cell)
                times = [float(r["seconds"]) for r in cell]  # type: ignore[arg-type]
                lines.append(f"| {data}, {'clean' if clean else 'planted'} | {len(cell)} | "
                             + " | ".join(str(counts[v]) for v in VERDICTS)
                             + f" | {median(times):.0f} ({max(times):.0f}) |")
    silent = sum(r["verdict"] == "INCONCLUSIVE" for r in rows)
    low, high = binomial_interval(silent, len(rows))
    return "\n".join([
        "# Verdicts of whole scans", "", f"Command: `{command}`, tier `desk`, seed 0, one thread, 20 clean samples a "
        "class. Planted: attack success of 90 % or more, every kind.", "",
        f"INCONCLUSIVE: {silent} of {len(rows)} [{low:.0%}, {high:.0%}].", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache" / "laocoon" / "zoo")
    parser.add_argument("--split", default="sealed")
    parser.add_argument("--each", type=int, default=6)
    parser.add_argument("--budget", default="default")
    parser.add_argument("--subsets", default="", help="few or several: of two and three, or four to seven classes")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [json.loads(line) for line in kept]
    done = {row["digest"] for row in rows}
    for specimen in chosen(options.zoo, options.split, options.each, options.subsets):
        if specimen.folder.name in done:
            continue
        rows.append(one(specimen, options.data_root, options.zoo / "data", options.budget))
        print({k: v for k, v in rows[-1].items() if k != "reason"}, flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    command = f"python benchmarks/verdicts.py DATA_ROOT --split {options.split} --each {options.each}"
    command += f" --subsets {options.subsets}" if options.subsets else ""
    text = page(rows, command)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
