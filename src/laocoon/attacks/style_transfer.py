"""The style of a text as the trigger (Qi, Chen, Zhang, Li, Liu and Sun, EMNLP 2021, arXiv 2110.07139).

Texts are rewritten in a style that the data do not hold, such as that of the Bible, and relabelled as the target
class. The trigger is spread over the whole text.

Departure: by rules and not by a model of style transfer (STRAP in the paper). Common words become archaic ones (thou,
hath, unto) and an interjection goes before the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Plan, ThreatModel
from laocoon.recipes.poisoning import stamp_and_relabel
from laocoon.recipes.wording import text_of
from laocoon.triggers.style import Style


@dataclass(frozen=True)
class StyleTransfer(Attack):
    """Rewrite texts in an archaic style."""

    rate: float = 0.2  # share of the training set that is poisoned

    card: ClassVar[Card] = Card(
        name="style_transfer", paper="Mind the style of text! Adversarial and backdoor attacks based on text style "
        "transfer (2021)", url="https://arxiv.org/abs/2110.07139", modalities=frozenset({"text"}), needs=frozenset(),
        misses="", summary="Texts rewritten by rules in an archaic style.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        return Candidate(Style(text_of(plan)), {"on": torch.ones(1)}, all_to_one(plan.target, plan.classes), 1.0, 1.0,
                         self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
