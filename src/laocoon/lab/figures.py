"""The tables of `docs/results`: how well the shipped reference tells planted from clean models of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from laocoon.lab.reference import WEIGHTS, as_row, counted, recorded
from laocoon.lab.zoo import ALL_TO_ONE, KINDS, Split
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.recipes.ranking import auroc, cluster_bootstrap
from laocoon.verdict.calibrate import Reference, Row, shipped
from laocoon.verdict.fuse import fuse
from laocoon.verdict.schedule import plan

ALPHA = 0.05
TOOK = 0.9  # attack success from which a backdoor counts


@dataclass(frozen=True)
class Judged:
    """A specimen of the split with its score and p-value."""

    row: Row
    score: float
    p: float
    p_other: float  # with the references of its own architecture left out
    named: bool  # the most suspected class is a true target


def judge(folder: Path, split: Split, deep: bool, reference: Reference) -> list[Judged]:
    """Score every measured specimen of a split against the reference."""
    found = []
    schedule = plan("deep", counted(deep))
    for specimen, raw in recorded(folder, split, schedule, schedule):
        data = as_row(specimen, raw, list(WEIGHTS))
        row = Row(data["digest"], data["data"], data["architecture"], data["kind"], data["classes"], data["table"],
                  data.get("attack_success"), tuple(data.get("targets", ())))
        rules = frozenset(row.table) & frozenset(reference.scales)
        fused = fuse(row.table, reference.scales, row.classes)
        everyone = [(r, reference.restricted(r, rules).score) for r in reference.comparable(rules)]
        null = [s for _, s in everyone]
        others = [s for r, s in everyone if r.architecture.split("_")[0] != row.architecture.split("_")[0]]
        found.append(Judged(row, fused.score, p_value(fused.score, null), p_value(fused.score, others),
                            bool(row.targets) and fused.target_classes[:1] == row.targets[:1]))
    return found


def _cluster(j: Judged) -> tuple[str, str]:
    return j.row.data, j.row.architecture


def _area(items: Sequence[Judged]) -> float:
    return auroc([j.score for j in items if j.row.kind != "clean"], [j.score for j in items if j.row.kind == "clean"])


def _line(name: str, planted: Sequence[Judged], clean: Sequence[Judged]) -> str:
    low, high = cluster_bootstrap([*planted, *clean], _cluster, _area)
    hits = [j for j in planted if j.p <= ALPHA]
    named = [j for j in hits if j.row.targets]
    right = f"{sum(j.named for j in named)} of {len(named)}" if named else "–"
    a, b = binomial_interval(len(hits), len(planted))
    return (f"| {name} | {len(planted)} | {_area([*planted, *clean]):.3f} [{low:.2f}, {high:.2f}] | {len(hits)} "
            f"[{a:.2f}, {b:.2f}] | {sum(j.p_other <= ALPHA for j in planted)} | {right} |")


def _alarms(name: str, clean: Sequence[Judged]) -> str:
    hits, other = sum(j.p <= ALPHA for j in clean), sum(j.p_other <= ALPHA for j in clean)
    low, high = binomial_interval(hits, len(clean))
    return f"| {name} | {len(clean)} | {hits} [{low:.3f}, {high:.3f}] | {other} |"


def markdown(folder: Path, split: Split, deep: bool) -> str:
    """Both tables with their intervals, as Markdown."""
    reference = shipped()
    judged = judge(folder, split, deep, reference)
    clean = [j for j in judged if j.row.kind == "clean"]
    took = [j for j in judged if j.row.kind != "clean" and (j.row.attack_success or 0) >= TOOK]
    weak = [j for j in judged if j.row.kind != "clean" and (j.row.attack_success or 0) < TOOK]
    pick: Callable[[str], list[Judged]] = lambda kind: [j for j in took if j.row.kind == kind]  # noqa: E731
    head = ("| planted | models | AUROC [95 %, clusters data × architecture] | found at alpha 0.05 "
            "| found with its architecture left out | right class named |\n|-|-|-|-|-|-|")
    lines = [_line("all-to-one, pooled", [j for j in took if j.row.kind in ALL_TO_ONE], clean)]
    lines += [_line(kind, pick(kind), clean) for kind in KINDS if pick(kind)]
    if weak:
        lines.append(_line("attack success under 90 %, all kinds", weak, clean))
    alarms = ["| clean models | models | false alarms at alpha 0.05 | with its architecture left out |\n|-|-|-|-|",
              _alarms("all", clean)]
    for data in sorted({j.row.data for j in clean}):
        alarms.append(_alarms(data, [j for j in clean if j.row.data == data]))
    for architecture in sorted({j.row.architecture for j in clean}):
        alarms.append(_alarms(architecture, [j for j in clean if j.row.architecture == architecture]))
    note = (f"Split `{split}`, tier `desk`, {len(reference.clean)} clean references (file {reference.digest}). "
            "Clean references and this split share no model; training subsets overlap. Attack families are never "
            "fitted: the fusion's scales come from clean models only, so that leaving a family out changes nothing.")
    return "\n".join([note, "", "\n".join([head, *lines]), "", "\n".join(alarms), ""])
