"""The two tiers of a guard, fitted together: what is doubted, and one score out of both.

Tier one reads hidden layers in the pass that answers. Doubted is a sample whose score is among the largest that clean
samples reach, or whose answer is surer than those of nearly all (what a warp of WaNet does shows there first); tier two
is asked about it again, and

    score = s₁ + Σ_i w_i · s_i        where tier two looked,        score = s₁        elsewhere,

each s in units of clean samples. The guards and weights were chosen on implants of the lab's core plan under seed 0
(docs/guard.md has the figures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Guard, Watch
from laocoon.core.subject import Subject
from laocoon.guards.mahalanobis import Mahalanobis
from laocoon.guards.scale_up import ScaleUp
from laocoon.guards.teco import Teco
from laocoon.recipes.layer_guard import CHUNK, Judge, LayerGuard, read_clean
from laocoon.recipes.requests import nothing
from laocoon.recipes.taps import Tap

BOUND = 8.0  # of a second opinion, in units of clean samples
BLACK_BOXES = {"text": ("strip_vita",), "tabular": ("column_strip", "local_outlier_factor")}  # where nothing is read


@dataclass(frozen=True)
class Opinion:
    """A guard of tier two and its weight."""

    guard: Guard
    weight: float = 1.0


@dataclass(frozen=True)
class Tiers:
    """Which guards look. An empty first tier (a black box has no layers to read) sends everything to the second."""

    first: tuple[LayerGuard, ...] = (Mahalanobis(),)
    second: tuple[Opinion, ...] = (Opinion(ScaleUp(), 0.75), Opinion(Teco(), 0.7))
    doubt: float = 0.3  # share of clean samples that tier two looks at, at most: half for each reason

    def __post_init__(self) -> None:
        if not 0 <= self.doubt <= 1:
            raise InputError(f"doubt is {self.doubt}.", "It is a share of clean samples, between 0 and 1.")
        if not self.first and not self.second:
            raise InputError("no guard is chosen.", "Name at least one.")
        if len({guard.layers for guard in self.first}) > 1:
            raise InputError("the guards of the first tier read different numbers of layers.",
                             "Give them all the same `layers`: they share one pass.")


def default_tiers(subject: Subject) -> Tiers:
    """The guards that suit a model.

    On texts and tables distances in the hidden layers are enough: on planted models of the lab's fusion split they told
    inserted words with an AUROC of 0.99 and column patterns with 0.997 or more, and every other guard only added noise.
    """
    layered = Capability.FEATURES in subject.capabilities
    modality = subject.modality.name
    if modality == "image":
        return Tiers() if layered else Tiers(first=())
    if layered and modality in Mahalanobis.card.modalities:
        return Tiers(second=())
    known = {kind.card.name: kind for kind in classes("laocoon.guards", Guard)}  # type: ignore[type-abstract]
    second = tuple(Opinion(known[name]()) for name in BLACK_BOXES.get(modality, ()))
    if not second:
        raise InputError(f"no guard watches {modality} models of this kind.", "Name the guards.")
    return Tiers((), second)


@dataclass(frozen=True, eq=False)
class Second:
    """A fitted guard of tier two, and its scores on the samples that it was fitted on."""

    name: str
    watch: Watch
    weight: float
    centre: float
    spread: float

    def units(self, batch: Tensor) -> Tensor:
        """[batch], in units of clean samples."""
        scores = self.watch.check(batch).scores
        return ((scores - self.centre) / self.spread).clamp(-BOUND, BOUND)


@dataclass(frozen=True, eq=False)
class Told:
    """What both tiers say of a batch."""

    logits: Tensor
    scores: Tensor
    tier: Tensor


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Both tiers, fitted. No randomness, no state: the same sample gets the same score in any batch."""

    subject: Subject
    tap: Tap | None
    judges: tuple[Judge, ...]
    seconds: tuple[Second, ...]
    threshold: float  # score of tier one from which on tier two looks
    sure: float  # or the margin between the two highest logits
    device: torch.device
    notes: tuple[str, ...] = ()  # guards that did not suit the model, and why

    @property
    def passes(self) -> tuple[float, float]:
        """Forward passes a sample: where tier one settles it, and where tier two looks as well."""
        return 1.0, 1.0 + sum(second.watch.passes for second in self.seconds)

    def judge(self, batch: Tensor) -> Told:
        """[batch, …], acceptable."""
        batch = batch.to(self.device)
        if not len(batch):
            none = nothing(self.subject.module, self.subject.input_shape, self.device, self.subject.modality)
            return Told(none.logits, none.scores, torch.zeros(0, dtype=torch.long, device=self.device))
        if len(batch) <= CHUNK:
            return self._part(batch)
        parts = [self._part(chunk) for chunk in batch.split(CHUNK)]
        return Told(torch.cat([p.logits for p in parts]), torch.cat([p.scores for p in parts]),
                    torch.cat([p.tier for p in parts]))

    @torch.no_grad()
    def _part(self, batch: Tensor) -> Told:
        if self.tap is None:
            logits = self.subject.module(batch).float()
            scores = logits.new_zeros(len(logits))
        else:
            reading = self.tap.read(batch)
            logits = reading.logits
            scores = self.judges[0](reading)
            for judge in self.judges[1:]:
                scores = scores + judge(reading)
        tier = torch.ones(len(batch), dtype=torch.long, device=logits.device)
        doubted = (scores >= self.threshold) | (margins(logits) >= self.sure) if self.seconds else tier > 1
        rows = doubted.nonzero().flatten()
        if len(rows):
            asked = batch[rows]
            for second in self.seconds:
                scores = scores.index_add(0, rows, second.weight * second.units(asked))
            tier[rows] = 2
        return Told(logits, scores, tier)


