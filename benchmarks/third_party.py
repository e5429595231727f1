"""Scan models that others trained and set the answers beside the truth.

    python benchmarks/third_party.py MODELS DATA_ROOT [--budget default] [--out FILE.md]

MODELS holds NAME.onnx with NAME.json beside it: {"data": "mnist", "backdoored": true, "mode": …, "target": …}.
DATA_ROOT holds a folder per data set with test.parquet. The scan never sees the JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from laocoon import load_data, load_model, scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--budget", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = ["| model | truth | accuracy on the samples | verdict | p | score | suspected | evidence | seconds |",
             "|-|-|-|-|-|-|-|-|-|"]
    for path in sorted(options.models.glob("*.onnx")):
        truth = json.loads(path.with_suffix(".json").read_text())
        subject = load_model(path)
        data = load_data(options.data_root / truth["data"] / "test.parquet", subject, seed=options.seed)
        said = scan(subject, data, budget=options.budget, seed=options.seed)
        known = "clean" if not truth["backdoored"] else (
            f"{truth['mode']}{'' if truth.get('target') is None else ' ' + str(truth['target'])}, "
            f"success {truth['attack_success']:.0%}")
        shown = "–"
        if said.evidence:
            e = said.evidence[0]
            shown = f"{e.goal}: {e.family} {e.size:.3g} {e.unit}, {e.success:.0%} [{e.low:.0%}, {e.high:.0%}]"
        p = "–" if said.p_value is None else f"{said.p_value:.3f}"
        lines.append(f"| {path.stem} | {known} | {said.subject['accuracy']:.0%} | {said.verdict.value} | {p} "
                     f"| {said.score:.2f} | {said.target_classes[0] if said.target_classes else '–'} | {shown} "
                     f"| {said.seconds:.0f} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(
            ["# Models that others trained", "",
             f"Command: `python benchmarks/third_party.py MODELS DATA_ROOT --budget {options.budget}`, seed "
             f"{options.seed}, 20 clean samples a class.", "", *lines, ""]))


if __name__ == "__main__":
    main()
