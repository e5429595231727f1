"""Trigger inversion for text classifiers: PICCOLO (S&P 2022) and DBS (ICML 2022, arXiv 2202.05749).

For every class t at once, find k tokens that send texts of the other classes there:

    min over z of  mean CE(f(insert(x, softmax(z / T) · E)), t),     T falling from `hot` to `cold`,

then make the tokens hard: of the likeliest `shortlist` ids of each place, the one with the lowest loss, place by
place. The statistic is the mean margin of class t over the best other class on stamped held-out texts, in units
of the clean median margin: a word of sentiment moves a clean model a little; a trigger overrules the text.

Departures: a fixed cooling schedule instead of DBS's rollbacks; all classes in one batch; every class starts
from the same point, so that the order of classes cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.arms import in_parts, losses_towards, stamped_losses, stamped_margins
from laocoon.recipes.margins import logit_scale
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextInversion(Detector):
    """Search, for every class, the few words that send every text there."""

    words: int = 1  # k, tokens in the trigger
    position: int = 0  # tokens of the text that stay before the trigger
    steps: int = 60
    rate: float = 0.5  # of Adam, on the logits of the vocabulary
    hot: float = 2.0  # T at the start
    cold: float = 0.2  # T at the end
    shortlist: int = 8  # likeliest ids tried as hard tokens, per place

    card: ClassVar[Card] = Card(
        name="text_inversion",
        paper="Constrained optimization with dynamic bound-scaling for effective NLP backdoor defense (ICML 2022); "
              "PICCOLO (S&P 2022)",
        url="https://arxiv.org/abs/2202.05749",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers of style or syntax, long phrases, and words that must stand at a place not searched.",
        summary="the words that send every text to one class",
        quick={"steps": 30},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        modality = case.subject.modality
        if not isinstance(modality, Text):
            raise NotApplicable("text_inversion needs the model's vocabulary.")
        subject, fit = case.subject, case.fit
        scale = logit_scale(subject, fit.inputs, fit.labels, ctx).margin
        family = Tokens(len(modality.vocabulary), self.words, self.position, modality.special)
        table = subject.embed(torch.arange(family.vocabulary, device=fit.inputs.device)[None])[0].detach()
        trigger = self._harden(subject, fit, family, self._search(subject, fit, family, table, ctx), ctx)
        judged = case.held if case.held is not None and len(case.held) else fit
        margins = stamped_margins(subject, judged, lambda x: family.stamp(x, trigger), ctx)
        best, found = -torch.inf, None
        for t in range(subject.classes):
            rows = judged.labels != t
            if not rows.any():
                continue
            score = float(margins[t][rows].mean()) / scale
            success = float((margins[t][rows] > 0).float().mean())
            arm = family.select(trigger, torch.tensor([t], device=table.device))
            words = modality.decode(family.tokens(arm))
            yield Finding("text_inversion.margin", f"class {t}", score,
                          f"“{words}” sends {success:.0%} of other texts to class {t}", (t,),
                          numbers={"success": success})
            if score > best:
                best, found = score, Candidate(family, arm, all_to_one(t, subject.classes), float(self.words),
                                               success, self.card.name)
        if found is not None:
            yield found

    def _search(self, subject: Subject, fit: Samples, family: Tokens, table: Tensor, ctx: Context) -> dict[str, Tensor]:
        """Soft tokens, one arm per class."""
        trigger = family.blank(fit.inputs, subject.classes, rng=ctx.rng)
        leaf = trigger["logits"].requires_grad_(True)
        optimiser = torch.optim.Adam([leaf], lr=self.rate)
        for step in range(self.steps):
            temperature = self.hot * (self.cold / self.hot) ** (step / max(1, self.steps - 1))
            optimiser.zero_grad()
            for part in in_parts(fit, subject.classes, ctx):
                ctx.spend(subject.classes * len(part))
                ids = family.stamp(part.inputs, trigger).flatten(0, 1)
                soft = family.blend(subject.embed(part.inputs), part.inputs, table, trigger, temperature).flatten(0, 1)
                loss = losses_towards(subject.outputs_of(soft, ids).logits, part.labels, subject.classes)
                loss.sum().div(len(fit)).backward()
            optimiser.step()
            with torch.no_grad():
                family.project(trigger)
            ctx.progress(self.card.name, (step + 1) / self.steps, "")
        return {"logits": leaf.detach()}

    def _harden(self, subject: Subject, fit: Samples, family: Tokens, soft: dict[str, Tensor],
                ctx: Context) -> dict[str, Tensor]:
        """Hard tokens: place by place, the id of the shortlist with the lowest loss, per arm."""
        ids = family.tokens(soft)
        shortlist = soft["logits"].topk(min(self.shortlist, family.vocabulary - 2), -1).indices
        for place in range(self.words):
            losses = []
            for rank in range(shortlist.shape[-1]):
                tried = ids.clone()
                tried[:, place] = shortlist[:, place, rank]
                hard = family.exactly(tried)
                losses.append(stamped_losses(subject, fit, partial(family.stamp, trigger=hard), ctx))
            best = torch.stack(losses).argmin(0)
            ids[:, place] = shortlist[torch.arange(len(ids)), place, best]
        return family.exactly(ids)
