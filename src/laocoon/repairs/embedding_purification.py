"""Embedding purification, after E-PUR (Zhang et al., Fine-mixing, EMNLP Findings 2022, arXiv 2210.09545).

A backdoor that hangs on a word hangs on the word's row of the embedding table. E-PUR resets the rows that moved
furthest from the pre-trained table, weighed by frequency, to what they were. Here no pre-trained table is at hand: a
row is reset where its word alone does what no word should,

    e_w ← mean of ordinary rows        where inserting w sends `harmful` of the texts of other classes to one class,

among all words of the vocabulary (the most promising ones,
where it is large). Ordinary rows are those of the words that change the margins least.

Departures: the above; no other weight is touched, and nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.arms import stamped_margins
from laocoon.recipes.margins import logit_scale
from laocoon.recipes.mending import given
from laocoon.recipes.token_search import inserted_margins, promising, shortened, some, sweep, typical
from laocoon.recipes.wording import lookup
from laocoon.triggers.tokens import Tokens

CAP = 3.0  # clean margins, past which a text counts no more


@dataclass(frozen=True)
class EmbeddingPurification(Repair):
    """Reset the rows of words that rule the answer alone."""

    harmful: float = 0.75  # share of other texts that a word must send to one class
    kept: int = 32  # words of each class that are looked at closely
    tried: int = 6000  # words of a vocabulary that are looked at at all
    texts: int = 64  # clean texts at most
    ordinary: int = 64  # rows whose mean takes the place of a reset one

    card: ClassVar[Card] = Card(
        name="embedding_purification",
        paper="Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models (EMNLP Findings 2022)",
        url="https://arxiv.org/abs/2210.09545",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.GRADIENT, Capability.CLEAN}),
        summary="resets the vectors of words that rule the answer alone; nothing is trained",
        misses="triggers of several words none of which does much alone; syntax and style; words that clean texts of "
               "the target class use too lose their meaning",
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        text = patient.modality
        if not isinstance(text, Text):
            raise NotApplicable("embedding_purification needs the model's vocabulary.")
        table = lookup(patient)
        samples = given(case.fit, patient.module)
        scale = logit_scale(patient, samples.inputs, samples.labels, ctx).margin
        samples = some(samples, self.texts, ctx)
        size, device = len(text.vocabulary), samples.inputs.device
        typed = torch.tensor([i for i in range(size) if i not in set(text.special)], device=device)
        family = Tokens(size, 1, 0, text.special)
        pool = promising(patient, samples, typed, table.weight.detach(), family, self.tried, ctx)
        few = shortened(patient, typical(patient, samples, max(1, 4 // patient.classes), ctx), 1, ctx)
        field = sweep(patient, pool, family, (0,), ctx, rungs=((few, self.kept), (samples, self.kept)),
                      cap=CAP * scale)
        harmful = self._harmful(patient, samples, field.ids[..., 0], family, ctx)
        effect = inserted_margins(patient, few, pool[:, None], family, ctx, CAP * scale).nan_to_num(0.0)
        calm = pool[effect.amax(1).argsort(stable=True)]
        calm = calm[~torch.isin(calm, harmful)][:self.ordinary]
        with torch.no_grad():
            if len(harmful) and len(calm):
                table.weight[harmful] = table.weight[calm].mean(0)

    def _harmful(self, patient: Subject, samples: Samples, words: Tensor, family: Tokens, ctx: Context) -> Tensor:
        """Ids among words [classes, kept] that send enough other texts to their class."""
        found = []
        for rank in range(words.shape[1]):
            ids = words[:, rank:rank + 1]
            margins = stamped_margins(patient, samples, partial(family.insert, ids=ids), ctx)
            for t in range(patient.classes):
                rows = samples.labels != t
                if bool(rows.any()) and float((margins[t][rows] > 0).float().mean()) >= self.harmful:
                    found.append(int(ids[t]))
        return torch.tensor(sorted(set(found)), dtype=torch.long, device=words.device)
