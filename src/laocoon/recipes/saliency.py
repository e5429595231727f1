"""Where in a picture an answer comes from: Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391).

    map = relu(Σ_k α_k·A_k),  α_k the mean over places of ∂ f_ŷ / ∂ A_k,

A the input of the last layer with weights that still has a grid of at least 4 × 4 places. Where no layer has one (dense
networks, transformers), |x · ∂ f_ŷ / ∂ x|, summed over channels and smoothed, takes its place.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.recipes.shadow import shadow

GRID = 4  # places along each side, below which a map says nothing
COST = 3.0  # forward passes that a map costs: one forward, one backward


class _Seen(threading.local):
    """The activation that the pass of this thread met last."""

    wanted: bool = False
    value: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Saliency:
    """Maps of one network; several threads may ask at once."""

    network: nn.Module
    layer: str  # whose input is read; empty: the picture itself
    _seen: _Seen = field(default_factory=_Seen)

    def maps(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """[n, height, width], each map between 0 and 1; of the answered class where no labels are given."""
        seen = self._seen
        seen.wanted, seen.value = True, None
        try:
            with torch.enable_grad():
                x = images.detach().clone().requires_grad_(True)
                logits = self.network(x)
                chosen = logits.argmax(1) if labels is None else labels
                total = logits.gather(1, chosen.unsqueeze(1)).sum()
                source = seen.value if self.layer and seen.value is not None else x
                (slope,) = torch.autograd.grad(total, source)
        finally:
            seen.wanted, seen.value = False, None
        with torch.no_grad():
            if source is x:
                drawn = functional.avg_pool2d((x * slope).abs().sum(1, keepdim=True), 3, 1, 1)
            else:
                weights = slope.mean((2, 3), keepdim=True)
                drawn = (weights * source.detach()).sum(1, keepdim=True).relu()
            drawn = functional.interpolate(drawn.float(), images.shape[-2:], mode="bilinear", align_corners=False)
            flat = drawn.squeeze(1)
            return (flat / flat.amax((1, 2), keepdim=True).clamp_min(1e-12)).nan_to_num(0.0).clamp(0, 1)


def saliency(subject: Subject, example: Tensor, ctx: Context) -> Saliency:
    """Prepared on an example [n, channels, height, width]; NotApplicable where the network has no gradient."""
    if Capability.GRADIENT not in subject.capabilities:
        raise NotApplicable("the subject cannot be differentiated.")
    network = shadow(subject.module)
    found: list[str] = []

    def spot(name: str) -> Any:
        def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0] if inputs else None
            if isinstance(x, Tensor) and x.dim() == 4 and min(x.shape[2:]) >= GRID and "Conv" in type(layer).__name__:
                found.append(name)

        return look

    handles = [layer.register_forward_pre_hook(spot(name)) for name, layer in network.named_modules() if name]
    try:
        ctx.spend(1, backward=False)
        with torch.no_grad():
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    made = Saliency(network, found[-1] if len(found) > 1 else "")
    if made.layer:
        seen = made._seen

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if seen.wanted:
                seen.value = inputs[0]

        network.get_submodule(made.layer).register_forward_pre_hook(keep)
    ctx.spend(1)
    made.maps(example[:1])
    return made


def largest_places(maps: Tensor, share: float) -> Tensor:
    """bool [n, height, width]: the `share` of the places of each map with the largest values."""
    count = max(1, round(share * maps[0].numel()))
    flat = maps.flatten(1)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(count, 1).indices, True)
    return chosen.view_as(maps)
