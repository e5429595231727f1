"""What judges and answers: a guard with its model, and perhaps another server that answers in the model's place.

An engine is never changed. A reload makes another one and swaps it in; requests finish on the one they began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.files.protocol import TensorMetadata
from laocoon.files.tensors import Named
from laocoon.serve.inputs import Inputs, Pixels

NEAR_TIE = 0.2  # difference of two classes' probabilities below which rounding may exchange them


class Said(Protocol):
    """What a guard says of a batch: `laocoon.verdict.guard.Judgement`."""

    @property
    def logits(self) -> Tensor: ...  # [batch, classes], the model's own answer
    @property
    def flagged(self) -> Tensor: ...  # [batch] bool
    @property
    def p_values(self) -> Tensor: ...  # [batch]
    @property
    def scores(self) -> Tensor: ...  # [batch]
    @property
    def tier(self) -> Tensor: ...  # [batch] int


class Watcher(Protocol):
    """A fitted guard: `laocoon.verdict.guard.Guarded`."""

    def check(self, batch: Tensor) -> Said: ...


@dataclass(frozen=True)
class Facts:
    """What an engine is; nothing of it is secret."""

    model: str  # SHA-256 of the model
    guard: str  # SHA-256 of the fitted guard
    shape: tuple[int, ...]  # of one input
    classes: int
    class_names: tuple[str, ...]
    alpha: float
    calibrated: int  # samples that p-values are computed from
    inputs: Inputs | None = None  # how they come in; None: as images

    @property
    def version(self) -> str:
        """Changes with the model and with the guard."""
        return f"{self.model[:8]}-{self.guard[:8]}"

    @property
    def takes(self) -> Inputs:
        return self.inputs or Pixels(self.shape)

    @property
    def elements(self) -> int:
        """On the wire, of one sample."""
        return int(torch.Size(self.takes.shape).numel())


@dataclass(frozen=True, eq=False)
class Judged:
    """A batch after the guard, checked for sense, on the CPU."""

    logits: Tensor
    flagged: Tensor
    p_values: Tensor
    scores: Tensor
    tier: Tensor

    def part(self, start: int, stop: int) -> Judged:
        rows = slice(start, stop)
        return Judged(self.logits[rows], self.flagged[rows], self.p_values[rows], self.scores[rows], self.tier[rows])


@dataclass(frozen=True, eq=False)
class Engine:
    """`purify` maps flagged inputs to inputs without their trigger; `upstream` answers where the model does not."""

    watcher: Watcher
    facts: Facts
    purify: Callable[[Tensor], Tensor] | None = None
    upstream: Upstream | None = None

    def judge(self, batches: Sequence[Tensor], told: Callable[[int, float], None] | None = None) -> list[Judged]:
        """Several requests in one pass. RuntimeError where what the guard says makes no sense: no answer then."""
        began = time.perf_counter()
        whole = torch.cat(list(batches))
        with torch.no_grad():
            judged = sensible(self.watcher.check(whole), len(whole), self.facts)
        if told is not None:
            told(len(whole), time.perf_counter() - began)
        parts, start = [], 0
        for batch in batches:
            parts.append(judged.part(start, start + len(batch)))
            start += len(batch)
        return parts

    def answered(self, batch: Tensor, logits: Tensor) -> tuple[tuple[Named, ...], Tensor]:
        """The upstream's outputs, and where its class is another than `logits` say, near ties aside, [batch] bool.

        A guard knows one model. Where the upstream runs another, its judgement says nothing.
        """
        if self.upstream is None:
            raise RuntimeError("there is no upstream to ask")
        outputs = self.upstream.infer(batch)
        other = self.upstream.scores(outputs, len(batch)).argmax(1, keepdim=True)
        shares = logits.softmax(1)
        return outputs, shares.amax(1) - shares.gather(1, other).squeeze(1) > NEAR_TIE

    def purified(self, batch: Tensor) -> Tensor:
        if self.purify is None:
            raise InputError("this guard has no purifier.", "Fit it with --policy purify.")
        with torch.no_grad():
            cleaned = self.purify(batch)
        if cleaned.shape != batch.shape or not bool(torch.isfinite(cleaned).all()):
            raise RuntimeError(f"the purifier made {tuple(cleaned.shape)} of {tuple(batch.shape)}, or not finite")
        return cleaned.clamp(0, 1)

    def warm(self) -> None:
        """One pass over an empty sample: an engine that cannot answer is found out before it is swapped in."""
        self.judge([self.facts.takes.blank()])


class Upstream(Protocol):
    """Another server: `laocoon.serve.upstream.Remote`."""

    @property
    def outputs(self) -> tuple[TensorMetadata, ...]: ...

    def infer(self, batch: Tensor) -> tuple[Named, ...]: ...

    def scores(self, outputs: tuple[Named, ...], count: int) -> Tensor: ...  # [count, classes]


def sensible(said: Said, count: int, facts: Facts) -> Judged:
    """A guard that returns too little, or numbers that are none, has failed; it has not found anything clean."""
    judged = Judged(said.logits.detach().float().cpu(), said.flagged.detach().bool().cpu(),
                    said.p_values.detach().double().cpu(), said.scores.detach().double().cpu(),
                    said.tier.detach().long().cpu())
    if judged.logits.shape != (count, facts.classes):
        raise RuntimeError(f"logits of shape {tuple(judged.logits.shape)} for {count} samples, {facts.classes} classes")
    for name in ("flagged", "p_values", "scores", "tier"):
        if getattr(judged, name).shape != (count,):
            raise RuntimeError(f"{name} of shape {tuple(getattr(judged, name).shape)} for {count} samples")
    finite = torch.isfinite(judged.logits).all() and torch.isfinite(judged.scores).all()
    if not finite or not bool(((judged.p_values >= 0) & (judged.p_values <= 1)).all()):
        raise RuntimeError("scores, p-values or logits that are no numbers")
    if bool(((judged.p_values <= facts.alpha) & ~judged.flagged).any()):
        raise RuntimeError(f"a p-value of at most {facts.alpha:g} that is not flagged")
    return judged
