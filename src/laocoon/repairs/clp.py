"""CLP: channel Lipschitz pruning. No data is needed.

Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness (ECCV 2022, arXiv 2208.03111). A channel that
magnifies a small trigger has a large Lipschitz constant; those over

    mean + u · standard deviation   of their layer

are pruned. The constant of channel c is bounded by the spectral norm of its kernel, times |γ| / σ of the batch norm
that follows. Departures: a batch norm belongs to the convolution that ran just before it; networks without batch norm
are pruned by their kernels alone, dense layers (not the head) by the norms of their rows; a layer never loses over a
tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.recipes.heads import linear_head
from laocoon.recipes.pruning import Layer, lipschitz, multiplying, silence
from laocoon.recipes.surgery import sites_of


@dataclass(frozen=True)
class CLP(Repair):
    """Prune the channels that magnify most."""

    deviations: float = 3.0  # u

    card: ClassVar[Card] = Card(
        name="clp",
        paper="Data-free Backdoor Removal based on Channel Lipschitzness (ECCV 2022)",
        url="https://arxiv.org/abs/2208.03111",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS}),
        summary="prunes channels whose bound on magnification is an outlier of their layer; needs no data",
        misses="layers of a few channels, where nothing lies three deviations out; blended, warped and input-aware "
               "triggers, which need no channel that magnifies",
        fails={
            "check_success_falls": "no channel of the digit twins lies three deviations out: nothing is pruned",
        },
    )

    def operate(self, patient: Subject, case: ModelCase, ctx: Context) -> None:
        module = patient.module
        head = linear_head(patient, ctx).layer
        layers = multiplying(module, head)
        if not layers:
            raise NotApplicable("the network has no convolution or dense layer beside its head.")
        order = [site.layer for site in sites_of(patient, ctx)]
        follows = {a: b for a, b in pairwise(order)
                   if isinstance(module.get_submodule(b), torch.nn.modules.batchnorm._BatchNorm)}
        for layer in layers:
            norm = follows.get(layer.name)
            bounds = lipschitz(module, layer.name, norm)
            limit = bounds.mean() + self.deviations * bounds.std(unbiased=False)
            worst = bounds.argsort(descending=True)[:len(bounds) // 10]
            keep = torch.ones_like(bounds)
            keep[worst] = (bounds[worst] <= limit).float()
            silence(module, [_written(module, layer, norm)], [keep], whole=True)


def _written(module: torch.nn.Module, layer: Layer, norm: str | None) -> Layer:
    """Where a channel is silenced: in the batch norm that follows, which would else put its bias there again."""
    follower = None if norm is None else module.get_submodule(norm)
    if norm is None or getattr(follower, "weight", None) is None:
        return layer
    return Layer(norm, layer.channels, getattr(follower, "bias", None) is not None)
