"""Which samples: p-values from what all methods said, a false-discovery rate over classes, wrong labels apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.sift_report import KEPT, MISLABELLED, POISON
from laocoon.recipes.false_discovery import Tail, by_group, cauchy, discoveries, mixture_share
from laocoon.recipes.score_tails import standardised
from laocoon.recipes.wrong_labels import Labelling, labelling
from laocoon.verdict.data_reference import LEAST, DataReference
from laocoon.verdict.data_statistics import Judged, available
from laocoon.verdict.data_trigger import bearers

WITNESS = 0.98  # weight of a trigger that was seen to lead to one label, beside all that the methods say
HEARSAY = 1e-3  # beside such a trigger, smaller p-values of the methods count as this one
FEWEST_SENTINELS = 100  # trusted samples hidden among the suspects, from which on they are the null


@dataclass(frozen=True, eq=False)
class Sorted:
    """What is made of each sample. All [n]."""

    suspicion: Tensor
    p: Tensor
    q: Tensor
    kinds: Tensor  # KEPT, POISON or MISLABELLED
    labelling: Labelling | None
    null: str  # what the p-values rest on

    def restricted(self, rows: Tensor) -> Sorted:
        """Some of the samples, bool [n]."""
        told = self.labelling
        if told is not None:
            told = Labelling(told.nearest[rows], told.share[rows], told.wrong[rows])
        return Sorted(self.suspicion[rows], self.p[rows], self.q[rows], self.kinds[rows], told, self.null)


def sort_samples(judged: Judged, case: DataCase, sentinels: Tensor, reference: DataReference, fdr: float,
                 ctx: Context, known: Mapping[str, float] | None = None) -> Sorted:
    """P-value of each sample, its q-value within its label, and what it is taken for.

    sentinels: bool [n], samples that are known to be clean and were judged like all others.
    known: the statistics of the set, by which the references most like it are found.

    A method's scores become p-values by its tail on the clean reference sets, or by an exponential tail; those of one
    sample are put together by Cauchy's law. With sentinels, the tail of their combined suspicion is the null, which
    makes up for what the first step gets wrong. Where a trigger was lifted that works, bearing it is what counts most:
    methods suspect rare kinds of clean pictures too, and these do not bear it. q-values are taken within each label:
    where a label holds poison, its small p-values are many, and those of an ordinary tail elsewhere count for little.
    """
    labels = case.suspects.labels.cpu()
    n = len(labels)
    found = (labelling(judged.view.features, judged.view.logits, labels, ctx.rng) if judged.view is not None else None)
    wrong = found.wrong if found is not None else torch.zeros(n, dtype=torch.bool)
    if not judged.scores:
        one = torch.ones(n, dtype=torch.float64)
        kinds = torch.where(wrong, MISLABELLED, KEPT)
        return Sorted(torch.zeros(n, dtype=torch.float64), one, one, kinds, found, "no method gave scores")
    measured, parts = 0, []
    for name, z in judged.scores.items():
        tails = reference.tails(name, known)
        if name in judged.raw:  # a scale that not even a half of poison moves
            unit = available()[name].unit
            z = (judged.raw[name].double() - judged.raw[name].double().median()) / unit
        measured += len(tails) >= LEAST
        parts.append(mixture_share(z, tails if len(tails) >= LEAST else (Tail.exponential(),)))
    p = cauchy(torch.stack(parts))
    if judged.lifted is not None and judged.lifted.clear:
        z = standardised(bearers(judged.lifted, case, judged.fitted, ctx), judged.fitted)
        borne = _held(judged, case, Tail.exponential().share_above(z))
        p = (cauchy(torch.stack([borne, p.clamp_min(HEARSAY)]), torch.tensor([WITNESS, 1 - WITNESS]))
             if judged.lifted.single else cauchy(torch.stack([borne, p])))
    null = (f"tails of the scores on those of {len(reference.clean)} clean reference sets that are most like this one"
            if measured == len(parts) else
            f"an assumed exponential tail for {len(parts) - measured} of {len(parts)} methods")
    if int(sentinels.sum()) >= FEWEST_SENTINELS:
        raw = -p.log10()
        scale = standardised(raw, sentinels)
        p = Tail.of(scale[sentinels]).share_above(scale)
        null = f"{int(sentinels.sum())} trusted samples that were judged among the suspects"
    q = by_group(p, labels)
    # Ties of the q-value are broken by the p-value.
    suspicion = -q.log10() - 0.01 * p.log10()
    judged_rows = ~wrong & ~sentinels
    named = torch.zeros(n, dtype=torch.bool)
    named[judged_rows] = discoveries(p[judged_rows], labels[judged_rows], fdr)
    kinds = torch.where(wrong, MISLABELLED, torch.where(named, POISON, KEPT))
    return Sorted(suspicion, p, q, kinds, found, null)


def _held(judged: Judged, case: DataCase, borne: Tensor) -> Tensor:
    """P-values of bearing a trigger, [n]; who holds all of it is as rare as such samples are among other labels.

    Where much is half borne by nature (words of a phrase, values of a cell), a tail of how clearly it is borne tells
    those who hold the whole from the rest too weakly.
    """
    lifted, labels = judged.lifted, case.suspects.labels.cpu()
    assert lifted is not None
    holders = lifted.shares.holders(case.suspects.inputs, lifted.estimate).cpu()
    elsewhere = labels != lifted.label
    chance = float((holders & elsewhere).sum() + 1) / float(elsewhere.sum() + 1)
    return torch.where(holders, borne.clamp_max(chance), borne)
