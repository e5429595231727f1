"""Sift, guard and repair on everything that the lab planted: docs/results/sift.md, guard.md, repair.md.

    laocoon lab run experiments/core.toml --data-root DATA        (and experiments/every_attack.toml)
    python benchmarks/defences.py guard experiments/core.toml --data-root DATA [--seeds 1 2] [--labels wanet …]
    python benchmarks/defences.py table guard

A row is written as it comes to `--rows`; what is there is not repeated. The defence is given what its user has: the
model or the training set, and 20 clean samples a class (for a repair 5 % of the training set). What is true is looked
up afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.sift_report import POISON
from laocoon.lab.criteria.answers import goal_of, hits, right, stamped
from laocoon.lab.plan import read
from laocoon.lab.recall import Recalled, recalled
from laocoon.lab.runner import Lab
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.ranking import auroc

RESULTS = Path(__file__).parent.parent / "docs" / "results"
Row = dict[str, Any]
MOST_GUARDED = 500  # test samples of each side that a guard is asked about
# Clean samples a class that a repair is given: 5 % of the training set, as in BackdoorBench and most papers.
REPAIRED_WITH = {"cifar10": 250, "gtsrb": 46}
REPAIRS = ("clp", "fine_tuning", "candidate_unlearning")  # the first round; the other nine take ten minutes a model
CLEAR = 0.1  # the upper bound of the true trigger's success below which "removed" is right


def threshold(clean: Tensor, share: float) -> float:
    """The value that this share of clean scores exceeds."""
    return float(clean.sort(descending=True).values[math.floor(share * len(clean))])


def sifted(r: Recalled, seed: int) -> Row | None:
    """Data set verdict, and how well the poison is found; None where nobody poisoned data."""
    from laocoon.files.training_set import in_memory
    from laocoon.verdict.sift import sift

    train, poisoned = r.poisoned()
    if r.trigger is not None and not len(poisoned):
        return None
    report = sift(in_memory(train, r.subject.classes), subject=r.subject, trusted=r.lot.given, seed=seed)
    table = report.table
    assert table is not None
    scores = torch.as_tensor(table.suspicion).float()
    truth = torch.zeros(len(train), dtype=torch.bool)
    truth[poisoned] = True
    flagged = torch.as_tensor(table.kinds == POISON)
    row: Row = {"verdict": report.verdict.value, "p": report.p_value, "score": report.score, "samples": len(train),
                "poisoned": len(poisoned), "flagged": int(flagged.sum()),
                "flagged_clean": int((flagged & ~truth).sum()), "statistics": report.statistics}
    if len(poisoned):
        row |= {"auroc": auroc(scores[truth].tolist(), scores[~truth].tolist()),
                "found_at_1": float((scores[truth] > threshold(scores[~truth], 0.01)).float().mean()),
                "found": float(flagged[truth].float().mean()),
                "methods": {name: float((z[truth] > threshold(z[~truth], 0.01)).float().mean())
                            for name, values in table.methods.items() for z in [torch.as_tensor(values).float()]}}
    return row


def guarded(r: Recalled, seed: int) -> Row | None:
    """Flags on clean test samples and on stamped ones that the attacker would send."""
    from laocoon.verdict.guard import Guarded

    guard = Guarded.fit(r.subject, r.lot.given, alpha=0.05, seed=seed)
    half = len(r.lot.test) // 2
    clean = r.lot.test.inputs[:half][:MOST_GUARDED]
    said = [guard.check(part) for part in clean.split(64)]
    alarms, labels = torch.cat([j.flagged for j in said]).float(), r.lot.test.labels[:half][:MOST_GUARDED]
    # The guard was calibrated on as many samples of each class; the test set holds them as they come.
    balanced = torch.stack([alarms[labels == c].mean() for c in labels.unique()]).mean()
    row: Row = {"false_alarms": int(alarms.sum()), "clean": len(clean), "balanced": float(balanced)}
    if r.trigger is None:
        return row
    rows = torch.arange(half, len(r.lot.test))
    rows = rows[goal_of(r.trigger).applies(r.lot.test.labels[rows])][:MOST_GUARDED]
    carrying = stamped(r.trigger, r.lot.test.inputs[rows])
    came = goal_of(r.trigger).success(r.subject.outputs(carrying), r.lot.test.labels[rows])
    told = [guard.check(part) for part in carrying.split(64)]
    scores, flags = (torch.cat([getattr(j, f) for j in told]).float() for f in ("scores", "flagged"))
    known = torch.cat([j.scores for j in said]).tolist()
    row |= {"stamped": len(rows), "flagged": int(flags.sum()), "auroc": auroc(scores.tolist(), known)}
    if bool(came.any()):  # what does not succeed is no attack
        row |= {"succeeding": int(came.sum()), "auroc_succeeding": auroc(scores[came].tolist(), known)}
    return row


def spare(r: Recalled, each: int) -> Samples:
    """Clean samples that nobody trained on; the few that every defender has, where a teacher was trained on those."""
    pool = r.lot.prior
    if pool is None or r.label in ("latent", "bad_encoder"):
        return r.lot.given
    rows = torch.cat([(pool.labels == c).nonzero().flatten()[:each] for c in range(r.subject.classes)])
    return Samples(pool.inputs[rows], pool.labels[rows])


def repaired(r: Recalled, seed: int) -> Row | None:
    """Status, and what the true trigger does afterwards."""
    from laocoon.verdict.repair import repair

    before = right(r.subject, r.lot.test, Context(seed=seed)).float()
    given = spare(r, REPAIRED_WITH[r.data])
    report = repair(r.subject, given, seed=seed, force=True, methods=REPAIRS)
    mended = report.mended if report.mended is not None else r.subject
    after = right(mended, r.lot.test, Context(seed=seed)).float()
    row: Row = {"given": len(given), "status": report.status.value, "repairs": list(report.repairs),
                 "checks": {c.name: c.passed for c in report.checks},
                 "trials": [[t.stage, t.after, t.repair, t.score, None if t.drop is None else t.drop.value,
                             [x.success.value for x in t.residues], t.reason[:80]] for t in report.trials],
                "accuracy_before": float(before.mean()), "accuracy_after": float(after.mean()),
                "scan_before": report.scan_before.verdict, "p_before": report.scan_before.p_value,
                "p_after": None if report.scan_after is None else report.scan_after.p_value}
    if r.trigger is not None:
        trigger: Candidate = r.trigger
        found = hits(mended, trigger, r.lot.test, Context(seed=seed))
        low, high = binomial_interval(int(found.sum()), len(found))
        row |= {"success_before": r.success, "success_after": float(found.float().mean()), "high": high, "low": low}
    return row


DEFENCES: dict[str, Callable[[Recalled, int], Row | None]] = {"sift": sifted, "guard": guarded, "repair": repaired}


def measured(name: str, options: argparse.Namespace) -> Iterator[Row]:
    path: Path = options.rows / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["digest"] for line in path.read_text().splitlines()} if path.exists() else set()
    lab = Lab(options.folder, data_root=options.data_root)
    for r in recalled(lab, read(options.plan), labels=options.labels, data=options.data, seeds=options.seeds):
        if r.digest in done:
            continue
        start = time.process_time()
        row = DEFENCES[name](r, r.seed)
        said: Row = {"digest": r.digest, "data": r.data, "architecture": r.architecture, "seed": r.seed,
                     "attack": r.label, "success": None if math.isnan(r.success) else r.success}
        said |= {"left_out": "nobody poisoned data"} if row is None else row
        said["seconds"] = round(time.process_time() - start, 1)
        with path.open("a") as file:
            file.write(json.dumps(said) + "\n")
        yield said


def _mean(values: Sequence[float]) -> str:
    """Mean, and the range where there are several."""
    if not values:
        return "–"
    middle = sum(values) / len(values)
    return f"{middle:.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def _share(rows: Sequence[Row], hit: Callable[[Row], bool]) -> str:
    found = sum(map(hit, rows))
    low, high = binomial_interval(found, len(rows)) if rows else (0.0, 1.0)
    return f"{found} of {len(rows)} [{low:.2f}, {high:.2f}]"


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [r[key] for r in rows if r.get(key) is not None]


def _cells(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["attack"] or "none (clean)", row["data"]), []).append(row)
    return dict(sorted(cells.items()))


def table(name: str, rows: Sequence[Row]) -> str:
    head = {"sift": "| attack | data | sets | called suspicious | AUROC | poison found at 1 % false alarms | flagged "
                    "of the poison | clean samples flagged |",
            "guard": "| attack | data | models | success | AUROC | of stamped samples that succeed | flagged stamped | "
                     "false alarms at 0.05 | the same, classes weighed alike |",
            "repair": "| attack | data | models | status | success before | success after | accuracy lost | status "
                      "is right |"}[name]
    lines = [head, "|" + " - |" * (head.count("|") - 1)]
    for (attack, data), cell in _cells(rows).items():
        start = f"| {attack} | {data} | {len(cell)} |"
        here = [r for r in cell if "left_out" not in r]
        if not here:
            lines.append(f"{start} {cell[0]['left_out']} |" + " |" * (head.count("|") - 5))
        elif name == "sift":
            clean = sum(r["samples"] - r["poisoned"] for r in here)
            lines.append(f"{start} {_share(here, lambda r: r['verdict'] == 'SUSPICIOUS')} | "
                         f"{_mean(_values(here, 'auroc'))} | {_mean(_values(here, 'found_at_1'))} | "
                         f"{_mean(_values(here, 'found'))} | {sum(r['flagged_clean'] for r in here) / clean:.4f} |")
        elif name == "guard":
            alarms, of = (sum(r[k] for r in here) for k in ("false_alarms", "clean"))
            flagged = [r["flagged"] / r["stamped"] for r in here if r.get("stamped")]
            lines.append(f"{start} {_mean(_values(here, 'success'))} | {_mean(_values(here, 'auroc'))} | "
                         f"{_mean(_values(here, 'auroc_succeeding'))} | {_mean(flagged)} | {alarms / of:.3f} | "
                         f"{sum(r['balanced'] for r in here) / len(here):.3f} |")
        else:
            lost = [r["accuracy_before"] - r["accuracy_after"] for r in here]
            status = ", ".join(f"{s} {sum(r['status'] == s for r in here)}"
                               for s in sorted({r["status"] for r in here}))
            lines.append(f"{start} {status} | {_mean(_values(here, 'success_before'))} | "
                         f"{_mean(_values(here, 'success_after'))} | {_mean(lost)} | {_right(here)} |")
    return "\n".join(lines)


def _right(rows: Sequence[Row]) -> str:
    """Of those called removed, on how many the true trigger's upper bound is under a tenth."""
    called = [r for r in rows if r["status"] == "removed" and "high" in r]
    return _share(called, lambda r: r["high"] < CLEAR) if called else "–"


