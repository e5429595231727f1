"""Run the data detectors on a training set, and put what they say into figures that compare between data sets.

`statistics_of` is measured on clean reference sets by the lab and on the set in question by `sift`: the same code, so
that the null belongs to what was really computed.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from laocoon import __version__
from laocoon.core.card import Capability
from laocoon.core.cases import DataCase
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, InputError, NotApplicable
from laocoon.core.methods import DataDetector, Scored
from laocoon.core.report import Report
from laocoon.recipes import score_tails
from laocoon.recipes.false_discovery import LEVELS
from laocoon.recipes.representations import last_layer
from laocoon.verdict.data_trigger import Lifted, lift
from laocoon.verdict.data_trigger import statistics as trigger_statistics
from laocoon.verdict.examination import Crash, attempted

LEAST_SAMPLES = 200  # below, a tail of 1 % is two samples
CURVE = tuple(f"z{round(1000 * level)}" for level in LEVELS)  # names of the quantiles of a method's scores
# What runs unless others are named, and what the reference sets were measured with, beside methods that were made for a
# modality alone. The other methods train networks or ask the model many times over, for little that these do not see
# (benchmarks/filters.py).
DEFAULT = ("activation_clustering", "beatrix", "flare", "influence", "neighbour_labels", "scan_em",
           "spectral_signatures", "spectre")
EVERY = "all"
KNOWN = "known."  # figures that describe the set and accuse nobody: covariates of the others


@dataclass(frozen=True, eq=False)
class View:
    """What the model makes of the samples. All on the processor."""

    features: Tensor  # [n, width], before the head
    logits: Tensor  # [n, classes]

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(1)


@dataclass(frozen=True, eq=False)
class Judged:
    """What all methods said: reports in the order of running, and standardised scores [n] of those that gave any."""

    reports: tuple[Report, ...]
    scores: Mapping[str, Tensor]
    view: View | None
    fitted: Tensor  # bool [n], samples that the model answers as labelled; all where there is no model
    lifted: Lifted | None = None  # the most effective trigger that suspected samples share
    raw: Mapping[str, Tensor] = field(default_factory=dict)  # [n], of methods whose scores mean the same on every set

    def restricted(self, rows: Tensor) -> Judged:
        """What was said of some of the samples, bool [n]."""
        view = None if self.view is None else View(self.view.features[rows], self.view.logits[rows])
        scores = {m: z[rows] for m, z in self.scores.items()}
        raw = {m: s[rows] for m, s in self.raw.items()}
        return Judged(self.reports, scores, view, self.fitted[rows], self.lifted, raw)

    @property
    def incomplete(self) -> tuple[Report, ...]:
        return tuple(r for r in self.reports if not r.complete and not r.skipped)


def available() -> dict[str, type[DataDetector]]:
    """Every installed data detector by name, plug-ins included."""
    return {d.card.name: d for d in classes("laocoon.detectors.data", DataDetector)}  # type: ignore[type-abstract]


def chosen(wanted: Sequence[str] | None = None, modality: str = "image") -> tuple[DataDetector, ...]:
    """Methods by name: those that are named, `all`, or the usual ones, without those with a leading '-'.

    The usual ones, and all, are those whose cards name the modality.
    """
    known = available()
    for word in wanted or ():
        if (name := word.removeprefix("-")) not in known and word != EVERY:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"there is no method {name!r}.{hint}", f"Methods: {', '.join(sorted(known))}, or {EVERY}.")
    only = [w for w in wanted or () if not w.startswith("-")]
    without = {w[1:] for w in wanted or () if w.startswith("-")}
    able = [n for n in known if modality in known[n].card.modalities]
    usual = [n for n in able if n in DEFAULT or (modality != "image" and "image" not in known[n].card.modalities)]
    names = [n for n in (able if EVERY in only else only or usual) if n not in without]
    if not names:
        raise InputError(f"no method for {modality} is left to run.", "Name fewer methods with a leading '-'.")
    return tuple(known[n]() for n in dict.fromkeys(names))


def judge(case: DataCase, ctx: Context, methods: Sequence[DataDetector] | None = None) -> Judged:
    """Run the methods one by one; one that crashes gives an incomplete report, never silence."""
    if len(case.suspects) < LEAST_SAMPLES:
        raise InputError(f"the training set has {len(case.suspects)} samples.",
                         f"At least {LEAST_SAMPLES} are needed to tell a tail from chance.")
    methods = chosen(modality=case.modality) if methods is None else methods
    view = _view(case, ctx)
    labels = case.suspects.labels.cpu()
    fitted = torch.ones(len(labels), dtype=torch.bool) if view is None else view.predictions == labels
    reports, scores, raw = [], {}, {}
    for number, method in enumerate(methods):
        ctx.progress(method.card.name, number / len(methods), "")
        child = ctx.child(ctx.left, method.card.name)
        done = _survive(method, case, child)
        ctx.spent += child.spent
        reports.append(done.report)
        if done.scores is not None:
            scores[method.card.name] = score_tails.standardised(done.scores, fitted, method.unit)
            if method.unit:
                raw[method.card.name] = done.scores
    lifted = None
    if case.subject is not None:
        child = ctx.child(ctx.left, "lifted")
        lifted = lift(case.subject, case, tuple(scores.values()), fitted, child)
        ctx.spent += child.spent
    ctx.progress("", 1.0, "")
    return Judged(tuple(reports), scores, view, fitted, lifted, raw)


def _survive(method: DataDetector, case: DataCase, ctx: Context) -> Scored:
    done = attempted(lambda: method.examine(case, ctx))
    if not isinstance(done, Crash):
        return done
    reason = f"{method.card.name} failed: {done.reason}"[:300]
    params = asdict(method)  # type: ignore[call-overload]
    return Scored(Report(method=method.card.name, params=params, findings=(), examined=(), skipped=(), reason=reason,
                         subject="", seed=ctx.seed, spent=ctx.spent, seconds=0.0, version=__version__, complete=False),
                  None)


def _view(case: DataCase, ctx: Context) -> View | None:
    subject = case.subject
    if subject is None or Capability.FEATURES not in subject.capabilities:
        return None
    try:
        known = last_layer(subject, case.suspects.inputs, ctx)
    except (NotApplicable, BudgetSpent):
        return None
    return View(known.features, known.logits)


def statistics_of(case: DataCase, ctx: Context, methods: Sequence[DataDetector] | None = None) -> dict[str, float]:
    """Every rule's figure on one training set, and what is `known.` about it. What the reference file is made of."""
    return statistics(judge(case, ctx, methods), case)


