"""Resistance to detection: how often a panel of detectors misses it at 5 % false alarms. Formulas in docs/criteria.md.

`resistance` is a pure function of scores, whoever made them; the default panel below makes some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector, Implant
from laocoon.core.subject import Subject
from laocoon.detectors.model.head_probes import HeadProbes
from laocoon.detectors.model.head_statistics import HeadStatistics
from laocoon.detectors.model.mm_bd import MMBD
from laocoon.detectors.model.trodo import TRODO
from laocoon.lab.criteria.answers import goal_of, home, logits, need_images, stamped
from laocoon.lab.criteria.measure import Measure, absent, area, rate
from laocoon.recipes.latent_statistics import activation_clustering, spectral_signatures, strip
from laocoon.recipes.sites import head_of, penultimate, survey

ALPHA = 0.05
PANELS = ("model", "data", "runtime")
MOST_TRAINING = 10_000  # samples that the data panel looks at

# The cheap model detectors, each by the one rule of its that is compared across models.
MODEL_PANEL: tuple[tuple[Detector, str], ...] = (
    (HeadStatistics(), "head_statistics.combined"), (HeadProbes(), "head_probes.lead"),
    (TRODO(), "trodo.relative"), (MMBD(restarts=4), "mm_bd.margin"))


@dataclass(frozen=True)
class Scores:
    """What one detector says of what is planted and of what is clean; higher is more suspicious, −∞ is silence.

    A score belongs to a model in the panel `model`, to a sample in the panels `data` and `runtime`.
    """

    detector: str
    panel: str
    planted: tuple[float, ...]
    clean: tuple[float, ...]


@dataclass(frozen=True)
class Resistance:
    """Evasion = share of what is planted that is not flagged at a threshold holding 5 % false alarms on the clean."""

    mean: Measure  # over detectors, panels weighed alike
    worst: Measure  # the detector that sees most
    panels: Mapping[str, Measure]  # mean evasion by panel
    evasion: Mapping[str, Measure]  # by detector
    auroc: Mapping[str, Measure]
    false_alarms: Mapping[str, Measure]  # at the threshold, on the clean scores
    skipped: Mapping[str, str]  # detector -> reason


def threshold(clean: Sequence[float], alpha: float = ALPHA) -> float:
    """The conformal threshold: flag scores above it, and a new clean one is flagged with probability ≤ alpha.

    The ⌈(1 − alpha)(n + 1)⌉-th smallest clean score; ∞ where n is too small for any (n < 19 at 5 %).
    """
    place = math.ceil(round((1 - alpha) * (len(clean) + 1), 9))
    return math.inf if place > len(clean) else sorted(clean)[place - 1]


def _limit(clean: Sequence[float], alpha: float) -> float:
    """The threshold, or the largest clean score where there are too few."""
    return min(threshold(clean, alpha), max(clean, default=math.inf))


def evasion(scores: Scores, alpha: float = ALPHA) -> Measure:
    """Share of planted scores that are not above the threshold.

    With too few clean scores for alpha, the largest clean score is the threshold, and the note says what it holds.
    """
    if not scores.planted or not scores.clean:
        return absent("share", "one side is empty")
    n = len(scores.clean)
    enough = threshold(scores.clean, alpha) < math.inf
    note = (f"at {alpha:.0%} false alarms on {n} clean" if enough else
            f"{n} clean are too few for {alpha:.0%}: above all of them, which holds {1 / (n + 1):.0%}")
    limit = _limit(scores.clean, alpha)
    return rate([score <= limit for score in scores.planted], note)


def resistance(panel: Sequence[Scores], alpha: float = ALPHA, skipped: Mapping[str, str] | None = None) -> Resistance:
    """Panel-agnostic: scores in, figures out. Intervals of mean and worst join those of the detectors, conservatively.

    A detector whose clean scores are too few to hold alpha is shown, but not counted in mean and worst.
    """
    found = {s.detector: evasion(s, alpha) for s in panel}
    alarms = {s.detector: rate([c > _limit(s.clean, alpha) for c in s.clean]) for s in panel}
    reasons = dict(skipped or {})
    counted = {}
    for s in panel:
        if s.planted and threshold(s.clean, alpha) < math.inf:
            counted[s.detector] = found[s.detector]
        else:
            reasons[s.detector] = f"not counted: {found[s.detector].note}"
    by_panel = {name: _mean([counted[s.detector] for s in panel if s.panel == name and s.detector in counted])
                for name in dict.fromkeys(s.panel for s in panel)}
    by_panel = {name: m for name, m in by_panel.items() if m.value is not None}
    return Resistance(mean=_mean(list(by_panel.values())), worst=_worst(counted), panels=by_panel, evasion=found,
                      auroc={s.detector: area(s.planted, s.clean) for s in panel}, false_alarms=alarms,
                      skipped=reasons)


def _mean(items: Sequence[Measure]) -> Measure:
    known = [m for m in items if m.value is not None and m.low is not None and m.high is not None]
    if not known:
        return absent("share", "no detector gave scores")
    value, low, high = (sum(getattr(m, f) for m in known) / len(known) for f in ("value", "low", "high"))
    return Measure(round(value, 6), "share", round(low, 6), round(high, 6), len(known))


def _worst(known: Mapping[str, Measure]) -> Measure:
    if not known:
        return absent("share", "no detector gave scores")
    name = min(known, key=lambda k: (known[k].value or 0.0, k))
    lows, highs = ([getattr(m, f) for m in known.values()] for f in ("low", "high"))
    return Measure(known[name].value, "share", min(lows), min(highs), len(known), name)


def data_scores(implant: Implant, subject: Subject, ctx: Context) -> Iterator[Scores]:
    """Activation clustering and spectral signatures on the training set, in the features of a model trained on it.

    Planted: poisoned samples whose label is a target (covers keep theirs); clean: samples that nobody touched.
    """
    train = implant.train
    if train is None or not len(implant.poisoned):
        return
    rows = torch.randperm(len(train), generator=ctx.rng)[:MOST_TRAINING].sort().values
    touched = torch.zeros(len(train), dtype=torch.bool)
    touched[implant.poisoned] = True
    inputs, labels, touched = train.inputs[rows], train.labels[rows], touched[rows]
    active = touched & torch.isin(labels, torch.tensor(goal_of(implant.trigger).targets))
    place = home(subject)
    site = head_of(subject, survey(subject, inputs[:3].to(place), ctx), inputs[:3].to(place), ctx)
    parts = [penultimate(subject, site, part.to(place), ctx).features.flatten(1).float().cpu()
             for part in inputs.split(ctx.batch)]
    features = torch.cat(parts)
    for name, scores in (("activation_clustering", activation_clustering(features, labels)),
                         ("spectral_signatures", spectral_signatures(features, labels))):
        yield Scores(name, "data", tuple(scores[active].tolist()), tuple(scores[~touched].tolist()))


def runtime_scores(implant: Implant, test: Samples, given: Samples, ctx: Context) -> Iterator[Scores]:
    """STRIP on one half of the test samples stamped, on the other half clean; `given` are laid over them."""
    need_images(test)
    goal = goal_of(implant.trigger)
    half = torch.arange(len(test)) % 2 == 0
    rows = half & goal.applies(test.labels)
    sides = (stamped(implant.trigger, test.inputs[rows]), test.inputs[~half])
    planted, clean = (strip(lambda batch: logits(implant.subject, batch, ctx), x, given.inputs, ctx.rng)
                      for x in sides)
    yield Scores("strip", "runtime", tuple(planted.tolist()), tuple(clean.tolist()))


@dataclass(frozen=True)
class Examined:
    """What the model panel says of one subject: a score per rule, or why there is none."""

    scores: Mapping[str, float]
    skipped: Mapping[str, str]


def examined(subject: Subject, given: Samples, ctx: Context,
             panel: Sequence[tuple[Detector, str]] = MODEL_PANEL) -> Examined:
    """Run the model panel on one subject. Clean references are examined once and kept: they serve every attack."""
    scores, skipped = {}, {}
    for method, rule in panel:
        own = ctx.child(ctx.left, method.card.name)
        report = method.examine(ModelCase(subject, given.to(home(subject)), None), own)
        ctx.spent += own.spent
        if report.complete:
            scores[rule] = report.statistics().get(rule, -math.inf)
        else:
            skipped[rule] = report.reason
    return Examined(scores, skipped)


def model_scores(planted: Sequence[Examined], clean: Sequence[Examined]) -> list[Scores]:
    """By rule, over the subjects; a rule that is missing on one of them is left out: no score is not a score of 0."""
    everyone = [*planted, *clean]
    rules = [r for r in dict.fromkeys(r for e in everyone for r in e.scores) if all(r in e.scores for e in everyone)]
    return [Scores(r, "model", tuple(e.scores[r] for e in planted), tuple(e.scores[r] for e in clean)) for r in rules]
