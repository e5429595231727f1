"""The tables of `docs/results`: how well the shipped reference tells planted from clean models of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from laocoon.lab.reference import SAMPLES_PER_CLASS, WEIGHTS, as_row, counted, fit_reference, recorded
from laocoon.lab.zoo import ALL_TO_ONE, CLEAN_COUNT, EVERY, KINDS, MORE, SUBSETS, Split, specifications
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.ranking import auroc, cluster_bootstrap
from laocoon.verdict.calibrate import Null, Reference, Row, parse, shipped
from laocoon.verdict.schedule import plan

ALPHA = 0.05
TOOK = 0.9  # attack success from which a backdoor counts


@dataclass(frozen=True)
class Judged:
    """A specimen of the split as the shipped reference sees it, and as one fitted without its architecture does."""

    row: Row
    score: float
    p: float
    named: bool  # the most suspected class is a true target
    other_score: float
    other_p: float


def judge(folder: Path, split: Split, deep: bool, reference: Reference, *, subsets: str = "") -> list[Judged]:
    """Score every measured specimen of a split against the reference. subsets: those of a plan of some classes."""
    found: list[Judged] = []
    schedule = plan("deep", counted(deep))
    without: dict[str, Reference] = {}
    for specimen, raw in recorded(folder, split, schedule, schedule):
        if specimen.specification.plan != subsets:
            continue
        data = as_row(specimen, raw, list(WEIGHTS))
        row = Row(data["digest"], data["data"], data["architecture"], data["kind"], data["classes"], data["table"],
                  data.get("attack_success"), tuple(data.get("targets", ())), data["group"], data["wiring"])
        kind = row.architecture.split("_")[0]
        if kind not in without:
            without[kind] = parse(fit_reference(folder, kind, subsets=subsets))
        (score, p, target), (other_score, other_p, _) = (_against(r, row) for r in (reference, without[kind]))
        found.append(Judged(row, score, p, bool(row.targets) and target == row.targets[:1], other_score, other_p))
    return found


def _against(reference: Reference, row: Row) -> tuple[float, float, tuple[int, ...]]:
    null = _null(reference, row)
    return null.score, null.p, reference.restricted(row, _rules(reference, row)).target_classes[:1]


def _null(reference: Reference, row: Row) -> Null:
    rules = _rules(reference, row)
    return reference.null(reference.restricted(row, rules).score, rules, row.wiring)


def _rules(reference: Reference, row: Row) -> frozenset[str]:
    return frozenset(row.table) & frozenset(reference.scales)


def _cluster(j: Judged) -> tuple[str, str]:
    return j.row.data, j.row.architecture


def _area(items: Sequence[Judged], score: Callable[[Judged], float] = lambda j: j.score) -> float:
    return auroc([score(j) for j in items if j.row.kind != "clean"], [score(j) for j in items if j.row.kind == "clean"])


def _unseen(items: Sequence[Judged]) -> float:
    return _area(items, lambda j: j.other_score)


def _line(name: str, planted: Sequence[Judged], clean: Sequence[Judged]) -> str:
    everyone = [*planted, *clean]
    low, high = cluster_bootstrap(everyone, _cluster, _area)
    hits = [j for j in planted if j.p <= ALPHA]
    named = [j for j in hits if j.row.targets]
    right = f"{sum(j.named for j in named)} of {len(named)}" if named else "–"
    a, b = binomial_interval(len(hits), len(planted))
    low2, high2 = cluster_bootstrap(everyone, _cluster, _unseen)
    return (f"| {name} | {len(planted)} | {_area(everyone):.3f} [{low:.2f}, {high:.2f}] | {len(hits)} "
            f"[{a:.2f}, {b:.2f}] | {_unseen(everyone):.3f} [{low2:.2f}, {high2:.2f}] "
            f"| {sum(j.other_p <= ALPHA for j in planted)} | {right} |")


def _alarms(name: str, clean: Sequence[Judged]) -> str:
    hits, other = sum(j.p <= ALPHA for j in clean), sum(j.other_p <= ALPHA for j in clean)
    low, high = binomial_interval(hits, len(clean))
    return f"| {name} | {len(clean)} | {hits} [{low:.3f}, {high:.3f}] | {other} |"


def markdown(folder: Path, split: Split, deep: bool, *, subsets: str = "") -> str:
    """Both tables with their intervals, as Markdown. subsets: of models of a plan of some classes."""
    reference = shipped(f"image_{subsets}" if subsets else "image")
    judged = judge(folder, split, deep, reference, subsets=subsets)
    clean = [j for j in judged if j.row.kind == "clean"]
    took = [j for j in judged if j.row.kind != "clean" and (j.row.attack_success or 0) >= TOOK]
    weak = [j for j in judged if j.row.kind != "clean" and (j.row.attack_success or 0) < TOOK]
    pick: Callable[[str], list[Judged]] = lambda kind: [j for j in took if j.row.kind == kind]  # noqa: E731
    head = ("| planted | models | AUROC [95 %, clusters data × architecture] | found at alpha 0.05 "
            "| AUROC, architecture left out | found, architecture left out | right class named |\n|-|-|-|-|-|-|-|")
    pooled = [j for j in took if j.row.kind in ALL_TO_ONE]
    lines = [_line("all-to-one, pooled", pooled, clean)] if pooled else []
    seen = {j.row.kind for j in took if j.row.kind in ALL_TO_ONE}
    for kind in [k for k in KINDS if k in seen] if len(seen) > 1 else []:
        rest = [j for j in took if j.row.kind in ALL_TO_ONE and j.row.kind != kind]
        lines.append(_line(f"all-to-one without {kind}", rest, clean))
    others = [j for j in took if j.row.kind in KINDS and j.row.kind not in ALL_TO_ONE]
    if len({j.row.kind for j in others}) > 1:
        lines.append(_line("source-specific and all-to-all, pooled", others, clean))
    later = [j for j in took if j.row.kind in MORE and j.row.targets]
    lines += [_line("later attacks, pooled", later, clean)] if later else []
    lines += [_line(kind, pick(kind), clean) for kind in EVERY if pick(kind)]
    if weak:
        lines.append(_line("attack success under 90 %, all kinds", weak, clean))
    alarms = ["| clean models | models | false alarms at alpha 0.05 | with its architecture left out |\n|-|-|-|-|",
              _alarms("all", clean)]
    for data in sorted({j.row.data for j in clean}):
        alarms.append(_alarms(data, [j for j in clean if j.row.data == data]))
    for count in sorted({j.row.classes for j in clean}) if subsets else ():
        alarms.append(_alarms(f"{count} classes", [j for j in clean if j.row.classes == count]))
    for architecture in sorted({j.row.architecture for j in clean}):
        alarms.append(_alarms(architecture, [j for j in clean if j.row.architecture == architecture]))
    title = f"# How well planted models are told from clean ones: the {split} split"
    title += f", {SUBSETS[subsets].words}" if subsets else ""
    command = (f"Command: `laocoon lab zoo table --split {split}{' --deep' * deep}{' --subsets ' * bool(subsets)}"
               f"{subsets}`, seed 0.\n")
    held = sorted({len(_null(reference, j.row).references) for j in judged})
    note = (f"Tier `desk`, {SAMPLES_PER_CLASS} clean samples a class, {' or '.join(map(str, held))} clean references "
            f"that the same rules were measured on, the fewer for networks with branches (file {reference.digest}). "
            "Clean references and this split share no model; training subsets overlap. No attack is fitted: the "
            "scales and the null come from clean models only, so that every kind's row is that of a kind left out. "
            "'Architecture left out': scales and null refitted without models of the subject's architecture. "
            "Success of 90 % or more unless said otherwise; AUROC counts every model, INCONCLUSIVE or not.")
    part = _measured(judged, split, subsets)
    return "\n".join([title, "", command, note, "", part, "", "\n".join([head, *lines]), "", "\n".join(alarms), ""])


def _measured(judged: Sequence[Judged], split: Split, subsets: str) -> str:
    """How much of its plan a page tells of."""
    planned = [s for data in ([subsets] if subsets else CLEAN_COUNT[split]) for s in specifications(split, data)]
    clean, clean_planned = (sum(kind == "clean" for kind in kinds)
                            for kinds in ([j.row.kind for j in judged], [s.kind for s in planned]))
    whole = "" if len(judged) >= len(planned) else "; **the rest was not measured, and may tell otherwise**"
    return (f"Of the plan of this split, {clean} of {clean_planned} clean models and {len(judged) - clean} of "
            f"{len(planned) - clean_planned} planted ones{whole}.")
