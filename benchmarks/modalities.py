"""Sift, guard and repair on texts and tables: docs/results/modalities.md, with rows attack × modality × verb.

    python benchmarks/modalities.py measure --modality tabular --split sealed --each 4 [--data-root DATA] [--share 0/2]
    python benchmarks/modalities.py measure --modality text    --split sealed --each 4
    python benchmarks/modalities.py table

Specimens are those of the benches (`laocoon lab bench`), made again from their specifications. A row is written as it
comes to `--rows`; what is there is not repeated. A defence is given what its user has: the training set or the model,
and the specimen's clean samples; a repair half of the test samples. What is true is looked up afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from laocoon.core.card import Capability
from laocoon.core.cases import DataCase, informed
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import LaocoonError
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import DataDetector
from laocoon.core.subject import Subject
from laocoon.lab.benches import bench as opened
from laocoon.lab.specimens import CLEAN, Bench, Made, Specification
from laocoon.recipes.ranking import auroc
from laocoon.verdict.examination import Crash, attempted

PAGE = Path(__file__).parent.parent / "docs" / "results" / "modalities.md"
Row = dict[str, Any]
MOST = 400  # test samples of each side that a guard is asked about
TOOK = 0.9  # attack success from which a plant counts
ALPHA = 0.05


def mask_of(made: Made) -> Tensor:
    """Which training samples were changed, [n]."""
    truth = torch.zeros(len(made.train), dtype=torch.bool)
    truth[made.poisoned] = True
    return truth


def sifted(made: Made, seed: int) -> Row:
    """AUROC of poison against the rest: each method's, and that of the verb."""
    from laocoon.files.training_set import in_memory
    from laocoon.verdict.sift import sift

    truth = mask_of(made)
    if not bool(truth.any()) or bool(truth.all()):
        return {"left_out": "nobody poisoned data"}
    subject = informed(made.subject, made.given)
    case = DataCase(made.train, subject.classes, subject, made.given, made.plan.untrained, made.specification.modality)
    each: dict[str, float] = {}
    for kind in classes("laocoon.detectors.data", DataDetector):  # type: ignore[type-abstract]
        if case.modality not in kind.card.modalities:
            continue
        scored = attempted(lambda k=kind: k().examine(case, Context(seed=seed)))
        if not isinstance(scored, Crash) and scored.scores is not None:
            each[kind.card.name] = auroc(scored.scores[truth].tolist(), scored.scores[~truth].tolist())
    row: Row = {"methods": {k: round(v, 4) for k, v in each.items()}}
    said = attempted(lambda: sift(in_memory(made.train, subject.classes), subject=subject, trusted=made.given,
                                  seed=seed))
    if isinstance(said, Crash):
        return row | {"reason": said.reason}
    row["verdict"] = said.verdict.value
    if said.table is not None:
        scores = torch.as_tensor(said.table.suspicion).float()
        row["auroc"] = auroc(scores[truth].tolist(), scores[~truth].tolist())
    return row


def guarded(made: Made, seed: int) -> Row:
    """Stamped test samples that succeed against clean ones, and false alarms at the stated rate."""
    from laocoon.verdict.guard import Guarded

    subject = informed(made.subject, made.given)
    guard = Guarded.fit(subject, made.given, alpha=ALPHA, seed=seed)
    clean = [guard.check(part) for part in made.test.inputs[:MOST].split(64)]
    flagged = torch.cat([part.flagged for part in clean]).float()
    row: Row = {"false_alarms": float(flagged.mean())}
    if made.trigger is None:
        return row
    goal = made.trigger.goal
    assert isinstance(goal, ClassGoal)
    rows = goal.applies(made.test.labels).nonzero().flatten()[:MOST]
    stamped = torch.cat([made.trigger.stamp(part) for part in made.test.inputs[rows].split(64)])
    with torch.no_grad():
        said = torch.cat([subject.outputs(part).logits.argmax(-1) for part in stamped.split(256)])
    came = said == goal.destination(made.test.labels[rows])
    if not bool(came.any()):
        return row | {"left_out": "no stamped sample succeeds"}
    told = [guard.check(part) for part in stamped[came].split(64)]
    scores = torch.cat([part.scores for part in told]).tolist()
    return row | {"auroc": auroc(scores, torch.cat([part.scores for part in clean]).tolist()),
                  "flagged": float(torch.cat([part.flagged for part in told]).float().mean())}


