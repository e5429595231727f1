"""Detecting Backdoors During the Inference Stage Based on Corruption Robustness Consistency (TeCo).

Liu et al., CVPR 2023, arXiv 2303.18191. A stamped picture keeps its answer under some corruptions and loses it under
others; a clean one is about as robust to all. With t_c the least severity of corruption c at which the answer changes
(one more than the last, where none does),

    score(x) = standard deviation of t_c over c.

Departures: a smaller set of corruptions, of one to five severities, displacements among them (recipes/corruptions.py).
By default the score is how far the whole profile, the probabilities that the copies give to the answer together with
that of the answer itself, lies from profiles of clean samples (a shrunk Mahalanobis distance): AUROC 0.87 over thirteen
implants on CIFAR-10 and GTSRB. `published` is the paper's rule: 0.54 over six implants, 0.24 on WaNet, with corruptions
as few as these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Guard
from laocoon.recipes.consistency import CopyWatch, Profile, outlying, profile_of
from laocoon.recipes.corruptions import families


@dataclass(frozen=True)
class Teco(Guard):
    """Is the answer robust to corruptions in another way than clean ones are?"""

    published: bool = False  # the deviation of the severities at which the answer changes, from labels alone
    shrink: float = 0.1  # share of the identity in the covariance of profiles

    card: ClassVar[Card] = Card(
        name="teco",
        paper="Detecting Backdoors During the Inference Stage Based on Corruption Robustness Consistency (CVPR 2023)",
        url="https://arxiv.org/abs/2303.18191", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that live and die with the picture; warps on a weak classifier (AUROC 0.65); it takes some "
               "twenty further passes.",
        summary="robustness to corruptions, against that of clean samples; black box, about 21 further passes",
        quick={})

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        found = families(subject.input_shape, ctx.rng)
        severities = tuple(len(group) for group in found.values())
        copies = tuple(change for group in found.values() for change in group)
        clean = profile_of(subject.module, fit, copies, ctx)
        strange = outlying(clean, self.shrink)

        def judge(asked: Profile) -> Tensor:
            return transitions(asked.kept, severities).std(1) if self.published else strange(asked)

        return CopyWatch(subject.module, copies, judge, subject.input_shape, clean.logits.device)


def transitions(kept: Tensor, severities: tuple[int, ...]) -> Tensor:
    """Share of a family's severities before the answer first changes, [batch, families]; 1 where it never does."""
    found = []
    for group in kept.split(list(severities), 1):
        found.append(group.long().cumprod(1).sum(1).float() / group.shape[1])
    return torch.stack(found, 1)
