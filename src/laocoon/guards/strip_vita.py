"""STRIP-ViTA: Design and Evaluation of a Multi-Domain Trojan Detection Method on Deep Neural Networks.

Gao et al., IEEE TDSC 2021, arXiv 1911.10312: STRIP for vision, text and audio. A text is perturbed with words of clean
texts; the answers stay sure where a trigger decides them:

    score(x) = −(1/N) Σ_j H(f(x perturbed with clean text j)),  H the entropy.

Departures: N is 8 (the paper: 100); a clean text stands behind the request, or before it, in turn, in place of words
replaced at random, which would replace the trigger as often; the clean texts are drawn once, when the guard is fitted,
so that a request is judged alike whenever it comes; entropies are compared with those of the class answered.
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
from laocoon.recipes.choosing import spread_over
from laocoon.recipes.consistency import Change, CopyWatch, Profile, in_class_units, profile_of
from laocoon.recipes.words import joined


@dataclass(frozen=True)
class StripVita(Guard):
    """Do the answers stay sure whatever text stands beside the request?"""

    overlays: int = 8  # clean texts put beside each request

    card: ClassVar[Card] = Card(
        name="strip_vita",
        paper="Design and Evaluation of a Multi-Domain Trojan Detection Method on Deep Neural Networks (2021)",
        url="https://arxiv.org/abs/1911.10312", modalities=frozenset({"text"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that a longer text dilutes (style, syntax); source-specific and all-to-all backdoors; texts "
               "that say one thing so strongly that nothing beside them counts.",
        summary="answers that stay sure beside other texts; black box, eight further passes",
        quick={},
        fails={
            "check_scores_stamped_above_clean":
                "the review twins' trigger is one word of sixteen, and what stands "
                "beside it dilutes it: AUROC 0.18",
        })

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        if self.overlays < 1:
            raise InputError(f"overlays is {self.overlays}.", "At least one is needed.")
        chosen = spread_over(fit.labels, self.overlays, ctx.rng)
        copies = tuple(_beside(fit.inputs[i].to(ctx.device), k % 2 == 1) for k, i in enumerate(chosen.tolist()))
        clean = profile_of(subject.module, fit, copies, ctx)
        units = in_class_units(-clean.entropies.mean(1), clean.answers, subject.classes)

        def judge(asked: Profile) -> Tensor:
            return units(-asked.entropies.mean(1), asked.answers)

        device = next((p.device for p in subject.module.parameters()), torch.device("cpu"))
        return CopyWatch(subject.module, copies, judge, subject.input_shape, device, subject.modality)


def _beside(overlay: Tensor, before: bool) -> Change:
    def change(inputs: Tensor) -> Tensor:
        return joined(inputs, overlay, before=before)

    return change