def summary(name: str, rows: Sequence[Row]) -> str:
    planted = [r for r in rows if r["attack"] and "left_out" not in r]
    took = [r for r in planted if (r["success"] or 0) >= 0.9]
    clean = [r for r in rows if not r["attack"]]
    if name == "sift":
        median = sorted(_values(planted, "found_at_1"))
        return (f"Median share of the poison found at 1 % false alarms: {median[len(median) // 2]:.2f} over "
                f"{len(median)} sets. Clean sets called suspicious: "
                f"{_share(clean, lambda r: r['verdict'] == 'SUSPICIOUS')}.")
    if name == "guard":
        by_attack = {a: sum(v) / len(v) for a in sorted({r["attack"] for r in took})
                     if (v := _values([r for r in took if r["attack"] == a], "auroc_succeeding"))}
        worst = min(by_attack, key=by_attack.__getitem__)
        cells = {k: sum(v) / len(v) for k, c in _cells(planted).items() if (v := _values(c, "auroc_succeeding"))}
        lowest = min(cells, key=cells.__getitem__)
        return (f"Attacks that took (success of 0.9 and more): mean AUROC over attacks "
                f"{sum(by_attack.values()) / len(by_attack):.3f}, worst {by_attack[worst]:.3f} ({worst}). All models, "
                f"attack by data set: mean {sum(cells.values()) / len(cells):.3f}, worst {cells[lowest]:.3f} "
                f"({' on '.join(lowest)}).")
    low = _share(took, lambda r: r["success_after"] < 0.05
                 and r["accuracy_before"] - r["accuracy_after"] <= 0.02)
    return (f"Attacks that took (success of 0.9 and more): below 5 % afterwards with at most two points lost in {low}. "
            f"*removed* is right in {_right(planted)}. Clean models: "
            f"{_mean([r['accuracy_before'] - r['accuracy_after'] for r in clean])} accuracy lost.")


