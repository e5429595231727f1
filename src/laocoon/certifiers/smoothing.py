"""Certified Adversarial Robustness via Randomized Smoothing.

Cohen, Rosenfeld and Kolter, ICML 2019, arXiv 1902.02918. The smoothed classifier answers by a vote over noisy copies,

    g(x) = argmax over c of P[ f(x + ε) = c ],   ε ~ N(0, σ²I),

and if c has probability at least p > 1/2, no perturbation of L2 norm below σ Φ⁻¹(p) changes g(x). p is a
Clopper-Pearson bound from `draws` copies, c is chosen on `first` others; where p ≤ 1/2 the classifier abstains. A
trigger whose change of the picture is shorter than the radius cannot act on g.

Departures: the confidence holds for all inputs at once (α is divided by their number), because the certificate speaks
of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.stats import beta, norm
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.core.subject import Subject
from laocoon.recipes.conformal import binomial_interval


@dataclass(frozen=True)
class Smoothing(Certifier):
    """L2 radii of the model under Gaussian noise."""

    sigma: float = 0.25  # σ: standard deviation of the noise, pixels run from 0 to 1
    radius: float = 0.25  # L2 norm that answers must withstand
    share: float = 0.5  # share of the inputs that must withstand it for the certificate to hold
    first: int = 100  # noisy copies on which the answer is chosen
    draws: int = 2000  # noisy copies that bound its probability (the paper: 100000)
    alpha: float = 0.001  # chance that any of the radii is wrong

    card: ClassVar[Card] = Card(
        name="smoothing",
        paper="Certified Adversarial Robustness via Randomized Smoothing (ICML 2019)",
        url="https://arxiv.org/abs/1902.02918",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that change a picture by more than the radius, which a visible patch does; it speaks of "
               "the smoothed classifier, who runs the plain model has no certificate; models not trained with noise "
               "get small radii.",
        summary="the L2 radius within which no trigger changes the smoothed model's answer",
        quick={"draws": 200, "first": 30, "radius": 0.1},
    )

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        if self.sigma <= 0 or self.radius <= 0 or self.first < 1 or self.draws < 10 or not 0 < self.alpha < 1:
            raise InputError(f"sigma is {self.sigma}, radius {self.radius}, first {self.first}, draws {self.draws}, "
                             f"alpha {self.alpha}.", "All are above 0, draws at least 10, alpha below 1.")
        fit, subject = case.fit, case.subject
        assert fit is not None
        n, answers, radii = len(fit), [], []
        for x in fit.inputs:
            guess = int(self._ballot(subject, x, self.first, ctx).argmax())
            count = int(self._ballot(subject, x, self.draws, ctx)[guess])
            least = float(beta.ppf(self.alpha / n, count, self.draws - count + 1)) if count else 0.0
            sure = least > 0.5
            answers.append(guess if sure else -1)
            radii.append(self.sigma * float(norm.ppf(least)) if sure else 0.0)
        withstand = sum(r >= self.radius for r in radii)
        right = [a == y for a, y in zip(answers, fit.labels.tolist(), strict=True)] if fit.labelled else [True] * n
        low, high = binomial_interval(sum(r >= self.radius and ok for r, ok in zip(radii, right, strict=True)), n)
        holds = withstand >= self.share * n
        return Certificate(
            method=self.card.name,
            statement=f"No perturbation of L2 norm below {self.radius:g} changes the smoothed classifier's answer for "
                      f"{withstand} of {n} inputs.",
            assumptions=(
                f"the model is used smoothed: a vote over Gaussian noise of deviation {self.sigma:g}, not clamped",
                f"with probability {1 - self.alpha:g} over the noise drawn here all radii hold at once",
                "noise is pseudo-random and arithmetic rounds; neither is modelled"),
            inputs=f"the {n} inputs given; certified accuracy at this radius {low:.0%} to {high:.0%} (95 %) where they "
                   "come from",
            holds=True if holds else None,
            reason="" if holds else f"{withstand} of {n} inputs withstand it; {self.share:.0%} were asked for.",
            values={"claim": {"kind": "l2", "radius": self.radius, "sigma": self.sigma, "share": self.share},
                    "radii": radii, "answers": answers, "abstained": answers.count(-1), "withstand": withstand})

    @torch.no_grad()
    def _ballot(self, subject: Subject, x: Tensor, draws: int, ctx: Context) -> Tensor:
        """Votes of noisy copies of one input, [classes]."""
        votes = torch.zeros(subject.classes, dtype=torch.long)
        for start in range(0, draws, ctx.batch):
            count = min(ctx.batch, draws - start)
            noise = torch.randn(count, *x.shape, generator=ctx.rng) * self.sigma
            ctx.spend(count, backward=False)
            said = subject.outputs((x.cpu() + noise).to(ctx.device)).logits.argmax(-1).cpu()
            votes += torch.bincount(said, minlength=subject.classes)
        return votes
