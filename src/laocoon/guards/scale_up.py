"""SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction Consistency.

Guo et al., ICLR 2023, arXiv 2302.03251. Pixels are multiplied and clipped; a trigger outlives that better than what is
natural. With scales S = {3, 5, 7, 9, 11} and the answer ŷ,

    SPC(x) = share of s in S with f(clip(s·x)) = ŷ.

With a few clean samples (the data-limited variant) SPC is put in units of clean samples of class ŷ.

Departures: where probabilities are told, the mean probability of ŷ stands for the share (the share has six values, and
a threshold among ties holds no rate). The variant by class is off by default: with ten samples a class its means were
noisier than what they corrected (AUROC 0.75 against 0.86 over thirteen implants on CIFAR-10 and GTSRB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Guard
from laocoon.recipes.consistency import Change, CopyWatch, Profile, in_class_units, profile_of


@dataclass(frozen=True)
class ScaleUp(Guard):
    """Does the answer outlive the multiplication of all pixels?"""

    scales: tuple[float, ...] = (3.0, 5.0, 7.0, 9.0, 11.0)
    labels_only: bool = False  # count answers instead of averaging probabilities, as in the paper
    by_class: bool = False  # the data-limited variant: in units of clean samples of the answered class

    card: ClassVar[Card] = Card(
        name="scale_up",
        paper="SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction "
              "Consistency (ICLR 2023)",
        url="https://arxiv.org/abs/2302.03251", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that clipping destroys (dark ones, faint noise), all-to-all backdoors (AUROC 0.48), classes "
               "that bright pictures fall into anyway.",
        summary="answers that outlive the multiplication of pixels; black box, five further passes",
        quick={},
        fails={"check_scores_stamped_above_clean": "the digits of the twins are nearly black and white, so that clean "
                                                   "answers outlive the multiplication as well: AUROC 0.63."})

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales are {self.scales}.", "Name at least one, above 0.")
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        copies = tuple(_scaled(scale) for scale in self.scales)
        clean = profile_of(subject.module, fit, copies, ctx)
        units = in_class_units(self._consistency(clean), clean.answers, subject.classes) if self.by_class else None

        def judge(asked: Profile) -> Tensor:
            found = self._consistency(asked)
            return found if units is None else units(found, asked.answers)

        return CopyWatch(subject.module, copies, judge, subject.input_shape, clean.logits.device)

    def _consistency(self, asked: Profile) -> Tensor:
        return asked.kept.float().mean(1) if self.labels_only else asked.shares.mean(1)


def _scaled(scale: float) -> Change:
    def change(inputs: Tensor) -> Tensor:
        return torch.clamp(inputs * scale, 0, 1)

    return change