TITLES = {
    "sift": "Sift on what the lab planted", "guard": "Guard on what the lab planted",
    "repair": "Repair on what the lab planted"}
TOLD = {
    "sift": """The methods see the whole training set, the model that was trained on it, and 20 clean samples a class.
Attackers who train or change the model poison no data; those rows say so. Seed 0 is of `experiments/every_attack.toml`
(as far as it was measured), by the same command; seeds 1 and 2 are of the core.

How FLARE's scores become p-values was changed after the all-to-all set and the first CIFAR-10 sets of seed 1 had been
seen (Blended 0.00 and all-to-all 0.27 of the poison before), so that those are **optimistic for samples**. Seed 2, and
the other sets of seed 0, were looked at once, with the code as it stands.
The verdict on the whole set was not touched by that.""",
    "guard": """Fitted and calibrated on 20 clean samples a class, at a false-alarm rate of 0.05; up to 500 clean test
samples, and as many stamped ones. *That succeed*: stamped samples that the model answers as the attacker wants.
Settings were chosen on seed 0, which is left out here.

The rate is that of traffic like the calibration samples. GTSRB's are 20 of each class, and its test set holds other
classes in other shares (none at all of many: the defender holds all that there are). Fitted and calibrated
on 600 samples of that test set instead, one model, by hand: 0.050 of the other 400.""",
    "repair": f"""Clean samples that the network was not trained on, 5 % of the data set ({REPAIRED_WITH["cifar10"]} and
{REPAIRED_WITH["gtsrb"]} a class; 20 for students of a teacher). Every model is repaired, whatever the scan says of it
(`--force`), by the repairs of the first round, alone and after one another (`--methods {",".join(REPAIRS)}`). Status by
the command; success of the true trigger, which no repair sees, on up to 1,000 test samples.
*Right*: of those called removed, the upper bound is under a tenth. How fast, and how close to its earlier answers, a
model is trained with so many samples was chosen on seed 0, which is left out here.

With 50 samples a class, before (CIFAR-10, seed 1): under 5 % within two points on 0 of 7; badnets 0.33, blended 0.04,
label-consistent 0.02, TaCT 0.03, Trojaning 0.12, latent 0.38, with up to 5 points lost; the input-aware model was left
alone, since the scan found nothing.""",
}


