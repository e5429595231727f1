"""SentiNet: Detecting Localized Universal Attacks Against Deep Learning Systems (Chou et al., 2020, arXiv 1812.00292).

The region M of a request that its answer ŷ comes from is pasted on clean pictures z_i; a trigger carries its class
along:

    score(x) = mean over i of  softmax f(M·x + (1 − M)·z_i)_ŷ  −  softmax f(z_i)_ŷ.

Departures: M holds the `share` of places that Grad-CAM rates highest; the answered class alone is looked at (the paper
also explains the runners-up and subtracts their maps); probabilities instead of counted answers; the paper's second
measure, the confidence under a meaningless pattern in M, and its fitted boundary give way to the calibration above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Checked, Guard
from laocoon.recipes.consistency import LEAST
from laocoon.recipes.requests import acceptable
from laocoon.recipes.saliency import COST, Saliency, largest_places, saliency

CHUNK = 32  # requests at once, times the overlays


@dataclass(frozen=True)
class SentiNet(Guard):
    """Does the region that an answer comes from carry the answer to other pictures?"""

    overlays: int = 8  # clean pictures that the region is pasted on
    share: float = 0.15  # of the places

    card: ClassVar[Card] = Card(
        name="sentinet",
        paper="SentiNet: Detecting Localized Universal Attacks Against Deep Learning Systems (2020)",
        url="https://arxiv.org/abs/1812.00292", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers that are spread over the picture (blended, warps, filters) and source-specific ones.",
        summary="the region behind an answer, pasted on clean pictures; also the mask for the report",
        quick={})

    def fit(self, case: ModelCase, ctx: Context) -> SentiNetWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        if self.overlays < 1 or not 0 < self.share < 1:
            raise InputError(f"overlays is {self.overlays} and share {self.share}.",
                             "At least one overlay, and a share between 0 and 1.")
        if len(fit) < LEAST:
            raise NotApplicable(f"at least {LEAST} clean samples are needed to fit on.")
        chosen = torch.randperm(len(fit), generator=ctx.rng)[:self.overlays]
        canvases = fit.inputs[chosen].to(ctx.device)
        maps = saliency(subject, canvases, ctx)
        ctx.spend(len(canvases), backward=False)
        with torch.no_grad():
            plain = subject.module(canvases).float().softmax(1)
        return SentiNetWatch(subject.module, maps, canvases, plain, self.share, subject.input_shape)


@dataclass(frozen=True, eq=False)
class SentiNetWatch:
    """A fitted SentiNet. `masks` is for the report on a request that was flagged."""

    network: nn.Module
    saliency: Saliency
    canvases: Tensor  # [overlays, …]
    plain: Tensor  # [overlays, classes]: what the model says of them
    share: float
    shape: tuple[int, ...]

    @property
    def passes(self) -> float:
        return 1.0 + COST + len(self.canvases)

    def masks(self, batch: Tensor) -> Tensor:
        """bool [batch, height, width]: the region that the answer comes from."""
        batch = acceptable(batch, self.shape).to(self.canvases.device)
        if not len(batch):
            return torch.zeros(0, *self.shape[1:], dtype=torch.bool, device=batch.device)
        return torch.cat([largest_places(self.saliency.maps(part), self.share) for part in batch.split(CHUNK)])

    def check(self, batch: Tensor) -> Checked:
        batch = acceptable(batch, self.shape).to(self.canvases.device)
        if not len(batch):
            return Checked(self.plain[:0], self.plain.new_zeros(0))
        parts = [self._part(part) for part in batch.split(CHUNK)]
        return Checked(torch.cat([p.logits for p in parts]), torch.cat([p.scores for p in parts]))

    def _part(self, batch: Tensor) -> Checked:
        region = largest_places(self.saliency.maps(batch), self.share)[:, None, None]
        with torch.no_grad():
            logits = self.network(batch).float()
            said = logits.argmax(1)
            pasted = torch.where(region, batch.unsqueeze(1), self.canvases.unsqueeze(0))
            again = self.network(pasted.flatten(0, 1)).float().softmax(1).view(len(batch), len(self.canvases), -1)
            index = said[:, None, None].expand(-1, len(self.canvases), 1)
            carried = again.gather(2, index).squeeze(2) - self.plain.T[said]
            return Checked(logits, carried.mean(1).nan_to_num(1.0))