@torch.no_grad()
def standing(subject: Subject, made: Made) -> tuple[float, float]:
    """True attack success and clean accuracy on test samples."""
    test = made.test
    right = [subject.outputs(x).logits.argmax(-1) == y for x, y in
             zip(test.inputs.split(256), test.labels.split(256), strict=True)]
    if made.trigger is None:
        return math.nan, float(torch.cat(right).float().mean())
    goal = made.trigger.goal
    assert isinstance(goal, ClassGoal)
    rows = goal.applies(test.labels)
    hits = [goal.success(subject.outputs(made.trigger.stamp(x)), y) for x, y in
            zip(test.inputs[rows].split(256), test.labels[rows].split(256), strict=True)]
    return float(torch.cat(hits).float().mean()), float(torch.cat(right).float().mean())


def repaired(made: Made, seed: int) -> Row:
    """The verb's own status, true success and accuracy before and after.

    Who repairs has more than the few samples of a scan: half of the test samples; it is judged on the other half.
    """
    from laocoon.verdict.repair import repair

    if Capability.WEIGHTS not in made.subject.capabilities:
        return {"left_out": "trees have no weights to mend"}
    half, test = len(made.test) // 2, made.test
    clean, rest = (replace(test, inputs=test.inputs[part], labels=test.labels[part])
                   for part in (slice(0, half), slice(half, None)))
    subject, judged = informed(made.subject, clean), replace(made, test=rest)
    report = repair(subject, clean, seed=seed, force=True)
    before, accurate = standing(subject, judged)
    after, still = standing(report.mended if report.mended is not None else subject, judged)
    # What a network that was never poisoned answers: less than this no repair can reach.
    twin, _ = standing(made.plan.fit(made.plan.train, Context(seed=made.specification.seed + 1)), judged)
    return {"status": report.status.value, "scan": report.scan_before.verdict, "repairs": list(report.repairs),
            "before": before, "after": after, "twin": twin, "lost": accurate - still,
            "tried": {t.repair: t.reason for t in report.trials}}


VERBS: dict[str, Callable[[Made, int], Row]] = {"sift": sifted, "guard": guarded, "repair": repaired}


def wanted(bench: Bench, split: str, each: int) -> Iterator[Specification]:
    """The first so many specimens of every kind, clean ones among them."""
    counts: dict[str, int] = {}
    for specification in bench.specifications(split):  # type: ignore[arg-type]
        counts[specification.kind] = counts.get(specification.kind, 0) + 1
        if counts[specification.kind] <= each:
            yield specification


def measure(options: argparse.Namespace) -> None:
    bench = opened(options.modality, options.data_root)
    options.rows.mkdir(parents=True, exist_ok=True)
    done = {(row["digest"], row["verb"]) for row in read(options.rows)}
    k, n = (int(v) for v in options.share.split("/"))
    with (options.rows / f"{options.modality}-{k}-{n}.jsonl").open("a", encoding="utf-8") as file:
        for specification in list(wanted(bench, options.split, options.each))[k::n]:
            digest = specification.digest(bench.settings(specification))
            missing = [v for v in options.verbs.split(",") if (digest, v) not in done]
            if specification.kind == CLEAN:
                missing = [v for v in missing if v == "guard"]
            made = bench.made(specification) if missing else None
            for verb in missing if made is not None else ():
                start = time.monotonic()
                row = of(verb, made, options.seed)
                row |= {"digest": digest, "verb": verb, "modality": options.modality, "kind": specification.kind,
                        "data": specification.data, "architecture": specification.architecture,
                        "seed": specification.seed, "seconds": round(time.monotonic() - start, 1),
                        "success": None if math.isnan(made.success) else made.success}
                file.write(json.dumps(row, sort_keys=True) + "\n")
                file.flush()
                print({key: row[key] for key in row if key not in ("digest", "methods")}, flush=True)


def of(verb: str, made: Made, seed: int) -> Row:
    """What a verb says, or why it cannot say anything of this specimen."""
    try:
        return VERBS[verb](made, seed)
    except LaocoonError as error:
        return {"left_out": str(error)}


