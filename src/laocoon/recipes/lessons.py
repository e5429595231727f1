"""What trainers share: a fresh network, training whose every pass is paid for, and what is said about the result."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.subject import Provenance, Subject
from laocoon.recipes.fit import Objective, fit, shift_and_flip


@dataclass(frozen=True)
class Lesson:
    """How long and how fast to train, and how pictures are varied meanwhile."""

    epochs: int
    batch: int = 64
    rate: float = 3e-3
    shift: int = 0  # px of random translation
    flip: bool = False  # random mirroring


def pupil(case: DataCase, ctx: Context) -> Subject:
    """A new network of the case's architecture, of its own weights, where the context computes."""
    if case.untrained is None:
        raise NotApplicable("no architecture was given to train.")
    fresh = case.untrained(ctx)
    if fresh.classes != case.classes:
        raise InputError(f"the network scores {fresh.classes} classes, the data have {case.classes}.",
                         "Build it for the classes of the data.")
    return replace(fresh, module=copy.deepcopy(fresh.module).to(ctx.device))


def material(case: DataCase, ctx: Context) -> Samples:
    """The training samples where the context computes; InputError where they cannot be learnt from."""
    samples = case.suspects
    if len(samples) < 2:
        raise NotApplicable(f"{len(samples)} training samples are too few.")
    if not bool(torch.isfinite(samples.inputs).all()):
        raise InputError("the training samples hold values that are not finite.", "Leave those samples out.")
    if int(samples.labels.min()) < 0 or int(samples.labels.max()) >= case.classes:
        raise InputError(f"labels run from {int(samples.labels.min())} to {int(samples.labels.max())}.",
                         f"They number {case.classes} classes, 0 first.")
    return Samples(samples.inputs.to(ctx.device), samples.labels.long().to(ctx.device))


def batch_of(lesson: Lesson, n: int) -> int:
    """The lesson's batch, smaller where there are few samples, so that an epoch has several steps."""
    return max(1, min(lesson.batch, n, max(16, n // 8)))


def teach(module: nn.Module, samples: Samples, lesson: Lesson, ctx: Context, objective: Objective | None = None,
          rng: torch.Generator | None = None) -> None:
    """Train in place; each step is paid for before it is made. An objective pays for passes beyond its batch's own."""
    draws = ctx.rng if rng is None else rng

    def varied(x: Tensor) -> Tensor:
        ctx.spend(len(x))
        if x.dim() != 4 or not (lesson.shift or lesson.flip):
            return x
        return shift_and_flip(x, draws, shift=lesson.shift, flip=lesson.flip)

    fit(module, samples.inputs, samples.labels, epochs=lesson.epochs, rng=draws, augment=varied, objective=objective,
        batch=batch_of(lesson, len(samples)), rate=lesson.rate)


@torch.no_grad()
def losses(module: nn.Module, samples: Samples, ctx: Context) -> Tensor:
    """Cross-entropy of each sample, [n]; the module is left in eval mode."""
    module.eval()
    found = []
    for x, y in zip(samples.inputs.split(ctx.batch), samples.labels.split(ctx.batch), strict=True):
        ctx.spend(len(x), backward=False)
        found.append(functional.cross_entropy(module(x), y, reduction="none"))
    return torch.cat(found)


def lowest_of_each(values: Tensor, labels: Tensor, share: float) -> Tensor:
    """Boolean [n]: the `share` of the samples of each class whose values are lowest, rounded down."""
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        chosen[rows[values[rows].argsort(stable=True)[:int(share * len(rows))]]] = True
    return chosen


def picked(samples: Samples, rows: Tensor) -> Samples:
    """The samples that a boolean mask or an index names."""
    return Samples(samples.inputs[rows], samples.labels[rows])


def finished(subject: Subject, method: str, facts: Mapping[str, object]) -> Subject:
    """The trained subject on the processor, with what its trainer says of it in its provenance."""
    module = subject.module.to("cpu")
    told = {"trainer": method, **{k: str(v) for k, v in facts.items()}}
    return replace(subject, module=module, provenance=Provenance(format="trained here", metadata=told))


def digest_of(sample: Tensor) -> bytes:
    """SHA-256 of a sample's own values, whatever stands around it: equal samples have equal digests."""
    return hashlib.sha256(sample.detach().float().cpu().contiguous().numpy().tobytes()).digest()
