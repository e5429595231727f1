"""The reference file of `sift`: built from measured data sets, and how its false alarms hold when a source is left out.

A row is what `verdict.data_statistics.statistics_of` gave for one training set, clean or poisoned, with the source of
its pictures. Sets from one source are no independent draws: a user's data come from yet another source, so the honest
figure is the false-alarm rate of each source's clean sets against the references of all others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from laocoon import __version__
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.sift_report import POISON, SiftReport
from laocoon.core.subject import Subject
from laocoon.files.training_set import in_memory
from laocoon.lab.specimens import Made
from laocoon.modalities import small_networks
from laocoon.recipes.conformal import binomial_interval, p_value
from laocoon.recipes.ranking import auroc, cluster_bootstrap
from laocoon.verdict.data_reference import OTHERS, DataReference, DataRow, parse, place
from laocoon.verdict.sift import sift

# Rules that count more, less or not at all (0): to be fixed on sets that are no references of the sealed split, and by
# nothing else. Of images every rule counts; of texts and tables those that held on the fusion and calibration splits.
WEIGHTS: dict[str, float] = {
    "lifted.worth": 3.0,  # what a model does with a trigger is evidence by itself; tails of scores are hints
}
WEIGHTS_OF: dict[str, dict[str, float]] = {
    "image": WEIGHTS,
    "tabular": {OTHERS: 0.0, "lifted.pure": 1.0, "column_association.coherence": 1.0},
    "text": {OTHERS: 0.0, "lifted.pure": 1.0, "beatrix.class": 1.0},
}
DIGITS = 5  # of a statistic in the file


@dataclass(frozen=True)
class LeftOut:
    """One source's sets against the references of the others."""

    source: str
    clean: int
    alarms: int
    poisoned: int
    found: int


def measure(samples: Samples, classes: int, untrained: Callable[[Context], Subject], *, source: str,
            kind: str = "clean", architecture: str = "", trusted: Samples | None = None,
            methods: Sequence[str] | None = None, seed: int = 0, device: str = "cpu") -> tuple[DataRow, SiftReport]:
    """One row, by the very code that a sift without a model runs, and the report with every sample's suspicion."""
    data = in_memory(samples, classes)
    report = sift(data, untrained=untrained, architecture=architecture, trusted=trusted, methods=methods, seed=seed,
                  device=device, reference=parse(build((), ())))
    return DataRow(data.digest()[:16], source, kind, report.statistics), report


@dataclass(frozen=True)
class BenchRow:
    """A training set of a bench: its row, and how well its poison was told from the rest."""

    row: DataRow
    auroc: float | None  # of suspicion, poison against the rest; None for clean sets
    flagged: int
    right: int  # of the flagged ones, poison
    poisoned: int
    trigger: str  # what was lifted, in words; empty: nothing


def measure_made(made: Made, *, seed: int = 0, methods: Sequence[str] | None = None) -> BenchRow | None:
    """Of a specimen the training set, sifted as a user would who has no model; None where nobody poisoned the data."""
    clean = made.trigger is None
    if not clean and not len(made.poisoned):
        return None
    modality, classes = made.subject.modality, made.subject.classes
    name = small_networks.names(modality)[0]
    samples = replace(made.train, modality=modality)
    some = samples.inputs[:10_000]

    def untrained(ctx: Context) -> Subject:
        module = small_networks.built(name, modality, classes, ctx.rng, some)
        return Subject(module, modality, classes, tuple(samples.inputs.shape[1:]))

    row, report = measure(samples, classes, untrained, source=made.specification.data, kind=made.specification.kind,
                          architecture=name, methods=methods, seed=seed)
    table = report.table
    assert table is not None
    bad = np.zeros(len(samples), np.bool_)
    bad[made.poisoned.cpu().numpy()] = True
    flagged = table.kinds == POISON
    there = bad[table.rows]
    area = None if clean else auroc(table.suspicion[there].tolist(), table.suspicion[~there].tolist())
    return BenchRow(row, area, int(flagged.sum()), int((flagged & there).sum()), int(bad.sum()),
                    "" if report.trigger is None else report.trigger.shown)


