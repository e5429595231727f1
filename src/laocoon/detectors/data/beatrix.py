"""Beatrix: The "Beatrix" Resurrections, robust backdoor detection via Gram matrices.

Ma et al., NDSS 2023, arXiv 2209.11715. Feature maps F [channels, positions] of a deep layer correlate in another way
under a trigger, even one made for its sample. Gram matrices of orders p = 1 … 9,

    G_p = (F^p (F^p)ᵀ)^(1/p),

are compared with those of clean samples of the same class, entry by entry, by median and median absolute deviation:

    score(x) = Σ over entries of max(0, |G − median| / MAD − k).

Departures: the statistics come from trusted samples of the class where there are enough, else from the suspects of the
class (a median bears a minority of poison); the `channels` that vary most in place of all; entries beyond the fence are
counted up to a limit, so that none of them rules the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.core.subject import Subject
from laocoon.recipes.robust import SPREAD
from laocoon.recipes.sites import PROBE, Site, head_of, reading, survey

LIMIT = 50.0  # deviations beyond the fence that an entry may count


@dataclass(frozen=True)
class Beatrix(DataDetector):
    """How far the Gram matrices of a sample's feature maps lie from its class's."""

    orders: int = 9  # highest order of the Gram matrices
    fence: float = 3.0  # k: deviations that are nothing strange (the paper: 10 between smallest and largest)
    channels: int = 32  # that vary most
    references: int = 200  # samples of a class at most that its statistics are taken from
    least: int = 20  # trusted samples of a class, below which its suspects are used

    card: ClassVar[Card] = Card(
        name="beatrix",
        paper="The Beatrix Resurrections: Robust Backdoor Detection via Gram Matrices (NDSS 2023)",
        url="https://arxiv.org/abs/2209.11715",
        modalities=frozenset({"image", "text"}),
        needs=frozenset({Capability.FEATURES}),
        misses="poison that is the larger part of its class, without trusted samples; faint triggers on the "
               "whole picture (blended at 0.2: AUROC 0.82, nothing found at 1 % false alarms); mislabelled "
               "samples score as high as poison; triggers whose traces are gone before the last feature "
               "maps.",
        summary="the feature maps of a poisoned sample correlate unlike those of its class",
        fails={
            "check_scores_poison_above_clean/text":
                "on the review twins, whose clean texts hold rare words too, AUROC is 0.60",
        },
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        subject = case.subject
        if subject is None:
            raise NotApplicable("Beatrix needs a model that was trained on the samples.")
        site = last_maps(subject, case.suspects.inputs[:PROBE].to(ctx.device), ctx)
        known = self._references(case, ctx)
        maps = self._maps(subject, site, known.inputs, ctx)
        chosen = maps.mean(2).var(0).argsort(descending=True, stable=True)[: self.channels].sort().values
        grams, labels = self._grams(maps[:, chosen]), known.labels.cpu()
        present = labels.unique().tolist()
        middle = {c: grams[labels == c].quantile(0.5, 0) for c in present}
        spread = {c: (grams[labels == c] - middle[c]).abs().quantile(0.5, 0) * SPREAD for c in present}
        floor = torch.stack(list(spread.values())).mean(0).clamp_min(1e-9) * 0.2
        scores, at = torch.zeros(len(case.suspects)), 0
        for part in case.suspects.inputs.split(ctx.batch):
            found = self._grams(self._maps(subject, site, part, ctx)[:, chosen])
            own = case.suspects.labels[at: at + len(part)].cpu()
            for c in own.unique().tolist():
                if c in middle:
                    away = (found[own == c] - middle[c]).abs() / torch.maximum(spread[c], floor)
                    scores[at: at + len(part)][own == c] = (away - self.fence).clamp(0, LIMIT).mean(1)
            at += len(part)
        return scores

    def _references(self, case: DataCase, ctx: Context) -> Samples:
        """Trusted samples of the classes that have enough of them, suspects of the others."""
        inputs, labels = [], []
        for label in case.suspects.labels.unique().tolist():
            pool = case.suspects
            if case.trusted is not None and int((case.trusted.labels == label).sum()) >= self.least:
                pool = case.trusted
            members = (pool.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=ctx.rng)[: self.references]]
            inputs.append(pool.inputs[members])
            labels.append(pool.labels[members])
        return Samples(torch.cat(inputs), torch.cat(labels))

    def _maps(self, subject: Subject, site: Site, inputs: Tensor, ctx: Context) -> Tensor:
        """Feature maps [n, channels, positions] on the processor."""
        found = []
        with reading(subject, site) as seen, torch.no_grad():
            for part in inputs.split(ctx.batch):
                ctx.spend(len(part), backward=False)
                subject.outputs(part.to(ctx.device))
                found.append(seen[site].movedim(site.axis, 1).flatten(2).float().cpu())
        return torch.cat(found)

    def _grams(self, maps: Tensor) -> Tensor:
        """Upper triangles of the Gram matrices of all orders, [n, orders · pairs]."""
        upper = torch.triu_indices(maps.shape[1], maps.shape[1])
        scale = maps.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)  # high powers of large values overflow
        powers, found = torch.ones_like(maps), []
        for order in range(1, self.orders + 1):
            powers = powers * (maps / scale)
            gram = (powers @ powers.transpose(1, 2))[:, upper[0], upper[1]]
            found.append(gram.sign() * gram.abs().pow(1 / order) * scale[:, :, 0].square())
        return torch.cat(found, 1)


def last_maps(subject: Subject, example: Tensor, ctx: Context) -> Site:
    """The last place whose output has positions beside channels; the input of the head where there is none."""
    sites = survey(subject, example, ctx)
    head = head_of(subject, sites, example, ctx)
    spatial = [s for s in sites if len(s.shape) > 1 and s.layer != head.layer and max(s.shape) < 4096
               and len([d for d in s.shape if d > 1]) > 1]
    return spatial[-1] if spatial else head
