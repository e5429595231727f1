"""The classification head of a network, found without knowing the architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject


@dataclass(frozen=True, eq=False)
class LinearHead:
    """The last layer that makes class scores: logits = features · weightᵀ + bias."""

    layer: str
    weight: Tensor  # [classes, features], float32, on the CPU
    bias: Tensor  # [classes]

    @property
    def centred(self) -> Tensor:
        """Weights without what all classes have in common: a softmax does not see that."""
        return self.weight - self.weight.mean(0)

    @property
    def centred_bias(self) -> Tensor:
        return self.bias - self.bias.mean()


@dataclass(frozen=True, eq=False)
class _Candidate:
    layer: str
    weight: Tensor
    bias: Tensor


def linear_head(subject: Subject, ctx: Context) -> LinearHead:
    """The last dense layer (or 1x1 convolution) with one row per class.

    The last one defined; where there are several, the last one that a pass of one blank sample goes through.
    """
    found = list(_candidates(subject))
    if not found:
        raise NotApplicable("no layer with one row of weights per class could be found.")
    chosen = found[-1]
    if len(found) > 1 and Capability.FEATURES in subject.capabilities:
        chosen = next((c for name in reversed(_order(subject, found, ctx)) for c in found if c.layer == name), chosen)
    if not torch.isfinite(chosen.weight).all() or not torch.isfinite(chosen.bias).all():
        raise NotApplicable(f"the weights of layer {chosen.layer!r} are not finite.")
    return LinearHead(chosen.layer, chosen.weight, chosen.bias)


def _candidates(subject: Subject) -> Iterator[_Candidate]:
    for name, module in subject.module.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for tensor in held.values():
            weight = _oriented(module, tensor, subject.classes)
            if weight is None:
                continue
            bias = next((t for t in held.values() if t.dim() == 1 and len(t) == len(weight)), None)
            flat = torch.zeros(len(weight)) if bias is None else bias.detach().float().cpu()
            if len(weight) < subject.classes:  # one logit for two classes
                weight, flat = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros(1), flat])
            yield _Candidate(name, weight, flat)
            break


def _oriented(module: nn.Module, tensor: Tensor, classes: int) -> Tensor | None:
    """The tensor as [classes, features], if it can be a head's weights."""
    if not tensor.is_floating_point() or tensor.dim() < 2 or any(size != 1 for size in tensor.shape[2:]):
        return None
    flat = tensor.detach().float().cpu().flatten(1)
    rows = {classes, 1} if classes == 2 else {classes}
    if flat.shape[0] in rows and flat.shape[1] > 1:
        return flat
    # Layers of torch hold [out, in]; only operators taken from a graph may hold [in, out].
    known = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return flat.t().contiguous() if not known and flat.shape[1] in rows and flat.shape[0] > 1 else None


def _order(subject: Subject, found: list[_Candidate], ctx: Context) -> list[str]:
    """Names of the candidates in the order in which a pass goes through them."""
    modules = dict(subject.module.named_modules())
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: seen.append(name)

    device = next((t.device for t in subject.module.state_dict().values()), torch.device("cpu"))
    discrete = subject.modality.name == "text"
    blank = torch.zeros(1, *subject.input_shape, device=device, dtype=torch.long if discrete else torch.float32)
    with ExitStack() as hooks, torch.no_grad():
        for candidate in found:
            hooks.callback(modules[candidate.layer].register_forward_hook(note(candidate.layer)).remove)
        ctx.spend(1, backward=False)
        subject.outputs(blank)
    return seen
