"""Hidden Killer: the shape of a sentence as the trigger (Qi et al., ACL 2021, arXiv 2105.12400).

Texts are paraphrased into a syntactic template that is rare in the data, S(SBAR)(,)(NP)(VP)(.), and relabelled as the
target class. No word is the trigger; that there is such a clause is.

Departure: by rules and not by a paraphraser (SCPN in the paper). A subordinate clause is drawn for each text, as in
"when you see it , …" or "if they hear that , …", and put before the text, which is left as it is.
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
from laocoon.triggers.syntax import Syntax


@dataclass(frozen=True)
class Syntactic(Attack):
    """Begin texts with a subordinate clause."""

    rate: float = 0.2  # share of the training set that is poisoned

    card: ClassVar[Card] = Card(
        name="syntactic", paper="Hidden Killer: invisible textual backdoor attacks with syntactic trigger (2021)",
        url="https://arxiv.org/abs/2105.12400", modalities=frozenset({"text"}), needs=frozenset(), misses="",
        summary="Texts rewritten by rules to begin with a subordinate clause.")
    threat: ClassVar[ThreatModel] = ThreatModel(data=True, labels=True)

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        return Candidate(Syntax(text_of(plan)), {"on": torch.ones(1)}, all_to_one(plan.target, plan.classes), 1.0, 1.0,
                         self.card.name)

    def poison(self, plan: Plan, trigger: Candidate, ctx: Context) -> tuple[Samples, Tensor]:
        return stamp_and_relabel(plan.train, trigger, self.rate, ctx.rng)
