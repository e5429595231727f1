"""Measure training sets and build the reference file of `laocoon sift`: docs/results/sift_reference.md.

    laocoon lab zoo build …                                        (the sets are those that the zoo was trained on)
    python benchmarks/data_reference.py measure --data-root DATA [--splits calibration fusion sealed] [--share 0 2]
    python benchmarks/data_reference.py fit                        (writes src/laocoon/verdict/data_reference.json)
    python benchmarks/data_reference.py test                       (clean sets of the sealed split, docs/results)

Clean sets of the calibration split are the null; poisoned ones of the fusion split give the power; clean sets of the
sealed split are the test. A row is written as it comes to `--rows`; what is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.lab.data_reference import build, table
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.reference import clean_samples
from laocoon.lab.zoo import Specimen, specimens, training_set
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.verdict.data_reference import DataRow, parse, place
from laocoon.verdict.data_statistics import chosen, statistics_of

ROOT = Path(__file__).parent.parent
FILE = ROOT / "src" / "laocoon" / "verdict" / "data_reference.json"
PAGE = ROOT / "docs" / "results" / "sift_reference.md"
CORE = ("patch", "patch_low_rate", "blended", "blended_smooth", "sinusoid")
MOST = {"digits": 20, "mnist": 20, "gtsrb": 10, "cifar10": 20}  # clean sets of a source and split
MOST_POISONED = 1  # sets of a kind and source; of the core kinds three times as many
ALPHA = 0.05


def wanted(zoo: Path, split: str) -> list[Specimen]:
    """Clean ones of the calibration and the sealed split, poisoned ones of the fusion split, in digest order."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for specimen in specimens(zoo, split):  # type: ignore[arg-type]
        s = specimen.specification
        clean = s.kind == "clean"
        if clean is (split == "fusion") or (not clean and not specimen.facts.get("poisoned")):
            continue
        key = (s.data, s.kind)
        counts[key] = counts.get(key, 0) + 1
        most = MOST[s.data] if clean else MOST_POISONED * (3 if s.kind in CORE else 1)
        if counts[key] <= most:
            found.append(specimen)
    return found


def measured(specimen: Specimen, dataset: Dataset, most: int, methods: list[str]) -> dict[str, object] | None:
    train, poisoned = training_set(specimen.specification, dataset)
    if len(poisoned) != (specimen.facts.get("poisoned") or 0):
        return None  # built under an earlier form of the plan: not the set that the network was trained on
    subject = specimen.subject(dataset)
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(specimen.specification.seed))[:most]
    rows = rows.sort().values
    seen = Samples(train.inputs[rows], train.labels[rows])
    case = DataCase(seen, dataset.classes, subject, clean_samples(dataset, specimen.specification.seed))
    return dict(statistics_of(case, Context(seed=0), chosen(methods)))


def measure(options: argparse.Namespace) -> Iterator[str]:
    sets: dict[str, Dataset] = {}
    for split in options.splits:
        path: Path = options.rows / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = {json.loads(line)["digest"] for line in path.read_text().splitlines()} if path.exists() else set()
        k, n = options.share
        for specimen in wanted(options.zoo, split)[k::n]:
            s = specimen.specification
            if s.digest in done:
                continue
            if s.data not in sets:
                sets[s.data] = load(s.data, options.data_root, options.zoo / "data")
            start = time.process_time()
            found = measured(specimen, sets[s.data], options.most, options.methods)
            if found is None:
                continue
            row = {"digest": s.digest, "source": s.data, "kind": s.kind, "statistics": found,
                   "seconds": round(time.process_time() - start, 1)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            yield f"{split} {s.data} {s.architecture} {s.kind} {row['seconds']} s"


def rows_of(folder: Path, split: str) -> list[DataRow]:
    path = folder / f"{split}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [DataRow(r["digest"], r["source"], r["kind"], r["statistics"]) for r in lines]


def fit(options: argparse.Namespace) -> None:
    rows = rows_of(options.rows, "calibration") + rows_of(options.rows, "fusion")
    FILE.write_text(build(rows, CORE, note=f"{options.most} samples a set"))
    print(table(rows, CORE, ALPHA))


def test(options: argparse.Namespace) -> None:
    reference = parse(FILE.read_text())
    held = rows_of(options.rows, "sealed")
    lines = ["| source | clean sets | false alarms at 0.05 |", "| - | -: | -: |"]
    alarms = {row.digest: p_value((placed := place(row.statistics, reference)).score, placed.null) <= ALPHA
              for row in held}
    for source in [*sorted({r.source for r in held}), "all"]:
        mine = [r for r in held if source in ("all", r.source)]
        found = sum(alarms[r.digest] for r in mine)
        low, high = binomial_interval(found, len(mine))
        lines.append(f"| {source} | {len(mine)} | {found} [{low:.2f}, {high:.2f}] |")
    known = rows_of(options.rows, "calibration") + rows_of(options.rows, "fusion")
    kinds = sorted({r.kind for r in reference.planted})
    powers = ["| poison | sets | called suspicious |", "| - | -: | -: |"]
    for kind in kinds:
        own = [place(r.statistics, reference) for r in reference.planted if r.kind == kind]
        hits = sum(p_value(x.score, x.null) <= ALPHA for x in own)
        powers.append(f"| {kind} | {len(own)} | {hits} |")
    PAGE.write_text("\n".join([
        "# Is a training set poisoned at all?", "",
        f"Command: `python benchmarks/data_reference.py test`, tier `desk`, seed 0; {reference.provenance['clean']} "
        f"clean reference sets of the calibration split, {options.most} samples of each seen, methods "
        f"{', '.join(options.methods) or 'those that run by default'}; laocoon {reference.provenance['version']}.", "",
        "## Clean sets that nothing was chosen on (sealed split)", "", *lines, "",
        "## Sources left out (calibration split)", "", table(known, CORE, ALPHA), "",
        "## Poisoned sets of the fusion split (the rules were weighed by these)", "", *powers, ""]))
    print(PAGE.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "fit", "test"])
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache" / "laocoon" / "zoo")
    parser.add_argument("--rows", type=Path, default=Path.home() / ".cache" / "laocoon" / "sets")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--splits", nargs="+", default=["calibration", "fusion", "sealed"])
    parser.add_argument("--share", nargs=2, type=int, default=[0, 1])
    parser.add_argument("--most", type=int, default=3000, help="samples of a set that are seen")
    parser.add_argument("--methods", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "measure":
        for line in measure(options):
            print(line, flush=True)
    else:
        (fit if options.what == "fit" else test)(options)


if __name__ == "__main__":
    main()
