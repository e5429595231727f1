"""What guards share that ask a model again about changed copies of a request: black boxes will do.

A profile is what the model says of each copy about the class that it gave the request itself, [batch, copies].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Checked
from laocoon.core.subject import Modality
from laocoon.recipes.requests import acceptable, nothing

Answer = Callable[[Tensor], Tensor]  # inputs [n, …] to class scores [n, classes]
Change = Callable[[Tensor], Tensor]  # inputs to changed inputs of the same shape; no randomness of its own
LEAST = 8  # clean samples
CHUNK = 256  # samples checked at once: bounds memory
LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Profile:
    """The answer to a request, and what is said of its copies about the same class."""

    logits: Tensor  # [batch, classes]
    shares: Tensor  # [batch, copies]: probability of the answered class
    kept: Tensor  # [batch, copies] bool: still the answer?
    entropies: Tensor  # [batch, copies], in nats: how unsure the answers to the copies are

    @property
    def answers(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """[batch]: probability of the answer."""
        return self.logits.softmax(1).amax(1)


@torch.no_grad()
def profile(answer: Answer, inputs: Tensor, copies: Sequence[Change | tuple[Answer, Change]]) -> Profile:
    """One pass for the request and one for each copy; a copy may have a network of its own."""
    logits = answer(inputs).float()
    said = logits.argmax(1, keepdim=True)
    shares, kept, entropies = [], [], []
    for copy in copies:
        other, change = copy if isinstance(copy, tuple) else (answer, copy)
        again = other(change(inputs)).float()
        chances = again.log_softmax(1)
        shares.append(chances.gather(1, said).squeeze(1).exp())
        kept.append(again.argmax(1) == said.squeeze(1))
        entropies.append(-(chances.exp() * chances.clamp_min(-1e4)).sum(1))
    return Profile(logits, torch.stack(shares, 1), torch.stack(kept, 1), torch.stack(entropies, 1))


def profile_of(answer: Answer, samples: Samples, copies: Sequence[Change | tuple[Answer, Change]],
               ctx: Context) -> Profile:
    """Of many samples, in chunks, paid for."""
    if len(samples) < LEAST:
        raise NotApplicable(f"at least {LEAST} clean samples are needed to fit on.")
    parts = []
    for chunk in samples.inputs.to(ctx.device).split(ctx.batch):
        ctx.spend(len(chunk) * (1 + len(copies)), backward=False)
        parts.append(profile(answer, chunk, copies))
    return Profile(torch.cat([p.logits for p in parts]), torch.cat([p.shares for p in parts]),
                   torch.cat([p.kept for p in parts]), torch.cat([p.entropies for p in parts]))


@dataclass(frozen=True, eq=False)
class CopyWatch:
    """A guard that asks again; one forward pass for the request and one for each copy."""

    answer: Answer
    copies: tuple[Change | tuple[Answer, Change], ...]
    judge: Callable[[Profile], Tensor]
    shape: tuple[int, ...]
    device: torch.device
    modality: Modality | None = None  # of images unless it says otherwise

    @property
    def passes(self) -> float:
        return 1.0 + len(self.copies)

    def check(self, batch: Tensor) -> Checked:
        batch = acceptable(batch, self.shape, self.modality).to(self.device)
        if not len(batch):
            return nothing(self.answer, self.shape, self.device, self.modality)
        parts = [profile(self.answer, chunk, self.copies) for chunk in batch.split(CHUNK)]
        scores = torch.cat([self.judge(part) for part in parts]).float()
        scores = scores.nan_to_num(LARGEST, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
        return Checked(torch.cat([part.logits for part in parts]), scores)


def in_class_units(scores: Tensor, answers: Tensor, classes: int, weight: float = 2.0) -> Callable[[Tensor, Tensor],
                                                                                                Tensor]:
    """(score − mean of the answered class) / common deviation, from clean scores [n] and their classes [n].

    A class's mean is drawn to the common one as if by `weight` more samples.
    """
    common, spread = scores.mean(), scores.std(unbiased=False).clamp_min(1e-3)
    count = torch.bincount(answers, minlength=classes).to(scores)
    total = torch.zeros(classes, device=scores.device, dtype=scores.dtype).index_add(0, answers, scores)
    means = (total + weight * common) / (count + weight)

    def units(asked: Tensor, labels: Tensor) -> Tensor:
        return (asked - means[labels]) / spread

    return units


@dataclass(frozen=True, eq=False)
class Outlying:
    """log of the squared Mahalanobis distance from clean profiles, the confidence of the answer among the numbers."""

    mean: Tensor
    inverse: Tensor

    def __call__(self, asked: Profile) -> Tensor:
        away = _numbers(asked) - self.mean
        return ((away @ self.inverse) * away).sum(1).clamp_min(1e-6).log()


def outlying(clean: Profile, shrink: float = 0.1) -> Outlying:
    """Fitted on clean profiles; the covariance is (1 − shrink)·C + shrink·mean(diag C)·I."""
    rows = _numbers(clean)
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / max(1, len(rows) - 1)
    level = covariance.diagonal().mean().clamp_min(1e-8)
    identity = torch.eye(len(mean), device=rows.device)
    return Outlying(mean, torch.linalg.inv((1 - shrink) * covariance + shrink * level * identity))


def _numbers(asked: Profile) -> Tensor:
    return torch.cat([asked.shares, asked.confidence.unsqueeze(1)], 1)
