"""From one input that fired at run time back to the training samples that planted it.

Last-layer gradients of training samples of the label that the input was given tell which of them taught the model this
answer (TracIn in the last layer, Pruthi et al., NeurIPS 2020: the inner product of two samples' gradients is that of
their errors times that of their features). Of a sample that the model fits the error is next to nothing, so what is
compared is the features, without what all samples of the label have in common: the direction from the label's ordinary
samples to the input, in units of their covariance. Samples far out in that direction are the source; ordinary ones are
estimated again without them until nothing changes (after Shan et al., Poison Forensics, USENIX Security 2022, who
prune what is innocent cluster by cluster).

A clean input has such neighbours too. So what the source and the input share is lifted and stamped on samples of other
labels: a source is confirmed where that sends them to the label, and then every sample that bears it is listed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laocoon import __version__
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.report import _plain
from laocoon.core.sift_report import TriggerFound
from laocoon.core.subject import Subject
from laocoon.files.training_set import TrainingSet
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.false_discovery import Tail, benjamini_hochberg, mirrored
from laocoon.recipes.representations import last_layer
from laocoon.recipes.score_tails import standardised
from laocoon.verdict.data_trigger import TRIED, Lifted, confirmed

ROUNDS = 12
LEAST = 20  # samples of a label, below which there is nothing to tell the source from
MOST = 20_000  # samples of the label that are looked at
SHRINK = 0.1  # of the covariance towards a multiple of the identity
SEEDS = 10  # nearest samples that stand for the input after the first round
FAR = 0.5  # share of the input's own distance from which a sample can be a source: the rest is halfway to ordinary


@dataclass(frozen=True)
class Source:
    """One training sample that taught the model the answer."""

    row: int
    name: str
    label: int
    similarity: float  # 1 where it lies as far out as the input, 0 among ordinary samples
    p_value: float
    q_value: float


@dataclass(frozen=True)
class TraceReport:
    """The samples, the nearest first. `to_dict` is the public JSON."""

    reason: str
    label: int  # that the model gave the input
    confidence: float
    fdr: float
    sources: tuple[Source, ...]
    samples: int  # of that label
    seen: int
    trigger: TriggerFound | None  # that input and sources share, and what it does to other samples
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    spent: float
    seconds: float
    seed: int
    version: str
    command: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """1 where a source was found and confirmed, 3 where it was not confirmed, 0 where there is none."""
        return 0 if not self.sources else 1 if self.trigger is not None else 3

    def to_dict(self) -> dict[str, Any]:
        return {"schema": "laocoon-trace/1", "exit_code": self.exit_code,
                **_plain({f: getattr(self, f) for f in self.__dataclass_fields__})}


def trace(data: TrainingSet, subject: Subject, fired: Tensor, *, fdr: float = 0.05, label: int | None = None,
          seed: int = 0, budget: float = float("inf"), device: str = "cpu") -> TraceReport:
    """Rank the training samples that an input's answer comes from.

    fired: one canonical input. label: whose samples are searched; the model's answer where None.
    """
    start = time.monotonic()
    if not 0 < fdr < 1:
        raise InputError(f"fdr is {fdr!r}.", "It is a rate between 0 and 1, for instance 0.05.")
    ctx = Context(seed=seed, device=torch.device(device), budget=budget)
    subject = subject.to(ctx.device)
    if tuple(fired.shape) != data.shape:
        raise InputError(f"the input has shape {list(fired.shape)}, the data {list(data.shape)}.",
                         "Pass the input as the model saw it.")
    known = last_layer(subject, fired[None], ctx)
    answer = int(known.logits.argmax(1)) if label is None else label
    if not 0 <= answer < data.classes:
        raise InputError(f"the label is {answer}.", f"The data have {data.classes} classes, 0 first.")
    members = torch.from_numpy((data.labels == answer).nonzero()[0])
    count = len(members)
    members = members[torch.randperm(count, generator=ctx.rng)[:MOST]].sort().values
    if len(members) < LEAST:
        raise NotApplicable(f"{count} training samples have the label {answer}; {LEAST} are needed to compare.")
    features = torch.cat([last_layer(subject, data.inputs(part), ctx).features for part in members.split(2048)])
    found = sources(features.double(), known.features[0].double(), fdr)
    others = torch.from_numpy((data.labels != answer).nonzero()[0])
    others = data.inputs(others[torch.randperm(len(others), generator=ctx.rng)[:600]])
    lifted = confirmed(subject, data.inputs(members[_first(found, 60)]), answer, others, ctx)
    if lifted is not None:
        grown = _bearers(lifted, data, members, fired, others, fdr)
        found = found if grown is None else Traced(grown.inside, found.similarity, grown.p, grown.q)
        lifted = None if grown is None else lifted
    order = _first(found, len(members))
    listed = tuple(Source(int(data.rows[int(members[i])]), data.name(int(members[i])), answer,
                          round(float(found.similarity[i]), 4), float(found.p[i]), float(found.q[i]))
                   for i in order.tolist())
    evidence = None
    if lifted is not None:
        low, high = binomial_interval(round(lifted.success * TRIED), TRIED)
        evidence = TriggerFound(answer, lifted.family.name, lifted.size, lifted.family.unit, lifted.success, low, high,
                                TRIED, lifted.control_success)
    reason = _told(answer, len(listed), len(members), lifted)
    notes = (f"{MOST} of {count} samples of the label were looked at",) if count > MOST else ()
    return TraceReport(reason, answer, float(known.logits.softmax(1)[0, answer]), fdr, listed, count, len(members),
                       evidence, {"digest": data.digest(), "samples": len(data), "notes": list(data.notes)},
                       {"path": subject.provenance.path, "sha256": subject.provenance.sha256}, ctx.spent,
                       time.monotonic() - start, seed, __version__, notes=notes)


def _first(found: Traced, count: int) -> Tensor:
    """Places of the sources, the most similar first."""
    order = found.similarity.argsort(descending=True, stable=True)
    return order[found.inside[order]][:count]


def _told(label: int, found: int, of: int, lifted: Lifted | None) -> str:
    if lifted is not None:
        return (f"the model answers class {label}; {found} of its {of} training samples bear the {lifted.family.name} "
                f"trigger of the input, which sends {lifted.success:.0%} of other samples there (control "
                f"{lifted.control_success:.0%}): unlearn these")
    if found:
        return (f"the model answers class {label}; {found} of its {of} training samples lie where the input does, but "
                "share no trigger that works on others: ordinary inputs have such neighbours too")
    return (f"the model answers class {label}, and no training sample of it stands out beside the input: it did not "
            "fire, or what it was taught by is not in these data")


def _bearers(lifted: Lifted, data: TrainingSet, members: Tensor, fired: Tensor, others: Tensor,
             fdr: float) -> Traced | None:
    """All samples of the label that bear the trigger; None where the input itself does not. Other labels' samples,
    few or none of which do, are the null."""
    def bearing(inputs: Tensor) -> Tensor:
        return lifted.shares.bearing(inputs, lifted.estimate, others).double()

    null = bearing(others)
    own = torch.cat([bearing(data.inputs(part)) for part in members.split(2048)])
    everyone = torch.cat([null, own, bearing(fired[None])])
    z = standardised(everyone, torch.arange(len(everyone)) < len(null))
    p = Tail.of(z[:len(null)]).share_above(z)
    if float(p[-1]) > 0.01:
        return None
    p = p[len(null):-1]
    q = benjamini_hochberg(p)
    return Traced(q <= fdr, z[len(null):-1], p, q)


@dataclass(frozen=True, eq=False)
class Traced:
    """All [n]."""

    inside: Tensor
    similarity: Tensor
    p: Tensor
    q: Tensor


def sources(features: Tensor, fired: Tensor, fdr: float) -> Traced:
    """Which features [n, width] lie in the direction of the input [width] further out than ordinary ones do."""
    n, width = features.shape
    scale = features.std(0).clamp_min(1e-6)
    features, fired = features / scale, fired / scale
    nearest = (features - fired).norm(dim=1)
    # To begin with, those nearer to the input than to the label's middle are not ordinary.
    middle = features.median(0).values
    inside = nearest < (features - middle).norm(dim=1)
    target = features[nearest.topk(SEEDS, largest=False).indices].mean(0)
    if float((fired - target).norm()) > float((fired - middle).norm()):
        target = fired  # it lies alone, beyond all samples
    similarity, p, q = torch.zeros(n), torch.ones(n), torch.ones(n)
    seen: set[bytes] = set()
    for _ in range(ROUNDS):
        ordinary = ~inside
        if int(ordinary.sum()) < max(LEAST // 2, n // 20):
            break
        mean = features[ordinary].mean(0)
        away = features[ordinary] - mean
        covariance = away.T @ away / len(away)
        size = float(covariance.diagonal().mean().clamp_min(1e-12))
        covariance = (1 - SHRINK) * covariance + SHRINK * size * torch.eye(width, dtype=features.dtype)
        axis = torch.linalg.solve(covariance, target - mean)
        out = (features - mean) @ axis
        similarity = out / ((target - mean) @ axis).clamp_min(1e-12)
        p = mirrored(out, ordinary)
        q = benjamini_hochberg(p)
        update = (q <= fdr) & (similarity >= FAR)
        if int(update.sum()) >= SEEDS // 2:
            target = features[update].mean(0)
        if torch.equal(update, inside) or (key := update.numpy().tobytes()) in seen:
            inside = update
            break
        seen.add(key)
        inside = update
    return Traced(inside, similarity, p, q)