def fitted(subject: Subject, clean: Samples, tiers: Tiers, ctx: Context) -> Pipeline:
    """Both tiers on the same clean samples; guards that do not suit the model are left out, with the reason."""
    case, notes = ModelCase(subject, clean), []
    made, reading, judges = None, None, []
    if tiers.first:
        made, reading = read_clean(case, tiers.first[0].layers, ctx.child(float("inf"), "tap"))
        for guard in tiers.first:
            own = ctx.child(float("inf"), guard.card.name)
            judges.append(guard.learn(reading, subject.classes, own.rng))
    seconds = []
    for opinion in tiers.second:
        reason = opinion.guard.missing(case)
        if not reason:
            try:
                seconds.append(_second(opinion, case, ctx.child(float("inf"), opinion.guard.card.name)))
            except NotApplicable as error:
                reason = str(error)
        if reason:
            notes.append(reason)
    if not judges and not seconds:
        raise InputError(f"no guard suits this model: {' '.join(notes)}", "Choose other tiers.")
    threshold = sure = -math.inf
    if judges and tiers.doubt < 1:
        held = torch.stack([judge.held for judge in judges]).sum(0)
        threshold = float(held.quantile(1 - tiers.doubt / 2)) if tiers.doubt else math.inf
        assert reading is not None  # there are judges
        sure = float(margins(reading.logits).quantile(1 - tiers.doubt / 2)) if tiers.doubt else math.inf
    return Pipeline(subject, made, tuple(judges), tuple(seconds), threshold, sure, ctx.device, tuple(notes))


def margins(logits: Tensor) -> Tensor:
    """How much the highest logit exceeds the next, [batch]."""
    first, second = logits.topk(2, 1).values.unbind(1)
    return first - second


def _second(opinion: Opinion, case: ModelCase, ctx: Context) -> Second:
    watch = opinion.guard.fit(case, ctx)
    assert case.fit is not None  # missing() has seen to it
    scores = watch.check(case.fit.inputs).scores
    low, centre, high = scores.quantile(torch.tensor([0.16, 0.5, 0.84], device=scores.device)).tolist()
    spread = max((high - low) / 2, 1e-3)
    return Second(opinion.guard.card.name, watch, opinion.weight, centre, spread)
