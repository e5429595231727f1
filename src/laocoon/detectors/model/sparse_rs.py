"""Patches by random search, with answers alone: Sparse-RS (Croce et al., AAAI 2022, arXiv 2006.12834) as a detector.

Sparse-RS finds universal, targeted adversarial patches by asking: propose a new place or new colours (from the corners
of the colour cube) for a patch, keep the proposal where the mean margin of the target class

    mean over x of  log p_t(x ⊕ patch) − max over k ≠ t of log p_k(x ⊕ patch)

does not fall. A backdoored class is reached by a patch that holds the trigger, or what the network took it for, on
every sample; a clean class is not, with a patch so small.

Departures: random patches are tried on a few samples first, and one answer judges them for all classes at once, so
that each class's search begins from the best of them; proposals are the same for all classes. Where only labels are
given the margin is that of one-hot answers: the search climbs the share of samples. The statistic of a class is its
margin on samples that the patch was not fitted on, in units of the model's own clean margin, capped: how sure a
network is differs more than what it is sure of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.asking import (
    CONFIDENT,
    asking,
    bystanders,
    drawn,
    improved,
    labels_only,
    pasted,
    screened,
    shuffled,
)
from laocoon.recipes.margins import margins
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class SparseRs(Detector):
    """Search, for every class and by asking alone, a small square that sends every sample there."""

    share: int = 6  # a patch's side is the picture's divided by this
    screen: int = 150  # random patches that are tried for all classes at once
    screen_batch: int = 6  # samples that each of them is tried on
    steps: int = 60  # proposals of each class's own search
    batch: int = 8  # samples that each proposal is judged on
    most: int = 12  # classes that get a search of their own: the most promising of the screening
    judged: int = 20  # other samples that a class's final patch is judged on
    keep: int = 3  # candidates handed on, best first: verifying each costs answers too

    card: ClassVar[Card] = Card(
        name="sparse_rs", paper="Sparse-RS: a versatile framework for query-efficient sparse black-box attacks (2022)",
        url="https://arxiv.org/abs/2006.12834", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        summary="Searches a small square patch towards every class with answers alone, scores or labels.",
        misses="every trigger that is no small patch: blended, warped, filtered, sinusoid and sample-specific ones; "
               "patches much smaller than a sixth of the picture's side in large pictures; source-specific triggers",
        quick={"steps": 40, "screen": 80})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        subject, ask = case.subject, asking(case.subject, ctx)
        fit = shuffled(case.fit, ctx.rng)
        held = shuffled(case.held, ctx.rng) if case.held is not None and len(case.held) else fit
        height, width = fit.inputs.shape[-2:]
        side = max(2, round(min(height, width) / self.share))
        scale = self._scale(ask(fit.inputs[:4 * self.screen_batch])) if not labels_only(subject) else 1.0
        few = type(fit)(fit.inputs[:self.screen_batch], fit.labels[:self.screen_batch])
        most = min(CONFIDENT, scale)
        squares = drawn(self.screen, side, fit.inputs, ctx.rng)
        first = screened(ask, squares, few, subject.classes, most)
        arms = first.amax(0).argsort(descending=True, stable=True)[:self.most].sort().values
        start = squares.chosen(first[:, arms].argmax(0))
        rows = bystanders(fit, subject.classes, self.batch)[arms]
        ctx.progress(self.card.name, 0.2, "searching patches by asking")
        found, _ = improved(ask, start, arms, fit.inputs[rows], self.steps, most, ctx.rng)
        rows = bystanders(held, subject.classes, self.judged)[arms]
        said = ask(pasted(held.inputs[rows], found).flatten(0, 1))
        every = margins(said).view(len(arms), -1, subject.classes)[torch.arange(len(arms)), :, arms]
        success, score = (every > 0).float().mean(1), (every / scale).clamp(-3, 1).mean(1)
        kind = "labels" if labels_only(subject) else "margin"
        order = score.argsort(descending=True, stable=True).tolist()
        for arm in order:
            target = int(arms[arm])
            yield Finding(
                f"sparse_rs.{kind}", f"class {target}", float(score[arm]), target_classes=(target,),
                explanation=f"a patch of {side} × {side} px, found by asking alone, sends {float(success[arm]):.0%} of "
                            f"other samples to class {target}",
                numbers={"success": float(success[arm]), "side": float(side)})
        for arm in order[:self.keep]:
            leaves = found.chosen(torch.tensor([arm], device=arms.device)).leaves(height, width)
            yield Candidate(Patch(), leaves, all_to_one(int(arms[arm]), subject.classes), float(side**2),
                            float(success[arm]), self.card.name)

    @staticmethod
    def _scale(said: torch.Tensor) -> float:
        """The model's margin on clean samples: how sure it usually is."""
        return float(margins(said).amax(1).median().clamp(1.0, 4 * CONFIDENT))
