"""How many poisoned training samples a vote of networks withstands, input by input.

Levine and Feizi, Deep Partition Aggregation, ICLR 2021, arXiv 2006.14768. Networks were trained on parts of the
training set that do not depend on each other, so a sample inserted or removed changes one vote at most. With n_c votes
for the answer c of an input, no r samples change it if

    r ≤ min over k ≠ c of ⌊ (n_c − n_k − [k < c]) / 2 ⌋         (ties fall to the smaller class).

Departures: none; accuracy is given with its binomial interval, since the inputs are a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.voting import Votes, robustness, winners


@dataclass(frozen=True)
class DPAVotes(Certifier):
    """Counts leads of votes."""

    samples: int = 1  # r: poisoned training samples that answers must withstand
    share: float = 0.5  # share of the inputs whose answer must withstand them for the certificate to hold

    card: ClassVar[Card] = Card(
        name="dpa_votes",
        paper="Deep Partition Aggregation: Provable Defenses against General Poisoning Attacks (ICLR 2021)",
        url="https://arxiv.org/abs/2006.14768",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="anything beyond the certified count, which a poison rate of one per cent exceeds; whoever controls "
               "training rather than the data; models that are not such an ensemble.",
        summary="how many poisoned training samples each answer provably withstands",
    )

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        module = case.subject.module
        if not isinstance(module, Votes):
            raise NotApplicable("dpa_votes needs an ensemble that `laocoon train --method dpa` made.")
        if self.samples < 1 or not 0 < self.share <= 1:
            raise InputError(f"samples is {self.samples}, share {self.share}.",
                             "samples is at least 1, share above 0 and at most 1.")
        fit = case.fit
        assert fit is not None
        n, counts = len(fit), []
        with torch.no_grad():
            for x in fit.inputs.split(ctx.batch):
                ctx.spend(len(x) * len(module.members), backward=False)
                counts.append(module.votes(x.to(ctx.device)).cpu())
        votes = torch.cat(counts)
        radii, said = robustness(votes), winners(votes)
        withstand = int((radii >= self.samples).sum())
        right = (said == fit.labels.cpu()) if fit.labelled else torch.ones(n, dtype=torch.bool)
        rows = []
        for r in range(int(radii.max()) + 1):
            found = int(((radii >= r) & right).sum())
            low, high = binomial_interval(found, n)
            rows.append({"poisoned_samples": r, "certified": found, "share": found / n, "low": low, "high": high})
        holds = withstand >= self.share * n
        return Certificate(
            method=self.card.name,
            statement=f"No insertion or removal of up to {self.samples} training samples changes the answer of "
                      f"{withstand} of {n} inputs.",
            assumptions=(
                f"each of the {len(module.members)} networks was trained on its own part of the data alone, the part "
                "of a sample is a hash of its own pixels, and training is deterministic in the part (`laocoon train "
                "--method dpa` on one machine)",
                "a sample with changed pixels counts as two (one removed, one inserted), a changed label as one",
                "the number of classes and the size of the images are fixed beforehand, not read off the poisoned data",
                "the attacker changes training data only: not the weights, the code or the seed"),
            inputs=f"the {n} inputs given; the intervals (95 %) speak of the inputs that they were drawn from",
            holds=True if holds else None,
            reason="" if holds else f"{withstand} of {n} inputs withstand it, not {self.share:.0%}.",
            values={"claim": {"kind": "poison", "samples": self.samples, "share": self.share},
                    "withstands": radii.tolist(), "answers": said.tolist(),
                    "certified_accuracy" if fit.labelled else "certified_share": rows})