def page(name: str, rows: Sequence[Row]) -> str:
    seeds = " ".join(str(s) for s in sorted({r["seed"] for r in rows}))
    return "\n".join([
        f"# {TITLES[name]}", "",
        f"Commands: `python benchmarks/defences.py {name} experiments/core.toml --seeds {seeds}`, "
        f"`python benchmarks/defences.py table {name}`; tier `desk`. Mean, and in brackets the range over models.", "",
        TOLD[name], "", summary(name, rows), *_unseen(name, rows), "", table(name, rows), ""])


def _unseen(name: str, rows: Sequence[Row]) -> list[str]:
    """The same for the sets that nobody had looked at."""
    fresh = [r for r in rows if r["seed"] == 2] if name == "sift" else []
    return ["", f"On seed 2 alone: {summary(name, fresh)}"] if fresh else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defence", choices=[*DEFENCES, "table"])
    parser.add_argument("plan", help="a plan of the lab; for `table`, a defence")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "laocoon" / "lab")
    parser.add_argument("--rows", type=Path, default=Path.home() / ".cache" / "laocoon" / "defences")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    parser.add_argument("--labels", nargs="*", default=[])
    parser.add_argument("--data", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.defence == "table":
        name = options.plan
        rows = [json.loads(line) for line in (options.rows / f"{name}.jsonl").read_text().splitlines()]
        text = page(name, rows)
        (RESULTS / f"{name}.md").write_text(text)
        print(text)
        return
    options.plan = Path(options.plan)
    for row in measured(options.defence, options):
        print(json.dumps({k: v for k, v in row.items() if k != "statistics"}), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
