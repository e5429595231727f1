"""MM-BD: Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic.

Wang et al., IEEE S&P 2024. For each class t, over the whole input box and without any data,

    r_t = max over x in [0, 1]^d of  f_t(x) − max over k ≠ t of f_k(x);

a planted class has an unusually large one, whatever its trigger looks like.
With a few clean samples, CSO (class-subspace orthogonalisation, arXiv 2512.08129) takes out what the class
owes to its own clean features g(x_t) under a mask v_t: maximise margin − λ·mean relu cos(g(x), v_t ⊙ g(x_t)).
Margins far outside the data are tens of clean ones, so λ is taken in units of the margin reached: what counts is
margin·(1 − λ·cos).

Departures: the statistic is log(r_t / median of the others), calibrated across models, since the paper's Gamma
null holds no rate; Adam instead of momentum SGD, so that the scale of the logits does not matter; all classes
share their random starts and climb in one batch; beyond `screen` classes a short climb picks the classes to
examine, half of them leaders and half spread over all ranks (the null).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import settled
from laocoon.recipes.decoupling import class_masks
from laocoon.recipes.margins import Look, climb_margins, log_ratio_to_rest, logit_scale_of, margin_towards
from laocoon.recipes.sites import Penultimate, Site, head_of, penultimate, reading, survey, tail_of

Looker = Callable[[Tensor], Look]


@dataclass(frozen=True)
class MMBD(Detector):
    """Maximum margin per class, plain and orthogonal to the class's own clean features."""

    restarts: int = 8  # random starts per class (the paper: 30)
    steps: int = 60  # ascent steps (the paper: 300 of momentum SGD)
    rate: float = 0.1  # first step size of Adam, in input units
    orthogonality: float = 1.0  # λ of CSO, in units of the margin reached
    screen: int = 64  # with more classes than this, a short climb picks those to examine
    shortlist: int = 48  # how many it picks
    least: int = 2  # restarts below which the method gives up rather than shrink further

    card: ClassVar[Card] = Card(
        name="mm_bd",
        paper="MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a "
              "Maximum Margin Statistic (IEEE S&P 2024); CSO, arXiv 2512.08129",
        url="https://arxiv.org/abs/2205.06900",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT}),
        misses="all-to-all and multi-target backdoors (no class stands out); source-specific and clean-label ones "
               "with small margins; attacks that regularise margins.",
        summary="the largest margin that any input can reach, class by class, without data",
        quick={"restarts": 4, "steps": 30},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        subject = case.subject
        passes = 2 if case.fit is not None and len(case.fit) else 1
        classes, null = self._shortlist(subject, ctx)
        restarts = self._affordable(len(classes), ctx, passes)
        yield from self._report(subject, "mm_bd.margin", classes, null, restarts, None, ctx, "")
        if case.fit is None or not len(case.fit):
            return
        try:
            lookers = self._orthogonality(subject, case.fit, classes, restarts, ctx)
        except NotApplicable:
            return  # no features to be orthogonal to; the data-free rule stands alone
        yield from self._report(subject, "mm_bd.cso", classes, null, restarts, lookers, ctx,
                                ", apart from its own clean features")

    def _affordable(self, classes: int, ctx: Context, rules: int) -> int:
        each = classes * self.steps * rules
        return int(max(self.least, min(self.restarts, (ctx.left * 0.95) // each)))

    def _shortlist(self, subject: Subject, ctx: Context) -> tuple[Tensor, Tensor]:
        """Classes to examine, and which of them (boolean) stand for all classes."""
        everyone = torch.arange(subject.classes)
        if subject.classes <= self.screen:
            return everyone, torch.ones(len(everyone), dtype=torch.bool)
        short = max(6, self.steps // 6)
        best = self._climb(subject, everyone, 1, short, None, ctx)[:, 0]
        order = best.argsort(descending=True).cpu()
        leaders = order[: self.shortlist // 2]
        spread = order[torch.linspace(0, len(order) - 1, self.shortlist - len(leaders)).round().long()]
        chosen = torch.cat([leaders, spread]).unique()
        return chosen, torch.isin(chosen, spread)

    def _climb(self, subject: Subject, classes: Tensor, restarts: int, steps: int,
               lookers: list[Looker] | None, ctx: Context) -> Tensor:
        """Best margin, [classes, restarts]; every class starts from the same images."""
        starts = torch.rand(restarts, *subject.input_shape, generator=ctx.rng).to(ctx.device)
        rows = max(1, ctx.batch // restarts)
        best = []
        for i in range(0, len(classes), rows):
            some = classes[i: i + rows].to(ctx.device)
            arms = starts.repeat(len(some), *[1] * (starts.dim() - 1))
            look = lookers[i // rows] if lookers else lambda x: Look(subject.outputs(x).logits)
            climb = climb_margins(look, arms, some.repeat_interleave(restarts), ctx, steps=steps, rate=self.rate)
            best.append(climb.best.view(len(some), restarts))
            ctx.progress(self.card.name, min(1.0, (i + rows) / len(classes)), "climbing")
        return torch.cat(best)

    def _orthogonality(self, subject: Subject, fit: Samples, classes: Tensor, restarts: int,
                       ctx: Context) -> list[Looker]:
        """One way of looking per chunk of classes: alignment of the features with the class's own clean ones."""
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        site = head_of(subject, survey(subject, inputs, ctx), inputs, ctx)
        known = penultimate(subject, site, inputs, ctx)
        scale = logit_scale_of(known.logits, labels).margin
        directions = self._directions(subject, site, known, labels, classes.to(ctx.device), scale)
        rows = max(1, ctx.batch // restarts)
        return [self._looker(subject, site, directions[i: i + rows], classes[i: i + rows].to(ctx.device), restarts)
                for i in range(0, len(classes), rows)]

    def _directions(self, subject: Subject, site: Site, known: Penultimate, labels: Tensor, classes: Tensor,
                    scale: float) -> Tensor:
        """[classes, samples, features]: unit vectors of masked clean features; zero where a class has no sample."""
        tail = tail_of(subject, site, known)
        masks = class_masks(tail, known.features, labels, classes, scale=scale / 4)
        most = 10
        found = known.features.new_zeros(len(classes), most, known.features[0].numel())
        for row, t in enumerate(classes.tolist()):
            own = (known.features[labels == t][:most] * masks[row]).flatten(1)
            found[row, : len(own)] = functional.normalize(own, dim=1)
        return found

    def _looker(self, subject: Subject, site: Site, directions: Tensor, classes: Tensor, restarts: int) -> Looker:
        targets = classes.repeat_interleave(restarts)
        counts = (directions.abs().sum(-1) > 0).sum(-1).clamp_min(1)

        def aligned(x: Tensor) -> Look:
            with reading(subject, site) as seen:
                logits = subject.outputs(x).logits
                features = functional.normalize(seen[site].flatten(1), dim=1)
            by_class = features.view(-1, restarts, features.shape[1])
            cosine = torch.einsum("crf,csf->crs", by_class, directions).relu().sum(-1) / counts[:, None]
            reached = margin_towards(logits.detach().float(), targets).abs()
            return Look(logits, self.orthogonality * reached * cosine.flatten())

        return aligned

    def _report(self, subject: Subject, rule: str, classes: Tensor, null: Tensor, restarts: int,
                lookers: list[Looker] | None, ctx: Context, suffix: str) -> Iterator[Finding]:
        best = self._climb(subject, classes, restarts, self.steps, lookers, ctx).amax(1).cpu()
        if bool(null.all()):
            scores = log_ratio_to_rest(best)
        else:
            floor = best.abs().amax().clamp_min(1e-12) * 1e-3
            scores = best.clamp_min(floor).log() - best[null].clamp_min(floor).log().median()
        for t, score, margin in zip(classes.tolist(), scores.tolist(), best.tolist(), strict=True):
            yield Finding(rule, f"class {t}", score,
                          f"class {t} reaches {2.718281828 ** score:.2f} times the typical maximum margin{suffix}",
                          (t,), numbers={"margin": margin})
