"""A perplexity filter: Detecting Language Model Attacks with Perplexity (Alon and Kamfonas, 2023, arXiv 2308.14132).

A trigger that nobody would write is unlikely under a model of what people write. In windows, as Jain et al. (2023,
arXiv 2309.00614) look at them, so that a long text does not hide it:

    score(x) = max over windows of −(1/|window|) Σ log p(w_i | w_{i−1}).

Departures: the language model is one of pairs of words, fitted on the clean samples, in place of GPT-2: it knows this
deployment's texts, and little else; the windows are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Guard
from laocoon.modalities.text import PADDING, Text
from laocoon.recipes.consistency import LEAST
from laocoon.recipes.text_guard import TextWatch
from laocoon.recipes.words import Bigrams, bigrams


@dataclass(frozen=True)
class Perplexity(Guard):
    """How unlikely is the unlikeliest stretch of a request?"""

    window: int = 2  # words

    card: ClassVar[Card] = Card(
        name="perplexity", paper="Detecting Language Model Attacks with Perplexity (2023)",
        url="https://arxiv.org/abs/2308.14132", modalities=frozenset({"text"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that read like any text: neutral sentences, syntax, style. With few clean samples every word "
               "that they lack is unlikely, and requests about new matters are flagged.",
        summary="how unlikely the unlikeliest words are; no further pass",
        quick={},
        fails={
            "check_scores_stamped_above_clean":
                "the review twins' clean requests hold rare words as often as not: AUROC under "
                "0.7",
        })

    def fit(self, case: ModelCase, ctx: Context) -> TextWatch:
        text, clean = case.subject.modality, case.fit
        assert clean is not None  # the card needs clean samples
        if not isinstance(text, Text) or len(clean) < LEAST:
            raise NotApplicable(f"perplexity needs a vocabulary and at least {LEAST} clean texts.")
        model = bigrams(clean.inputs.cpu(), len(text.vocabulary))

        def judge(batch: Tensor, logits: Tensor) -> Tensor:
            return windowed(model, batch.cpu(), self.window).to(logits.device)

        return TextWatch(case.subject, judge, 1.0)


def windowed(model: Bigrams, inputs: Tensor, window: int) -> Tensor:
    """Largest mean surprise over windows of words, [batch]; short texts are one window."""
    surprise = -model.logs(inputs)
    there = (inputs != PADDING).float()
    count = there.sum(1).clamp_min(1)
    width = min(window, inputs.shape[1])
    sums, full = (x.unfold(1, width, 1).sum(2) for x in (surprise, there))
    inside = (sums / width).masked_fill(full < width, -torch.inf).amax(1)
    return torch.where(count < width, surprise.sum(1) / count, inside)
