"""The page of `docs/results` that says how well a modality's reference tells planted from clean models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from laocoon.lab.figures import ALPHA, TOOK
from laocoon.lab.rows import Row, fit, public
from laocoon.lab.specimens import CLEAN, Bench
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.recipes.ranking import auroc, cluster_bootstrap
from laocoon.verdict.calibrate import Reference, parse
from laocoon.verdict.calibrate import Row as ReferenceRow
from laocoon.verdict.fuse import promise


@runtime_checkable
class Grouped(Protocol):
    """A bench whose kinds belong together in a few groups, each with a line of its own."""

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]: ...


@dataclass(frozen=True)
class Judged:
    """A specimen as a scan with the reference sees it, and with one that knows nothing of its architecture."""

    row: Row
    score: float
    p: float
    named: bool  # the most suspected class is the true target
    part: bool | None  # the recovered trigger names a part of the true one; None where none was recovered
    other_score: float
    other_p: float


def judged(bench: Bench, rows: Sequence[Row], split: str) -> list[Judged]:
    """Every row of a split against references fitted on the two others."""
    reference = parse(fit(bench, rows))
    architectures = sorted({row["architecture"] for row in rows})
    without = {name: parse(fit(bench, [r for r in rows if r["architecture"] != name])) for name in architectures}
    return [_one(bench, row, reference, without[row["architecture"]]) for row in rows if row["split"] == split]


def _one(bench: Bench, row: Row, reference: Reference, other: Reference) -> Judged:
    data = public(row, bench.weights)
    known = ReferenceRow(data["digest"], data["data"], data["architecture"], data["kind"], data["classes"],
                         data["table"], data.get("attack_success"), tuple(data.get("targets", ())))
    rules = frozenset(known.table) & frozenset(reference.scales)
    fused, elsewhere = reference.restricted(known, rules), other.restricted(known, rules)
    worth = [(promise(fused, c["rule"], c["success"] or 0.0, c["targets"]), c) for c in row["candidates"]]
    best = max((pair for pair in worth if pair[0] > 0), key=lambda pair: pair[0], default=None)
    return Judged(row, fused.score, p_value(fused.score, reference.scores(rules)),
                  bool(known.targets) and fused.target_classes[:1] == known.targets[:1],
                  None if best is None else bool(best[1]["part"]),
                  elsewhere.score, p_value(elsewhere.score, other.scores(rules)))


def _cluster(j: Judged) -> tuple[str, str]:
    return j.row["data"], j.row["architecture"]


def _area(items: Sequence[Judged]) -> float:
    return auroc(*([j.score for j in items if (j.row["kind"] == CLEAN) == clean] for clean in (False, True)))


def _elsewhere(items: Sequence[Judged]) -> float:
    return auroc(*([j.other_score for j in items if (j.row["kind"] == CLEAN) == clean] for clean in (False, True)))


def _share(hits: Sequence[bool]) -> str:
    low, high = binomial_interval(sum(hits), len(hits))
    return f"{sum(hits)} of {len(hits)} [{low:.2f}, {high:.2f}]" if hits else "–"


def _line(name: str, tried: int, planted: Sequence[Judged], clean: Sequence[Judged]) -> str:
    """A row of the table; `tried` counts those whose attack did not take, too."""
    if not planted:
        return f"| {name} | 0 of {tried} | – | – | – | – | – | – |"
    everyone = [*planted, *clean]
    alarms = [j for j in planted if j.p <= ALPHA]
    areas = []
    for figure in (_area, _elsewhere):
        low, high = cluster_bootstrap(everyone, _cluster, figure)
        areas.append(f"{figure(everyone):.3f} [{low:.2f}, {high:.2f}]")
    return (f"| {name} | {len(planted)} of {tried} | {areas[0]} | {_share([j.p <= ALPHA for j in planted])} "
            f"| {areas[1]} | {sum(j.other_p <= ALPHA for j in planted)} "
            f"| {_share([j.named for j in alarms if j.row['targets']])} | {_share([bool(j.part) for j in alarms])} |")


def _alarms(name: str, clean: Sequence[Judged]) -> str:
    hits, other = [j.p <= ALPHA for j in clean], sum(j.other_p <= ALPHA for j in clean)
    low, high = binomial_interval(sum(hits), len(hits))
    return f"| {name} | {len(clean)} | {sum(hits)} [{low:.3f}, {high:.3f}] | {other} |"


def table(bench: Bench, rows: Sequence[Row], split: str = "sealed") -> str:
    """The page, as Markdown."""
    found = judged(bench, rows, split)
    clean = [j for j in found if j.row["kind"] == CLEAN]
    planted = [j for j in found if j.row["kind"] != CLEAN]
    kinds = list(dict.fromkeys(j.row["kind"] for j in planted))
    sets: dict[str, Sequence[str]] = {"core kinds, pooled": bench.core, "all kinds, pooled": kinds}
    sets |= bench.groups if isinstance(bench, Grouped) else {}
    sets |= {kind: (kind,) for kind in kinds}
    took: Callable[[Judged], bool] = lambda j: (j.row["attack_success"] or 0) >= TOOK  # noqa: E731
    lines = ["| planted | models whose attack took | AUROC [95 %, clusters data × architecture] "
             "| found at alpha 0.05 | AUROC, architecture left out | found, architecture left out "
             "| right class named, of true alarms | trigger names a true part, of true alarms |",
             "|-|-|-|-|-|-|-|-|"]
    for name, members in sets.items():
        own = [j for j in planted if j.row["kind"] in members]
        lines.append(_line(name, len(own), [j for j in own if took(j)], clean))
    weak = [j for j in planted if not took(j)]
    if weak:
        lines.append(_line("attack success under 90 %, all kinds", len(weak), weak, clean))
    lines += ["", "| clean models | models | false alarms at alpha 0.05 | with its architecture left out |",
              "|-|-|-|-|", _alarms("all", clean)]
    for key in ("data", "architecture"):
        for name in sorted({j.row[key] for j in clean}):
            lines.append(_alarms(name, [j for j in clean if j.row[key] == name]))
    return "\n".join([f"# How well planted {bench.modality.replace('_', ' ')} models are told from clean ones: the "
                      f"{split} split", "", *_notes(bench, rows, split), "", *lines, ""])


def _notes(bench: Bench, rows: Sequence[Row], split: str) -> list[str]:
    provenance: Mapping[str, Any] = parse(fit(bench, rows)).provenance
    seconds = [sum(row["seconds"].values()) for row in rows if row["split"] == split]
    return [
        f"Command: `laocoon lab bench table --modality {bench.modality} --split {split}`, seed 0.", "",
        f"Tier `desk`, {provenance['samples_per_class']} clean samples a class, {provenance['calibration']} clean "
        f"references, scales from {sum(r['split'] == 'fusion' and r['kind'] == CLEAN for r in rows)} other clean "
        f"models; {sum(seconds) / max(1, len(seconds)):.1f} s a model on one core. Splits share no model; training "
        "subsets may overlap. No attack is fitted: scales and the null come from clean models only, so that every "
        "kind's line is that of a kind left out. 'Architecture left out': scales and null refitted without models of "
        "the subject's architecture. An attack took at a success of 90 % or more; AUROC counts every such model, "
        "INCONCLUSIVE or not. Rules and weights: "
        + ", ".join(f"`{rule}` {weight:g}" for rule, weight in bench.weights.items()) + "."]