def build(rows: Sequence[DataRow], core: Sequence[str], weights: Mapping[str, float] | None = None,
          note: str = "") -> str:
    """The JSON that `sift` ships with. `core`: kinds of poison that its power is told for."""
    digests = [row.digest for row in rows]
    if len(set(digests)) != len(digests):
        twice = next(d for d in digests if digests.count(d) > 1)
        raise InputError(f"the set {twice} was measured twice.", "Keep one row for each set.")
    ordered = [_plain(row) for row in sorted(rows, key=lambda r: (r.source, r.digest))]
    clean = [r for r in ordered if r["kind"] == "clean"]
    sources = sorted({str(r["source"]) for r in clean})
    provenance = {"version": __version__, "sources": sources, "clean": len(clean),
                  "poisoned": len(ordered) - len(clean), "note": note}
    return json.dumps({"provenance": provenance, "core": list(core), "weights": dict(weights or WEIGHTS),
                       "clean": clean, "planted": [r for r in ordered if r["kind"] != "clean"]},
                      separators=(",", ":"), sort_keys=True, allow_nan=False)


def _plain(row: DataRow) -> dict[str, object]:
    finite = {k: float(f"{v:.{DIGITS}g}") for k, v in sorted(row.statistics.items()) if math.isfinite(v)}
    return {**asdict(row), "statistics": finite}


def leave_one_source_out(rows: Sequence[DataRow], core: Sequence[str], alpha: float = 0.05,
                         weights: Mapping[str, float] | None = None) -> list[LeftOut]:
    """False alarms, and poison found, of each source against the references of all the others."""
    found = []
    for source in sorted({row.source for row in rows if row.kind == "clean"}):
        others = parse(build([r for r in rows if r.source != source], core, weights))
        said = {row.digest: _alarm(row, others, alpha) for row in rows if row.source == source}
        mine = [row for row in rows if row.source == source]
        clean, bad = ([r for r in mine if (r.kind == "clean") is wanted] for wanted in (True, False))
        found.append(LeftOut(source, len(clean), sum(said[r.digest] for r in clean), len(bad),
                             sum(said[r.digest] for r in bad)))
    return found


def within_sources(rows: Sequence[DataRow], core: Sequence[str], alpha: float = 0.05,
                   weights: Mapping[str, float] | None = None) -> tuple[int, int, int, int]:
    """(false alarms, clean, found, poisoned) where each clean set is judged against all other clean ones."""
    whole = parse(build(rows, core, weights))
    alarms = 0
    for row in whole.clean:
        rest = replace(whole, clean=tuple(r for r in whole.clean if r.digest != row.digest))
        alarms += _alarm(row, rest, alpha)
    return alarms, len(whole.clean), sum(_alarm(r, whole, alpha) for r in whole.planted), len(whole.planted)


def _alarm(row: DataRow, reference: DataReference, alpha: float) -> bool:
    placed = place(row.statistics, reference)
    return bool(placed.null) and p_value(placed.score, placed.null) <= alpha


def table(rows: Sequence[DataRow], core: Sequence[str], alpha: float = 0.05,
          weights: Mapping[str, float] | None = None) -> str:
    """False alarms of the verdict as Markdown: per source left out, together with a cluster bootstrap over sources."""
    left = leave_one_source_out(rows, core, alpha, weights)
    lines = [f"| source left out | clean sets | false alarms at alpha {alpha:g} | 95 % | poisoned sets | found |",
             "|---|---|---|---|---|---|"]
    for one in left:
        low, high = binomial_interval(one.alarms, one.clean)
        lines.append(f"| {one.source} | {one.clean} | {one.alarms} | {low:.0%} to {high:.0%} | {one.poisoned} | "
                     f"{one.found} |")
    clean, alarms = sum(x.clean for x in left), sum(x.alarms for x in left)
    if clean:
        low, high = cluster_bootstrap(left, lambda x: x.source, lambda xs: sum(x.alarms for x in xs)
                                      / max(1, sum(x.clean for x in xs)))
        lines.append(f"| all, clustered by source | {clean} | {alarms} ({alarms / clean:.1%}) | {low:.0%} to "
                     f"{high:.0%} | {sum(x.poisoned for x in left)} | {sum(x.found for x in left)} |")
    own = within_sources(rows, core, alpha, weights)
    low, high = binomial_interval(own[0], own[1])
    lines.append(f"| none (each set against all others) | {own[1]} | {own[0]} | {low:.0%} to {high:.0%} | {own[3]} | "
                 f"{own[2]} |")
    return "\n".join(lines) + "\n"
