"""The sift: is this training set poisoned at all, and which samples. In that order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laocoon import __version__
from laocoon.core.cases import DataCase, Samples, informed
from laocoon.core.context import Context, Progress
from laocoon.core.errors import InputError
from laocoon.core.report import Calibration, Power, Verdict
from laocoon.core.sift_report import (
    KEPT,
    KINDS,
    MISLABELLED,
    MOST_LISTED,
    POISON,
    ClassRow,
    SampleTable,
    SiftReport,
    Suspect,
    TriggerFound,
)
from laocoon.core.subject import Subject
from laocoon.files.training_set import TrainingSet
from laocoon.recipes.conformal import binomial_interval
from laocoon.verdict.data_reference import DataReference, Placed, calibrate, power, shipped
from laocoon.verdict.data_rest import fill_in
from laocoon.verdict.data_samples import sort_samples
from laocoon.verdict.data_shown import exhibits
from laocoon.verdict.data_statistics import Judged, chosen, judge, statistics
from laocoon.verdict.data_trigger import Shown, shown
from laocoon.verdict.proxy import epochs_for, train_proxy
from laocoon.verdict.scan import _device

MOST_SAMPLES = 20_000  # that the methods see at a time
MOST_MEMORY = 2**30  # bytes that these may take as floats
MOST_SENTINELS = 1000


@dataclass(frozen=True, eq=False)
class Trained:
    """The model that the methods look into, and where it comes from."""

    subject: Subject
    facts: Mapping[str, Any]


def sift(data: TrainingSet, *, subject: Subject | None = None, untrained: Callable[[Context], Subject] | None = None,
         architecture: str = "", trusted: Samples | None = None, alpha: float = 0.05, fdr: float = 0.05, seed: int = 0,
         methods: Sequence[str] | None = None, most: int = MOST_SAMPLES, budget: float = float("inf"),
         device: str = "cpu", progress: Progress | None = None, reference: DataReference | None = None) -> SiftReport:
    """Say whether there is evidence of poison in a training set, and which samples are suspected.

    Args:
        data: from `training_set`, or `in_memory`.
        subject: a model that was trained on the data; None trains a proxy from `untrained`, on the samples that the
            methods see.
        untrained: makes a new network, also for methods that train.
        architecture: what `untrained` makes, for the report.
        trusted: samples that are known to be clean, from elsewhere. Half of them, at most a thousand, are hidden among
            the suspects, and what the methods say of them is the null of the samples' p-values.
        alpha: false-alarm rate of the verdict, held on the reference sets.
        fdr: share of the flagged samples that may be flagged wrongly.
        methods: names to run, or with a leading '-' to leave out.
        most: samples that the methods see; others are judged by their neighbours among them.
        budget: in sample-level forward-backward passes.

    Raises:
        InputError: an argument cannot be used.
    """
    start = time.monotonic()
    for name, value in (("alpha", alpha), ("fdr", fdr)):
        if not (isinstance(value, int | float) and 0 < value < 1):
            raise InputError(f"{name} is {value!r}.", "It is a rate between 0 and 1, for instance 0.05.")
    if subject is None and untrained is None:
        raise InputError("there is neither a model nor an architecture to train.", "Pass one of them.")
    modality = data.modality.name
    running, reference = chosen(methods, modality), reference or shipped(modality)
    root = Context(seed=seed, device=_device(device), budget=budget)
    if progress is not None:
        root.progress = progress
    places = _drawn(data, most, root.rng)
    seen = data.samples(places)
    hidden, known = _split_trusted(trusted, len(seen), data.classes, root.rng)
    if hidden is not None:
        seen = replace(seen, inputs=torch.cat([seen.inputs, hidden.inputs]),
                       labels=torch.cat([seen.labels, hidden.labels]))
    sentinels = torch.arange(len(seen)) >= len(places)
    model = _model(subject, untrained, architecture, seen, root)
    case = DataCase(seen, data.classes, informed(model.subject, seen), known, untrained, modality)
    judged = judge(case, root, running)
    own = judged.restricted(~sentinels)
    figures = statistics(own, replace(case, suspects=data.samples(places)) if hidden is not None else case)
    placed, p, calibration = calibrate(figures, reference)
    samples = sort_samples(judged, case, sentinels, reference, fdr, root, figures).restricted(~sentinels)
    table = power(reference, placed.rules, alpha) if p is not None else ()
    verdict, reason = _decide(p, alpha, calibration, own, table)
    if verdict is Verdict.NO_EVIDENCE:  # who says that there is no poison names none
        samples = replace(samples, kinds=torch.where(samples.kinds == POISON, KEPT, samples.kinds))
    lifted = judged.lifted
    told = lifted is not None and lifted.clear and verdict is not Verdict.NO_EVIDENCE
    trigger = shown(lifted, case) if lifted is not None and told else None
    rows = fill_in(data, places, samples, own, model.subject, root)
    if verdict is Verdict.SUSPICIOUS or (verdict is Verdict.INCONCLUSIVE and (rows.kinds == POISON).any()):
        reason = _told(verdict, reason, rows, trigger, placed)
    suspects = _suspects(data, rows)
    return SiftReport(
        verdict=verdict, reason=reason, p_value=p, score=placed.score, alpha=alpha, fdr=fdr,
        poison=int((rows.kinds == POISON).sum()), mislabelled=int((rows.kinds == MISLABELLED).sum()),
        kept=int((rows.kinds == KEPT).sum()), suspects=suspects, classes=_classes(data.classes, rows),
        trigger=None if trigger is None else trigger.found, statistics=figures, contributions=placed.contributions,
        power=table, calibration=calibration, reports=judged.reports,
        examined=tuple(judged.scores), skipped={r.method: r.reason for r in judged.reports if r.reason},
        misses={m.card.name: m.card.misses for m in running if m.card.misses},
        data=_facts(data, places, hidden, known), model=model.facts, null=samples.null, spent=root.spent,
        seconds=time.monotonic() - start, seed=seed, version=__version__, table=rows,
        exhibits=exhibits(data, places, samples, own, trigger, root))


def _drawn(data: TrainingSet, most: int, rng: torch.Generator) -> Tensor:
    """Places of the samples that the methods see: all, or as many as are allowed and fit into memory."""
    if most < 1:
        raise InputError(f"{most} samples are to be seen.", "Use at least 1000.")
    count = min(len(data), most, max(1, MOST_MEMORY // (4 * int(np.prod(data.shape)))))
    return torch.randperm(len(data), generator=rng)[:count].sort().values


def _split_trusted(trusted: Samples | None, count: int, classes: int,
                   rng: torch.Generator) -> tuple[Samples | None, Samples | None]:
    """(hidden among the suspects, given to the methods)."""
    if trusted is None or len(trusted) == 0:
        return None, None
    if int(trusted.labels.max()) >= classes:
        raise InputError(f"the trusted samples hold the label {int(trusted.labels.max())}, the training set has "
                         f"{classes} classes.", "Check that they belong together.")
    order = torch.randperm(len(trusted), generator=rng)
    hidden = order[:min(len(trusted) // 2, MOST_SENTINELS, count // 10)].sort().values
    given = order[len(hidden):].sort().values
    pick = lambda rows: Samples(trusted.inputs[rows], trusted.labels[rows])  # noqa: E731
    return pick(hidden) if len(hidden) else None, pick(given)


def _model(subject: Subject | None, untrained: Callable[[Context], Subject] | None, architecture: str,
           seen: Samples, root: Context) -> Trained:
    if subject is not None:
        origin = subject.provenance
        return Trained(subject.to(root.device), {"path": origin.path, "sha256": origin.sha256, "proxy": False,
                                                 "notes": list(origin.notes)})
    assert untrained is not None
    ctx = root.child(root.left, "proxy")
    made = train_proxy(untrained, seen, ctx)
    root.spent += ctx.spent
    return Trained(made, {"path": "", "proxy": True, "architecture": architecture, "epochs": epochs_for(len(seen)),
                          "parameters": sum(p.numel() for p in made.module.parameters()),
                          "notes": [f"a proxy ({architecture or 'a network'}) was trained on the {len(seen)} samples "
                                    f"that the methods saw, for {epochs_for(len(seen))} epochs"]})


def _decide(p: float | None, alpha: float, calibration: Calibration, judged: Judged,
            table: Sequence[Power]) -> tuple[Verdict, str]:
    if not judged.scores:
        first = next((r.reason for r in judged.reports if r.reason), "none ran")
        return Verdict.INCONCLUSIVE, f"no method gave scores: {first}"
    if p is None:
        why = calibration.note or "no clean reference sets were measured with these methods"
        return Verdict.INCONCLUSIVE, f"whether the set is poisoned cannot be judged: {why}"
    if alpha < 1 / (calibration.references + 1):
        return Verdict.INCONCLUSIVE, (f"alpha {alpha:g} is finer than {calibration.references} references can resolve "
                                      f"({1 / (calibration.references + 1):.3g})")
    if p <= alpha:
        return Verdict.SUSPICIOUS, "the set is unlike clean reference sets"
    if judged.incomplete:
        return Verdict.INCONCLUSIVE, f"{judged.incomplete[0].method} did not finish: {judged.incomplete[0].reason}"
    core = [row for row in table if row.core]
    found, tried = sum(row.found for row in core), sum(row.tried for row in core)
    low = binomial_interval(found, tried)[0]
    if low < 0.5:
        return Verdict.INCONCLUSIVE, (f"known poison of the core kinds would have been noticed in {found} of {tried} "
                                      f"cases (lower bound {low:.0%}): too little power to say more")
    return Verdict.NO_EVIDENCE, (f"no evidence of poison; {found} of {tried} poisoned reference sets of the core kinds "
                                 "are noticed by these methods")


def _told(verdict: Verdict, reason: str, rows: SampleTable, trigger: Shown | None, placed: Placed) -> str:
    """What was found, in one sentence."""
    labels = rows.labels[rows.kinds == POISON]
    if not len(labels):
        first = next(iter(placed.contributions), "")
        return f"{reason} ({first}), but no sample stands out at this false-discovery rate"
    values, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts)
    shown = ", ".join(f"{counts[k]} in class {values[k]}" for k in order[:3]) + (" …" if len(order) > 3 else "")
    found = f"{len(labels)} samples are flagged ({shown})"
    if trigger is not None:
        f: TriggerFound = trigger.found
        where = f"to class {f.label}" if f.label >= 0 else "to another class"
        what = f" “{f.shown}”" if f.shown else ""
        found += (f"; the {f.family} trigger{what} that they share sends {f.success:.0%} [{f.low:.0%}, {f.high:.0%}] "
                  f"of other samples {where}; natural control {f.natural_control:.0%}")
    return found if verdict is Verdict.SUSPICIOUS else f"{reason}; provisionally, {found}"


def _suspects(data: TrainingSet, rows: SampleTable) -> tuple[Suspect, ...]:
    """Poison first, then wrong labels, each by suspicion."""
    bad = np.flatnonzero(rows.kinds != KEPT)
    order = bad[np.lexsort((-rows.suspicion[bad], rows.kinds[bad]))][:MOST_LISTED]
    return tuple(Suspect(int(rows.rows[i]), data.name(int(i)), KINDS[int(rows.kinds[i])], int(rows.labels[i]),
                         int(rows.predictions[i]), int(rows.nearest[i]), round(float(rows.suspicion[i]), 4),
                         float(rows.p_values[i]), float(rows.q_values[i]),
                         {m: round(float(v[i]), 3) for m, v in rows.methods.items()}) for i in order)


def _classes(count: int, rows: SampleTable) -> tuple[ClassRow, ...]:
    found = []
    for label in range(count):
        mine = rows.labels == label
        if not mine.any():
            continue
        found.append(ClassRow(label, int(mine.sum()), int((rows.kinds[mine] == POISON).sum()),
                              int((rows.kinds[mine] == MISLABELLED).sum()),
                              float((rows.predictions[mine] == label).mean()), float(rows.suspicion[mine].max())))
    return tuple(found)


def _facts(data: TrainingSet, places: Tensor, hidden: Samples | None, known: Samples | None) -> dict[str, Any]:
    notes = list(data.notes)
    if len(places) < len(data):
        notes.append(f"the methods saw {len(places)} of {len(data)} samples, drawn at random; the others were judged "
                     "by the samples of their label that are most like them")
    if hidden is not None and known is not None:
        notes.append(f"{len(hidden)} trusted samples were hidden among the suspects, {len(known)} given to the methods")
    return {"path": "", "digest": data.digest(), "samples": len(data), "seen": len(places), "classes": data.classes,
            "class_names": list(data.class_names), "shape": list(data.shape), "modality": data.modality.name,
            "notes": notes}
