"""STRIP: A Defence Against Trojan Attacks on Deep Neural Networks (Gao et al., ACSAC 2019, arXiv 1902.06531).

Clean pictures x_i are laid over a request; the answers to the sums stay sure where a trigger decides them:

    score(x) = −(1/N) Σ_i H(f(clip(x + x_i))),  H the entropy.

Departures: N is 8 (the paper: 100); the overlays are drawn once, when the guard is fitted, so that a request is judged
alike whenever and beside whomever it comes (recipes/latent_statistics.py draws them anew, for samples of a data set).
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
from laocoon.recipes.consistency import Change, CopyWatch, Profile, profile_of


@dataclass(frozen=True)
class Strip(Guard):
    """Do the answers stay sure whatever is laid over the request?"""

    overlays: int = 8  # clean pictures laid over each request

    card: ClassVar[Card] = Card(
        name="strip", paper="STRIP: A Defence Against Trojan Attacks on Deep Neural Networks (ACSAC 2019)",
        url="https://arxiv.org/abs/1902.06531", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="triggers that what is laid over them covers or bends (WaNet: AUROC 0.42 to 0.47), source-specific and "
               "all-to-all backdoors.",
        summary="answers that stay sure under overlays; black box, eight further passes",
        quick={})

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        if self.overlays < 1:
            raise InputError(f"overlays is {self.overlays}.", "At least one is needed.")
        chosen = torch.randperm(len(fit), generator=ctx.rng)[:self.overlays]
        copies = tuple(_under(fit.inputs[i].to(ctx.device)) for i in chosen.tolist())
        clean = profile_of(subject.module, fit, copies, ctx)

        def judge(asked: Profile) -> Tensor:
            return -asked.entropies.mean(1)

        return CopyWatch(subject.module, copies, judge, subject.input_shape, clean.logits.device)


def _under(overlay: Tensor) -> Change:
    def change(inputs: Tensor) -> Tensor:
        return (inputs + overlay).clamp(0, 1)

    return change