def statistics(judged: Judged, case: DataCase) -> dict[str, float]:
    """From what the methods said. Samples that the model does not answer as labelled are left out: mislabelled ones
    have a tail of their own, and a model does not fail to learn its poison."""
    labels = case.suspects.labels.cpu()
    rows = judged.fitted
    if int(rows.sum()) < LEAST_SAMPLES:
        rows = torch.ones_like(rows)
    found: dict[str, float] = {}
    for name, scores in judged.scores.items():
        z = scores[rows]
        found |= {f"{name}.{level}": v for level, v in zip(CURVE, score_tails.quantiles(z), strict=True)}
        found[f"{name}.tail"] = score_tails.tail(z)
        found[f"{name}.gap"] = score_tails.gap(z)
        found[f"{name}.class"] = score_tails.concentration(z, labels[rows])
        if judged.view is not None:
            found[f"{name}.coherence"] = score_tails.coherence(z, labels[rows], judged.view.features[rows])
    for name, given in judged.raw.items():
        found[f"{name}.height"] = score_tails.height(given[rows])
    if len(judged.scores) > 1:
        together = hashlib.sha256(",".join(sorted(judged.scores)).encode()).hexdigest()[:6]
        found[f"agreement.{together}"] = score_tails.agreement([z[rows] for z in judged.scores.values()])
    found |= trigger_statistics(judged.lifted, case)
    found[f"{KNOWN}accuracy"] = float(judged.fitted.float().mean())
    found[f"{KNOWN}classes"] = math.log(case.classes)
    found[f"{KNOWN}samples"] = math.log(len(labels))
    found[f"{KNOWN}grey"] = float(_grey(case.suspects.inputs))
    return found


def _grey(inputs: Tensor) -> bool:
    """One channel, or three that are equal."""
    return inputs.dim() == 4 and (inputs.shape[1] == 1 or bool((inputs[:256].diff(dim=1) == 0).all()))
