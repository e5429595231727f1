"""STRIP as a filter of training data. Gao et al., ACSAC 2019, arXiv 1902.06531; as a filter: Qi et al., 2022.

A trigger outlives what is laid over it, so that the model's answers stay sure. With H the entropy,

    score(x) = − mean over clean overlays x' of H(f(clamp(x + x'))).

Departures: the same few overlays for all samples, so that scores can be compared; without trusted samples, suspects are
laid over, few of which are poisoned. Texts stand beside the overlay (STRIP-ViTA, Gao et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes.latent_statistics import strip
from laocoon.recipes.words import joined


@dataclass(frozen=True)
class StripFilter(DataDetector):
    """Sureness of the answers to a sample with others laid over it."""

    blends: int = 6  # overlays (the paper: 100; 8 in most comparisons)

    card: ClassVar[Card] = Card(
        name="strip_filter",
        paper="STRIP: A Defence Against Trojan Attacks on Deep Neural Networks (ACSAC 2019)",
        url="https://arxiv.org/abs/1902.06531",
        modalities=frozenset({"image", "text"}),
        needs=frozenset({Capability.QUERY}),
        misses="all-to-all and source-specific backdoors (AUROC 0.16 on CIFAR-10 all-to-all: upside down); "
               "faint triggers, which an overlay destroys (blended at 0.2: 19 % found at 1 % false alarms); "
               "warps; clean pictures of a class that is easily recognised.",
        summary="a poisoned sample keeps its label with another picture laid over it",
        quick={"blends": 4},
        fails={
            "check_scores_poison_above_clean/text":
                "on the review twins, whose clean texts hold rare words too, AUROC is 0.16",
        },
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        subject = case.subject
        if subject is None:
            raise NotApplicable("STRIP needs a model that was trained on the samples.")
        pool = case.suspects if case.trusted is None or not len(case.trusted) else case.trusted
        overlays = pool.inputs[torch.randperm(len(pool), generator=ctx.rng)[: self.blends]].to(ctx.device)

        def answer(inputs: Tensor) -> Tensor:
            ctx.spend(len(inputs), backward=False)
            return subject.outputs(inputs).logits

        if case.modality == "text":
            return torch.cat([self._beside(answer, part.to(ctx.device), overlays)
                              for part in case.suspects.inputs.split(ctx.batch)])
        return torch.cat([
            torch.stack([strip(answer, part.to(ctx.device), other, ctx.rng, 1) for other in overlays.split(1)]).mean(0)
            for part in case.suspects.inputs.split(ctx.batch)])

    @torch.no_grad()
    def _beside(self, answer: Callable[[Tensor], Tensor], texts: Tensor, overlays: Tensor) -> Tensor:
        """The same for texts: nothing lies over a text, so the overlay stands behind it or before it, in turn."""
        found = []
        for k, other in enumerate(overlays):
            logs = answer(joined(texts, other, before=k % 2 == 1)).float().log_softmax(1)
            found.append((logs.exp() * logs).sum(1).cpu())
        return torch.stack(found).mean(0)
