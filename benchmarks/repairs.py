"""Every repair on the lab's planted models: attack success and clean accuracy before and after, seconds.

    python benchmarks/repairs.py DATA_ROOT [--lab FOLDER] [--plan core] [--seeds 0] [--repairs NAME…] [--each N]
                                 [--rows FILE.jsonl] [--out FILE.md]

A repair sees the model, `--each` clean samples a class and, where it wants them, the triggers that a search recovered
from this very model; it is judged by the true trigger on the lab's test samples, which it never sees. Rows are kept as
they come, one a line, so that an interrupted run goes on. Methods were tuned on seed 0: report other seeds. Seconds are
of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import safetensors.torch
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.detectors.model.trigger_inversion import TriggerInversion
from laocoon.files.candidates import families, load_candidates, save_candidates
from laocoon.lab.artefacts import Folder
from laocoon.lab.criteria.answers import hits, right
from laocoon.lab.ledger import DONE, Ledger, TrialRow, in_folder
from laocoon.lab.workshop import Workshop
from laocoon.recipes.choosing import spread_over
from laocoon.recipes.conformal import binomial_interval
from laocoon.verdict.examination import prepare

LEAST = 0.8  # attack success below which a model counts as not planted
GONE, COST = 0.05, 0.02  # what the issue asks for: success under, accuracy lost at most


@dataclass(frozen=True, eq=False)
class Patient:
    """A planted model, or (no trigger) a clean one, and what it is judged by."""

    row: TrialRow
    label: str
    subject: Subject
    given: Samples
    test: Samples
    trigger: Candidate | None


def patients(lab: Path, data_root: Path, plan: str, seeds: list[int]) -> Iterator[Patient]:
    ledger, shop = Ledger(in_folder(lab)), Workshop(Folder(lab / "artefacts"), data_root, lab / "data")
    entries = ledger.entries(plan)
    rows = ledger.rows([e.trial for e in entries])
    for entry in entries:
        row = rows.get(entry.trial)
        if row is None or row.status != DONE or row.kind == "defence" or row.seed not in seeds:
            continue
        if row.kind == "implant" and row.result["judged"]["success"]["value"] < LEAST:
            continue
        if row.kind == "twin" and row.specification.get("maker"):
            continue
        bench = shop.bench(row.specification)
        trigger = None
        if row.kind == "implant":
            truth = json.loads(shop.store.get(row.artefacts["truth"]))
            leaves = safetensors.torch.load(shop.store.get(row.artefacts["trigger"]))
            trigger = Candidate(families()[truth["family"]], leaves, ClassGoal(tuple(truth["destinations"])), 0.0, 1.0,
                                row.attack)
        subject = bench.restored(row.artefacts)
        yield Patient(row, entry.label or "clean", subject, bench.lot.given, bench.lot.test, trigger)


def recovered(patient: Patient, folder: Path) -> tuple[Candidate, ...]:
    """What a default search recovers from the model with the given samples; kept in a file."""
    path = folder / f"{patient.row.digest}.safetensors"
    if not path.exists():
        subject, ctx = patient.subject, Context(seed=0)
        own = prepare(lambda x: subject.outputs(x).logits, patient.given, 0, subject.classes)
        TriggerInversion().examine(ModelCase(subject, own.fit, own.held), ctx)
        folder.mkdir(parents=True, exist_ok=True)
        save_candidates(path, ctx.candidates)
    return tuple(load_candidates(path))


def one(patient: Patient, method: Repair, each: int, candidates: tuple[Candidate, ...]) -> dict[str, Any]:
    """A row: before, after, seconds."""
    subject, ctx = patient.subject, Context(seed=patient.row.seed)
    wanted = each * subject.classes
    few = spread_over(patient.given.labels, wanted, Context(seed=patient.row.seed).rng)
    given = Samples(patient.given.inputs[few], patient.given.labels[few])
    start = time.process_time()
    mended = method.mend(ModelCase(subject, given, None, candidates), ctx)
    row: dict[str, Any] = {"seconds": round(time.process_time() - start, 2), "passes": round(ctx.spent),
                           "reason": mended.report.reason}
    for name, judged in (("before", subject), ("after", mended.subject)):
        if judged is not None:
            row[f"accuracy_{name}"] = float(right(judged, patient.test, Context()).float().mean())
            if patient.trigger is not None:
                row[f"success_{name}"] = float(hits(judged, patient.trigger, patient.test, Context()).float().mean())
    return row


def page(rows: list[dict[str, Any]], command: str, each: int) -> str:
    """For every repair: how often it reaches what is asked for; then all rows."""
    lines = ["# Repairs", "", f"Command: `{command}`, tier `desk`, {each} clean samples a class. Judged by the true "
             f"trigger, which no repair sees. Reached: success under {GONE:.0%} and at most {100 * COST:.0f} points of "
             "accuracy lost; the interval is 95 %, models taken as independent. Harm: points lost on clean models.", "",
             "| repair | planted models | reached | success after | accuracy, change | worst harm | seconds |",
             "|-|-|-|-|-|-|-|"]
    for name in sorted({r["repair"] for r in rows}):
        own = [r for r in rows if r["repair"] == name and "accuracy_after" in r]
        planted, clean = ([r for r in own if ("success_after" in r) == p] for p in (True, False))
        if not planted:
            continue
        changes = [r["accuracy_after"] - r["accuracy_before"] for r in planted]
        reached = sum(r["success_after"] < GONE and c >= -COST for r, c in zip(planted, changes, strict=True))
        low, high = binomial_interval(reached, len(planted))
        harm = max((100 * (r["accuracy_before"] - r["accuracy_after"]) for r in clean), default=float("nan"))
        lines.append(f"| {name} | {len(planted)} | {reached / len(planted):.0%} [{low:.0%}, {high:.0%}] | "
                     f"{mean(r['success_after'] for r in planted):.1%} | {100 * mean(changes):+.1f} | {harm:.1f} | "
                     f"{mean(r['seconds'] for r in planted):.0f} |")
    lines += ["", "| data | attack | seed | repair | success | accuracy |", "|-|-|-|-|-|-|"]
    for r in sorted(rows, key=lambda r: (r["data"], r["label"], r["seed"], r["repair"])):
        if "accuracy_after" not in r:
            lines.append(f"| {r['data']} | {r['label']} | {r['seed']} | {r['repair']} | {r['reason']} | |")
            continue
        success = f"{r['success_before']:.1%} → {r['success_after']:.1%}" if "success_after" in r else ""
        lines.append(f"| {r['data']} | {r['label']} | {r['seed']} | {r['repair']} | {success} | "
                     f"{r['accuracy_before']:.1%} → {r['accuracy_after']:.1%} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--lab", type=Path, default=Path.home() / ".cache" / "laocoon" / "lab")
    parser.add_argument("--plan", default="core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", help="only these data sets")
    parser.add_argument("--attacks", nargs="+", help="only these labels; 'clean' for the twins")
    parser.add_argument("--repairs", nargs="+", help="only these")
    parser.add_argument("--each", type=int, default=20, help="clean samples a class; the lab has 20")
    parser.add_argument("--rows", type=Path, default=Path("repairs.jsonl"))
    parser.add_argument("--out", type=Path, help="write the table here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {m.card.name: m for m in classes("laocoon.repairs", Repair)}  # type: ignore[type-abstract]
    methods = [known[name]() for name in given.repairs or sorted(known)]
    done = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
    seen = {(r["digest"], r["repair"], json.dumps(r["params"], sort_keys=True), r["each"]) for r in done}
    for patient in patients(given.lab, given.data_root, given.plan, given.seeds):
        row = patient.row
        if (given.data and row.data not in given.data) or (given.attacks and patient.label not in given.attacks):
            continue
        for method in methods:
            params = asdict(method)  # type: ignore[call-overload]
            facts = {"digest": row.digest, "data": row.data, "label": patient.label, "seed": row.seed,
                     "repair": method.card.name, "params": params, "each": given.each}
            if (row.digest, method.card.name, json.dumps(params, sort_keys=True), given.each) in seen:
                continue
            candidates = recovered(patient, given.lab / "recovered")
            done.append({**facts, **one(patient, method, given.each, candidates)})
            with given.rows.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    if given.out is not None:
        current = {m.card.name: asdict(m) for m in methods}  # type: ignore[call-overload]
        rows = [r for r in done if current.get(r["repair"]) == r["params"] and r["each"] == given.each]
        command = (f"python benchmarks/repairs.py DATA_ROOT --plan {given.plan} --seeds "
                   f"{' '.join(map(str, given.seeds))} --each {given.each}")
        given.out.write_text(page(rows, command, given.each))


if __name__ == "__main__":
    main()