def read(folder: Path) -> list[Row]:
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def interval(values: Sequence[float]) -> str:
    """Mean with a 95 % interval over seeds (Student's t)."""
    from scipy.stats import t

    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.2f} ± {half:.2f}"


def line(verb: str, modality: str, kind: str, cell: Sequence[Row]) -> str:
    def values(key: str) -> list[float]:
        return [r[key] for r in cell if r.get(key) is not None and not math.isnan(r[key])]

    if verb == "sift":
        names = sorted({m for r in cell for m in r.get("methods", {})})
        known = {m: fmean([r["methods"][m] for r in cell if m in r.get("methods", {})]) for m in names}
        best = sorted(known, key=lambda m: -known[m])[:3]
        figures = f"AUROC {interval(values('auroc'))}; best methods: " + ", ".join(f"{m} {known[m]:.2f}" for m in best)
    elif verb == "guard":
        figures = (f"AUROC {interval(values('auroc'))}; flagged {interval(values('flagged'))}; "
                   f"false alarms {interval(values('false_alarms'))}")
    else:
        figures = (f"success {interval(values('before'))} to {interval(values('after'))}; accuracy lost "
                   f"{interval(values('lost'))}; "
                   f"under 10 %: {sum(v < 0.1 for v in values('after'))} of {len(values('after'))}, "
                   f"{sum(r['after'] < 0.1 and r['lost'] <= 0.02 for r in cell if 'after' in r)} of them with at most "
                   "two points of accuracy lost; "
                   f"no more than 5 points above a network trained on clean data ({interval(values('twin'))}): "
                   f"{sum(r['after'] <= r['twin'] + 0.05 for r in cell if 'twin' in r)} of {len(values('twin'))}")
    reasons = sorted({r["left_out"] for r in cell if "left_out" in r})
    more = f"; left out: {reasons[0]}" if reasons else ""
    return f"| {kind} | {modality} | {verb} | {len(cell)} | {figures}{more} |"


def table(rows: Sequence[Row], verbs: str) -> str:
    cells: dict[tuple[str, str, str], list[Row]] = {}
    weak = 0
    for row in rows:
        if row["kind"] != CLEAN and (row["success"] is None or row["success"] < TOOK):
            weak += 1
            continue
        cells.setdefault((row["modality"], row["kind"], row["verb"]), []).append(row)
    lines = [line(verb, modality, kind, cell) for (modality, kind, verb), cell in sorted(cells.items())]
    for modality in sorted({key[0] for key in cells}):
        mended = [r for (m, _, verb), cell in cells.items() if m == modality and verb == "repair" for r in cell]
        if mended:
            lines.append(line("repair", modality, "**all kinds**", mended))
    named = " and ".join(verbs.split(",")).capitalize()
    return "\n".join([
        f"# {named} on texts and tables", "",
        f"Tier: desk. Intervals are 95 % over specimens, each with a seed of its own. Rows of plants whose attack "
        f"succeeded on less than {TOOK:.0%} of test samples are left out ({weak} of {len(rows)}). Best methods are "
        "named after the fact and are no estimate of what one would get by choosing them. A repair is given half of "
        "the test samples (300 texts) and judged on the other half, with `--force`.", "",
        "Command: `python benchmarks/modalities.py measure --modality … --split sealed` and then `… table`, "
        f"`--verbs {verbs}`.", "",
        "| attack | modality | verb | specimens | figures |", "| - | - | - | - | - |", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("--modality", default="tabular", choices=["tabular", "text"])
    parser.add_argument("--split", default="sealed", choices=["fusion", "calibration", "sealed"])
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--each", type=int, default=4, help="specimens of each kind")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rows", type=Path, default=Path.home() / ".cache" / "laocoon" / "modalities")
    parser.add_argument("--share", default="0/1", help="K/N: every N-th specimen from the K-th")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "measure":
        measure(options)
    else:
        rows = [row for row in read(options.rows) if row["verb"] in options.verbs.split(",")]
        options.out.write_text(table(rows, options.verbs), encoding="utf-8")


if __name__ == "__main__":
    main()
