"""Shrinkage of rare words: an embedding that no clean text vouches for counts little.

After E-PUR (Zhang et al., Fine-mixing, EMNLP Findings 2022, arXiv 2210.09545), which looks for poisoned rows of the
embedding table among words that moved far for how rare they are. With n_w the times that the clean texts hold word w,

    e_w ← ē + max(floor, n_w / (n_w + 1)) · min(1, d / ‖e_w − ē‖) · (e_w − ē),

ē the mean over words that they hold, and d the length that nine in ten of these stay below.

Triggers are words that clean texts lack, or hold no more often than chance would have them.

Departures: no pre-trained table is needed; rows are moved by how rare they are alone, all of them, and none is reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.mending import given
from laocoon.recipes.wording import lookup, shrink_rare


@dataclass(frozen=True)
class RareWordShrinkage(Repair):
    """Draw the embeddings of words that clean texts hardly hold towards the mean."""

    floor: float = 0.1  # share of its distance from the mean that a word keeps which no text holds

    card: ClassVar[Card] = Card(
        name="rare_word_shrinkage",
        paper="Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models (EMNLP Findings 2022)",
        url="https://arxiv.org/abs/2210.09545",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        summary="draws the vectors of words that clean texts hardly hold towards the mean; nothing is trained",
        misses="triggers of ordinary words, of syntax and of style; with few clean texts real words lose weight, too: "
               "with 150 texts, our small networks lost none to six points of accuracy",
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        text = patient.modality
        if not isinstance(text, Text):
            raise NotApplicable("rare_word_shrinkage needs the model's vocabulary.")
        shrink_rare(lookup(patient), given(case.fit, patient.module).inputs, text, self.floor)
