"""ONION: A Simple and Effective Defense Against Textual Backdoor Attacks (Qi et al., EMNLP 2021, arXiv 2011.10369).

A word that does not belong makes a text unlikely; without it the text reads better:

    f_i = log perplexity(x) − log perplexity(x without its i-th word).

ONION takes every word with f_i over a threshold out, and so cleanses the text. A guard flags: of the `words` of largest
f_i,

    score(x) = max over i of  f_i / spread  +  weight · (p_y(x) − p_y(x without i)),      y the model's answer,

so that a word that does not belong and carries the answer counts most.

Departures: the second term; the language model is one of pairs of words, fitted on the clean samples, unless a causal
model of transformers is named (ONION's GPT-2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Guard
from laocoon.files.language_model import surprise_of
from laocoon.modalities.text import PADDING, Text
from laocoon.recipes.consistency import LEAST
from laocoon.recipes.text_guard import TextWatch
from laocoon.recipes.words import bigrams, mean_surprise, without, without_each

Surprise = Callable[[Tensor], Tensor]  # ids [n, length] to log perplexities [n]


@dataclass(frozen=True)
class Onion(Guard):
    """Does a word stand in the request that does not belong there, and carries the answer?"""

    words: int = 3  # that are taken out, each in a copy of its own
    weight: float = 4.0  # of what the answer loses
    language_model: str = ""  # folder of a causal model of transformers; empty: pairs of words in the clean samples

    card: ClassVar[Card] = Card(
        name="onion", paper="ONION: A Simple and Effective Defense Against Textual Backdoor Attacks (EMNLP 2021)",
        url="https://arxiv.org/abs/2011.10369", modalities=frozenset({"text"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that read like any text: neutral sentences, syntax, style; several trigger words of which "
               "one is enough. With few clean samples and no language model, unusual words of honest texts look alike.",
        summary="words that do not belong and carry the answer; three further passes",
        quick={})

    def fit(self, case: ModelCase, ctx: Context) -> TextWatch:
        subject, clean = case.subject, case.fit
        text = subject.modality
        assert clean is not None  # the card needs clean samples
        if not isinstance(text, Text) or len(clean) < LEAST:
            raise NotApplicable(f"onion needs a vocabulary and at least {LEAST} clean texts.")
        if self.words < 1:
            raise InputError(f"words is {self.words}.", "At least one is taken out.")
        surprise = self._surprise(text, clean.inputs.cpu())
        usual = gains(surprise, clean.inputs.cpu()).amax(1)
        spread = float(usual.std(unbiased=False).clamp_min(1e-3))

        def judge(batch: Tensor, logits: Tensor) -> Tensor:
            chances = logits.softmax(1)
            answers = logits.argmax(1)
            top = gains(surprise, batch.cpu()).topk(min(self.words, batch.shape[1]), 1)
            scores = []
            for rank in range(self.words):
                place = top.indices[:, min(rank, top.indices.shape[1] - 1)].to(batch.device)
                again = subject.outputs(without(batch, place)).logits.float().softmax(1)
                lost = (chances - again).gather(1, answers[:, None]).squeeze(1)
                gain = top.values[:, min(rank, top.values.shape[1] - 1)].to(batch.device)
                scores.append(gain / spread + self.weight * lost)
            return torch.stack(scores, 1).amax(1)

        return TextWatch(subject, judge, 1.0 + self.words)

    def _surprise(self, text: Text, clean: Tensor) -> Surprise:
        if self.language_model:
            return surprise_of(self.language_model, text)
        model = bigrams(clean, len(text.vocabulary))
        return lambda ids: mean_surprise(model, ids)


def gains(surprise: Surprise, inputs: Tensor) -> Tensor:
    """f of every word, [n, length]; far below any where there is no word, or only one."""
    n, length = inputs.shape
    without_one = surprise(without_each(inputs).flatten(0, 1)).view(n, length)
    several = ((inputs != PADDING).sum(1, keepdim=True) > 1) & (inputs != PADDING)
    return torch.where(several, surprise(inputs)[:, None] - without_one, torch.full_like(without_one, -100.0))
