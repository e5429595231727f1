"""Trigger inversion for text classifiers, after PICCOLO (S&P 2022) and DBS (ICML 2022, arXiv 2202.05749).

For every class t at once: the word, and the few words, that send texts of the other classes there.

    max over w of  mean margin of t on insert(x, w)                      (one word: the whole vocabulary is tried)
    min over z of  mean CE(f(insert(x, softmax(z / T) · E)), t)          (several: T falls from `hot` to `cold`),

then the words are made hard: place by place, the id of a shortlist with the largest margin, until no exchange helps.

Every clean model has words of sentiment, and names that occurred in one class only. So beside the margin on held-out
texts, in units of the clean median margin, it counts how far the best word is ahead of those behind it (`lone`): a
language has many words of each kind, an attacker chose one. For several words the same (`phrase`): what the best ones
do beyond the best ones among the others that did most alone. The soft search looks among the words that do little
alone: in a clean model they do little together (`together`).

Departures: one word is not searched by gradient, which misses rare words, but tried; a fixed cooling schedule instead
of DBS's rollbacks; several starts of all classes are arms of one batch; every class starts from the same points, so
that the order of classes cannot matter; neither PICCOLO's word-level encoding nor its discriminativity analysis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from laocoon.recipes.choosing import settled
from laocoon.recipes.margins import logit_scale
from laocoon.recipes.token_search import (
    Cooling,
    Field,
    hardened,
    inserted_margins,
    judged,
    promising,
    short_half,
    shortened,
    soft_words,
    some,
    sweep,
    typical,
    unlike,
)
from laocoon.triggers.tokens import Tokens

CAP = 3.0  # clean margins, past which a text counts no more
BEHIND = 8  # words, the best among them, that a lone one is compared with


@dataclass(frozen=True)
class TextInversion(Detector):
    """Search, for every class, the word and the few words that send every text there."""

    words: tuple[int, ...] = (1, 3)  # k, tokens in the trigger; 1 is always searched
    positions: tuple[int, ...] = (0, 4)  # tokens of the text that stay before one word; several stand at the first
    sweep: int = 24_000  # stamped texts that the first look at the vocabulary may cost
    texts: int = 64  # clean texts that a search fits on, at most
    steps: int = 40  # of the soft search
    starts: int = 2  # of the soft search, for each class
    batch: int = 16  # texts in one of its steps
    rate: float = 0.5  # of Adam, on the logits of the vocabulary
    hot: float = 2.0  # T at the start
    cold: float = 0.2  # T at the end
    shortlist: int = 12  # ids tried at each place when words are made hard, from either source

    card: ClassVar[Card] = Card(
        name="text_inversion",
        paper="Constrained optimization with dynamic bound-scaling for effective NLP backdoor defense (ICML 2022); "
              "PICCOLO (S&P 2022)",
        url="https://arxiv.org/abs/2202.05749",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers of style or syntax (template_probe looks for these), phrases of which four words do little, "
               "and words that must stand at a place not searched.",
        summary="the words that send every text to one class",
        quick={"steps": 10},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        modality, subject = case.subject.modality, case.subject
        if not isinstance(modality, Text):
            raise NotApplicable("text_inversion needs the model's vocabulary.")
        device = case.fit.inputs.device
        fit = settled(case.fit, device)
        scale = logit_scale(subject, fit.inputs, fit.labels, ctx).margin
        fit = settled(some(fit, self.texts, ctx), device)
        held = case.held if case.held is not None and len(case.held) else fit
        family = Tokens(len(modality.vocabulary), 1, min(self.positions), modality.special)
        typed = [i for i in range(family.vocabulary) if i not in set(modality.special)]
        table = subject.embed(torch.arange(family.vocabulary, device=device)[None])[0].detach()
        field = self._alone(subject, fit, torch.tensor(typed, device=device), table, family, scale, ctx)
        ctx.progress(self.card.name, 0.4, "")
        yield from self._one(subject, field, held, family, scale, modality, ctx)
        for count in sorted(set(self.words) - {1}):
            yield from self._several(subject, fit, field, held, table, count, scale, modality, ctx)

    def _alone(self, subject: Subject, fit: Samples, typed: Tensor, table: Tensor, family: Tokens, scale: float,
               ctx: Context) -> Field:
        """The best words of each class, alone: first in a few short texts, then in more."""
        each = max(1, 4 // subject.classes)
        pool = promising(subject, fit, typed, table, family, self.sweep // (each * subject.classes), ctx)
        first = shortened(subject, typical(subject, short_half(fit), each, ctx), 1, ctx)
        then = shortened(subject, typical(subject, fit, max(2, 16 // subject.classes), ctx), 1, ctx)
        last = shortened(subject, fit, 1, ctx)
        return sweep(subject, pool, family, self.positions, ctx, cap=CAP * scale,
                     rungs=((first, 48), (then, 24), (last, 16)))

    def _one(self, subject: Subject, field: Field, held: Samples, family: Tokens, scale: float, modality: Text,
             ctx: Context) -> Iterator[Finding | Candidate]:
        for t in range(subject.classes):
            best = Tokens(family.vocabulary, 1, int(field.places[t, 0]), modality.special)
            found = judged(subject, best, field.ids[t, :1], t, held, scale, ctx)
            if found is None:
                continue
            words = modality.decode(field.ids[t, 0])
            said = f"“{words}” sends {found.success:.0%} of other texts to class {t}"
            behind = field.margins[t, 1:BEHIND]
            lead = float(field.margins[t, 0] - behind.mean()) / scale if len(behind) else 0.0
            yield Finding("text_inversion.word", f"class {t}", found.margin, said, (t,),
                          numbers={"success": found.success})
            yield Finding("text_inversion.lone", f"class {t}", lead,
                          f"“{words}” does {lead:.2f} clean margins more for class {t} than the words after it", (t,))
            yield Candidate(best, best.exactly(field.ids[t, :1]), all_to_one(t, subject.classes), 1.0, found.success,
                            self.card.name)

    def _several(self, subject: Subject, fit: Samples, field: Field, held: Samples, table: Tensor, count: int,
                 scale: float, modality: Text, ctx: Context) -> Iterator[Finding | Candidate]:
        family = Tokens(len(modality.vocabulary), count, min(self.positions), modality.special)
        classes = subject.classes
        texts = shortened(subject, typical(subject, fit, max(2, 16 // classes), ctx), count, ctx)
        pool = field.ids[..., 0]
        first = self._best(subject, texts, pool, None, family, scale, ctx)
        second = None if first is None else self._best(subject, texts, pool, first, family, scale, ctx)
        both = Samples(torch.cat([fit.inputs, held.inputs]), torch.cat([fit.labels, held.labels]))
        together = self._together(subject, texts, field, table, family, scale, ctx)
        for t in range(classes):
            reached = -1.0  # one candidate of a size for each class, the more successful one
            for rule, ids in (("text_inversion.phrase", first), ("text_inversion.together", together)):
                if ids is None:
                    continue
                ours, seen = (judged(subject, family, ids[t:t + 1], t, of, scale, ctx) for of in (both, held))
                if ours is None or seen is None:
                    continue
                words, score = modality.decode(ids[t]), ours.margin
                said = f"“{words}” sends {seen.success:.0%} of other texts to class {t}"
                if rule == "text_inversion.phrase":
                    rest = None if second is None else judged(subject, family, second[t:t + 1], t, both, scale, ctx)
                    if rest is None or second is None:
                        continue
                    score -= rest.margin
                    said += f", and does {score:.2f} clean margins more than “{modality.decode(second[t])}”"
                else:
                    said += ", though none of its words does much alone"
                yield Finding(rule, f"class {t}", score, said, (t,),
                              numbers={"success": seen.success, "margin": ours.margin})
                if seen.success <= reached:
                    continue
                reached = seen.success
                yield Candidate(family, family.exactly(ids[t:t + 1]), all_to_one(t, classes), float(count),
                                seen.success, self.card.name)

    def _together(self, subject: Subject, texts: Samples, field: Field, table: Tensor, family: Tokens, scale: float,
                  ctx: Context) -> Tensor:
        """The best words of each class among those that do little for it alone, [classes, count]."""
        classes, device = subject.classes, table.device
        # All starts of a class, then those of the next: each start is the same point for every class.
        noise = torch.cat([family.blank(texts.inputs, 1, rng=ctx.rng)["logits"] for _ in range(self.starts)])
        start = noise.to(device).repeat(classes, 1, 1)
        strong = field.strong.repeat_interleave(self.starts, 0)[:, None]
        wanted = torch.arange(classes, device=device).repeat_interleave(self.starts)
        cooling = Cooling(self.steps, self.rate, self.hot, self.cold)
        # Too far down to be lifted again: no slope reaches them.
        soft = soft_words(subject, texts, family, table, start.masked_fill(strong, -50.0), wanted, cooling, ctx,
                          self.batch).masked_fill(strong, -60.0).view(classes, self.starts, family.count, -1)
        likely = soft.amax((1, 2)).topk(min(self.shortlist, len(table))).indices
        ends = torch.stack([hardened(subject, texts, unlike(soft[:, k]), likely, family, ctx, rounds=2,
                                     cap=2 * CAP * scale) for k in range(self.starts)])
        own = torch.arange(classes, device=device)
        found = torch.stack([inserted_margins(subject, texts, end, family, ctx, 2 * CAP * scale)[own, own]
                             for end in ends])
        return ends[found.nan_to_num(-torch.inf).argmax(0), own]

    def _best(self, subject: Subject, texts: Samples, pool: Tensor, without: Tensor | None, family: Tokens,
              scale: float, ctx: Context) -> Tensor | None:
        """The best words of each class's pool, [classes, count], none of them among `without`; None: too few."""
        left = [list(dict.fromkeys(i for i in row if without is None or i not in without[t].tolist()))
                for t, row in enumerate(pool.tolist())]
        if min(map(len, left)) < family.count:
            return None
        longest = max(map(len, left))
        tried = torch.tensor([row + row[-1:] * (longest - len(row)) for row in left], device=pool.device)
        return hardened(subject, texts, tried[:, :family.count], tried, family, ctx, rounds=2, cap=2 * CAP * scale)
