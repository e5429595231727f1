"""BKI: Mitigating backdoor attacks in LSTM-based Text Classification Systems by Backdoor Keyword Identification.

Chen and Dai, Neurocomputing 2021, arXiv 2007.12070. How much a word matters in a text is how far the representation
moves when it is taken out. Over the texts of one label a trigger is a keyword like no other:

    f(w, x) = ‖h(x) − h(x without w)‖_∞,        F(w, c) = mean of f over texts of label c · log₁₀ n · log₁₀ (s / n),

with n the texts of the label in which w is among the `keywords` that matter most, and s the square of a share of the
texts: it makes words that are everywhere count less. score(x) = largest F of x's words for its label.

Departures: a score per sample in place of the one most suspicious keyword; the penultimate layer of any network in
place of an LSTM's states; F is measured on `samples` texts of each label at most, and a word's mean is drawn to zero as
if by two texts in which it did nothing; log₁₀ (n + 1), so that words of few texts keep a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import by_content
from laocoon.recipes.representations import last_layer
from laocoon.recipes.words import without


@dataclass(frozen=True)
class BKI(DataDetector):
    """Does a text hold a word that rules the representations of its label?"""

    keywords: int = 5  # p: words of a text that are counted, those that matter most
    samples: int = 800  # texts of each label that words are taken out of
    common: float = 0.1  # share of a label's texts past which a word counts less and less

    card: ClassVar[Card] = Card(
        name="bki",
        paper="Mitigating backdoor attacks in LSTM-based Text Classification Systems by Backdoor Keyword "
              "Identification (2021)",
        url="https://arxiv.org/abs/2007.12070",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.FEATURES}),
        misses="triggers of style or syntax; phrases any word of which is enough; triggers rarer than a few texts in "
               "what is looked at.",
        summary="a word that rules the representations of one label",
        quick={"samples": 250},
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        subject, inputs, labels = case.subject, case.suspects.inputs.cpu(), case.suspects.labels.cpu()
        if subject is None:
            raise NotApplicable("BKI needs a model that was trained on the samples.")
        scores, order = torch.zeros(len(inputs)), by_content(inputs)
        order = order[torch.randperm(len(order), generator=ctx.rng)]
        for label in labels.unique().tolist():
            members = order[labels[order] == label]
            some = inputs[members[: self.samples]]
            salience = self._salience(effects(subject, some, ctx), some, int(inputs.max()) + 1)
            scores[members] = torch.cat([salience[part].amax(1) for part in inputs[members].split(4096)])
        return scores

    def _salience(self, effect: Tensor, inputs: Tensor, ids: int) -> Tensor:
        """F of every id, [ids]; effect and inputs [n, length]."""
        top = effect.topk(min(self.keywords, effect.shape[1]), 1)
        words, values = inputs.gather(1, top.indices).flatten(), top.values.flatten()
        words, values = words[values > 0], values[values > 0]
        count = torch.bincount(words, minlength=ids).float()
        mean = torch.zeros(ids).index_add_(0, words, values) / (count + 2)
        most = max(100.0, (self.common * len(inputs)) ** 2)
        return mean * (count + 1).log10() * (most / count.clamp_min(1)).log10().clamp_min(0)


def effects(subject: Subject, inputs: Tensor, ctx: Context) -> Tensor:
    """How far the penultimate representation moves when each word is taken out, [n, length]; 0 where there is none."""
    whole = last_layer(subject, inputs, ctx).features
    found = torch.zeros(inputs.shape)
    pairs = (inputs != 0).nonzero()
    for part in pairs.split(max(1, ctx.batch * 8)):
        rows, places = part.T
        less = last_layer(subject, without(inputs[rows], places), ctx).features
        found[rows, places] = (whole[rows] - less).abs().amax(1)
    return found
