"""A model with a guard at its side: every request gets an answer, a p-value and, below the chosen rate, a flag.

    guarded = Guarded.fit(model, clean, alpha=0.05)
    judgement = guarded.check(batch)          # logits, flagged, p_values, scores, tier
    logits = guarded(batch)                   # the answer under the policy

Tier one costs one forward pass; what it doubts goes to tier two. One score comes out of both, and one conformal p-value
of it against clean samples that went through the very same pipeline, so the false-alarm rate is that of the whole.
Nothing that decides what is doubted, or how scores are joined, has seen the calibration samples.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, LaocoonError
from laocoon.core.subject import Subject
from laocoon.recipes.purify import Purifier
from laocoon.recipes.requests import acceptable
from laocoon.verdict.guard_halves import halves
from laocoon.verdict.guard_store import Kept, digest_of, read, write
from laocoon.verdict.guard_subject import Model, as_subject
from laocoon.verdict.guard_tiers import Pipeline, Tiers, default_tiers, fitted

LOG = logging.getLogger("laocoon.guard")


class Policy(str, Enum):
    """What `Guarded.__call__` does with a flagged sample."""

    LOG = "log"  # the answer goes out, and a warning is logged
    BLOCK = "block"  # the whole batch is refused: FlaggedRequest
    ABSTAIN = "abstain"  # its row of logits is NaN
    PURIFY = "purify"  # the answer to the purified sample, NaN where that is flagged as well


class FlaggedRequest(LaocoonError):
    """A batch was refused; `judgement` says which samples, and how sure."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement
        rows = judgement.flagged.nonzero().flatten().tolist()
        super().__init__(f"samples {rows[:20]} of the batch look as if they carry a trigger.",
                         "Send the others again without them.")


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of a batch. `scores`: higher is more suspicious; `p_values`: at most alpha where flagged."""

    logits: Tensor  # [batch, classes], the model's own answer
    flagged: Tensor  # [batch] bool: the final decision
    p_values: Tensor  # [batch], conformal; never below 1 / (calibration samples + 1)
    scores: Tensor  # [batch]
    tier: Tensor  # [batch] int: 1 or 2, the last tier that looked


@dataclass(frozen=True, eq=False)
class Answered:
    """A batch after the policy. NaN logits where no answer is given."""

    logits: Tensor  # [batch, classes]
    answered: Tensor  # [batch] bool
    purified: Tensor  # [batch] bool: the answer is that to the purified sample
    judgement: Judgement  # of the batch as it came


@dataclass(frozen=True, eq=False)
class Guarded:
    """A model, the pipeline fitted to it, and the calibration. Frozen: `check` may be called from several threads."""

    subject: Subject
    tiers: Tiers
    pipeline: Pipeline
    calibration: Tensor  # [n] ascending scores of clean samples that nothing was fitted on
    samples: Samples  # what the pipeline was fitted on; saved with it, since loading fits again
    seed: int
    alpha: float
    policy: Policy
    purifier: Purifier | None = None  # there where the policy needs it

    @staticmethod
    def fit(model: Model, clean: Samples, *, alpha: float = 0.05, seed: int = 0, policy: Policy | str = Policy.LOG,
            tiers: Tiers | None = None, classes: int | None = None) -> Guarded:
        """Fitted on half of the clean samples, calibrated on the other half.

        model: opened by Laocoon, any `nn.Module`, or any callable from a batch to class scores (or labels: then name
        `classes`). Inputs are canonical (images in [0, 1], ids of texts, rows of a table): normalisation belongs inside
        the model. It is left as found.
        clean: samples known to carry no trigger, of every class, 20 or more of each, from the traffic to come.
        alpha: share of clean requests that may be flagged. seed: of the split and of the guards.
        tiers: which guards; by default those that suit the model.
        """
        wanted = chosen(policy)
        if not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha}.", "It is a rate between 0 and 1, such as 0.05.")
        subject = as_subject(model, clean, classes)
        fit, held = halves(replace(clean, modality=subject.modality), seed)
        enough(alpha, len(held), len(clean))
        tiers = tiers or default_tiers(subject)
        pipeline = fitted(subject, fit, tiers, Context(seed=seed))
        calibration = pipeline.judge(held.inputs).scores.cpu().sort().values
        made = Guarded(subject, tiers, pipeline, calibration, fit, seed, alpha, Policy.LOG)
        return made.under(policy=wanted)

    def under(self, *, policy: Policy | str | None = None, alpha: float | None = None) -> Guarded:
        """The same guard under another policy or rate."""
        wanted = self.policy if policy is None else chosen(policy)
        rate = self.alpha if alpha is None else alpha
        if not 0 < rate < 1:
            raise InputError(f"alpha is {rate}.", "It is a rate between 0 and 1, such as 0.05.")
        enough(rate, len(self.calibration), len(self.calibration) + len(self.samples))
        purifier = self.purifier
        if wanted is Policy.PURIFY and self.subject.modality.name != "image":
            raise InputError(f"{self.subject.modality.name} is not purified: only images are.",
                             "Use abstain or block.")
        if wanted is Policy.PURIFY and purifier is None:
            ctx = Context(seed=self.seed, device=self.pipeline.device).child(math.inf, "purifier")
            purifier = Purifier.fit(self.samples.inputs, ctx)
        return replace(self, policy=wanted, alpha=rate, purifier=purifier)

    def save(self, folder: Path) -> None:
        """Into a folder: safetensors and JSON. The clean samples that it was fitted on are in it, the model is not."""
        write(folder, self._kept())

    @staticmethod
    def load(folder: Path, model: Model, *, classes: int | None = None) -> Guarded:
        """What `save` wrote, for the very model that it was fitted on; InputError for another."""
        kept = read(folder)
        subject = as_subject(model, kept.samples, classes or (kept.classes if not hasattr(model, "classes") else None))
        kept.same_model(subject)
        pipeline = fitted(subject, kept.samples, kept.tiers, Context(seed=kept.seed))
        kept.same_scores(pipeline)
        made = Guarded(subject, kept.tiers, pipeline, kept.calibration, kept.samples, kept.seed, kept.alpha, Policy.LOG)
        return made.under(policy=kept.policy)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides: the model, the guards, what they were fitted on and the calibration."""
        return digest_of(self._kept())

    def _kept(self) -> Kept:
        told = self.pipeline.judge(self.samples.inputs[:Kept.PROBES])
        return Kept(self.tiers, self.seed, self.alpha, self.policy.value, self.subject.classes,
                    self.subject.fingerprint(), self.samples, self.calibration, told.logits.cpu(), told.scores.cpu())

    def check(self, batch: Tensor) -> Judgement:
        """[batch, …], canonical. InputError where values are not finite, out of range or of another shape."""
        batch = acceptable(batch, self.subject.input_shape, self.subject.modality)
        told = self.pipeline.judge(batch)
        p = p_values(told.scores.cpu(), self.calibration)
        return Judgement(told.logits, p <= self.alpha, p, told.scores, told.tier)

    def answer(self, batch: Tensor) -> Answered:
        """The judgement and what the policy makes of it; FlaggedRequest under `block`."""
        judgement = self.check(batch)
        logits, flagged = judgement.logits, judgement.flagged.to(judgement.logits.device)
        nothing = torch.zeros_like(flagged)
        if not bool(flagged.any()):
            return Answered(logits, ~nothing, nothing, judgement)
        LOG.warning("flagged %d of %d samples, least p-value %.4f (policy %s)", int(flagged.sum()), len(flagged),
                    float(judgement.p_values.min()), self.policy.value)
        if self.policy is Policy.BLOCK:
            raise FlaggedRequest(judgement)
        if self.policy is Policy.LOG:
            return Answered(logits, ~nothing, nothing, judgement)
        blank = logits.masked_fill(flagged.unsqueeze(1), float("nan"))
        if self.policy is Policy.ABSTAIN or self.purifier is None:
            return Answered(blank, ~flagged, nothing, judgement)
        again = self.check(self.purifier(batch[flagged.to(batch.device)].to(logits.device)))
        clear = ~again.flagged.to(logits.device)
        rows = flagged.nonzero().flatten()[clear]
        blank[rows] = again.logits[clear]
        purified = nothing.index_fill(0, rows, True)
        return Answered(blank, ~flagged | purified, purified, judgement)

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits under the policy, [batch, classes]."""
        return self.answer(batch).logits

    @property
    def passes(self) -> tuple[float, float]:
        """Forward passes a sample: where tier one settles it, and where tier two looks as well."""
        return self.pipeline.passes


def p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """(1 + #{calibration ≥ score}) / (n + 1) of each score; `calibration` ascending. As recipes.conformal.p_value."""
    below = torch.searchsorted(calibration, scores.to(calibration), right=False)
    return (1 + len(calibration) - below).float() / (len(calibration) + 1)


def enough(alpha: float, calibrating: int, given: int) -> None:
    """InputError where no p-value could be as small as alpha."""
    least = math.ceil(1 / alpha - 1e-9) - 1
    if calibrating < least:
        raise InputError(
            f"an alpha of {alpha} needs at least {least} samples to calibrate on; {calibrating} of the {given} clean "
            f"samples are left for it.", f"Pass at least {2 * least} clean samples, or choose a larger alpha.")


def chosen(policy: Policy | str) -> Policy:
    """A policy by its name."""
    try:
        return Policy(policy)
    except ValueError:
        raise InputError(f"policy is {policy!r}.", f"It is one of {', '.join(p.value for p in Policy)}.") from None
