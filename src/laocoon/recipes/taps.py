"""Pooled states of several layers, read in the very pass that makes the answer.

A state is the input of a layer with weights, or at the end the logits, reduced to the mean and the deviation of each
channel over all places (a vector stays as it is). Hooks hang on a shadow of the network for good and write to the
thread that asked, so that several threads may ask at once and nothing can be left behind on the model that others use.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.recipes.shadow import shadow

PLACES = 1024  # about so many of a large map are read, evenly spread: time grows with them, what they say does not
PROBE = 3  # an unlikely size of anything but the batch


@dataclass(frozen=True, eq=False)
class Reading:
    """What a batch did to the network. The states of all layers stand side by side: small tensors cost time each."""

    whole: Tensor  # [batch, width of all layers]
    logits: Tensor  # [batch, classes]
    columns: tuple[Tensor, ...]  # of `whole`, for each layer in order of execution, the logits last

    @property
    def states(self) -> tuple[Tensor, ...]:
        """One for each layer, [batch, width]."""
        return tuple(self.whole[:, index] for index in self.columns)

    def rows(self, index: Tensor) -> Reading:
        return Reading(self.whole[index], self.logits[index], self.columns)


def joined(parts: list[Reading]) -> Reading:
    """Readings of parts of a batch, put together."""
    return Reading(torch.cat([p.whole for p in parts]), torch.cat([p.logits for p in parts]), parts[0].columns)


@dataclass(frozen=True)
class Place:
    """The input of one call of one layer."""

    layer: str
    call: int
    last: bool  # channels are on the last axis


class _Pass(threading.local):
    """What the pass of this thread has seen; None outside a pass, when hooks look away."""

    states: dict[Place, tuple[Tensor, ...]] | None = None
    calls: dict[str, int]


@dataclass(frozen=True, eq=False)
class Tap:
    """A network that tells its states beside its answer."""

    network: nn.Module
    places: tuple[Place, ...]
    _now: _Pass = field(default_factory=_Pass)

    @torch.no_grad()
    def read(self, batch: Tensor) -> Reading:
        """One forward pass."""
        now = self._now
        now.states, now.calls = {}, {}
        try:
            logits: Tensor = self.network(batch)
            seen = now.states
        finally:
            now.states = None
        if len(seen) != len(self.places):
            raise NotApplicable("the network took another path through its layers than it did when it was fitted.")
        return assembled([seen[place] for place in self.places], logits.float())

    def read_all(self, inputs: Tensor, ctx: Context) -> Reading:
        """Many samples, in chunks, paid for."""
        parts = []
        for chunk in inputs.split(ctx.batch):
            ctx.spend(len(chunk), backward=False)
            parts.append(self.read(chunk))
        return joined(parts)


def tap(subject: Subject, example: Tensor, ctx: Context, most: int) -> Tap:
    """A tap on the inputs of at most `most` layers with weights; the last is always there.

    Evenly over the last three quarters of the depth: the first layers have the largest maps, and least to say.
    """
    if Capability.FEATURES not in subject.capabilities:
        raise NotApplicable("the subject does not expose its features.")
    network = shadow(subject.module)
    found = _found(network, example[torch.arange(PROBE) % len(example)], ctx)
    if not found:
        raise NotApplicable("the network has no hidden layer whose input could be read.")
    steps = torch.linspace(len(found) // 4, len(found) - 1, min(most, len(found))).round().long().tolist()
    places = tuple(found[step] for step in dict.fromkeys(steps))
    made = Tap(network, places)
    layers = dict(network.named_modules())
    for name in {place.layer for place in places}:
        layers[name].register_forward_pre_hook(_hook(made._now, name, {p.call: p for p in places if p.layer == name}))
    return made


def _hook(now: _Pass, name: str, wanted: dict[int, Place]) -> Any:
    def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if now.states is None:
            return
        call = now.calls[name] = now.calls.get(name, -1) + 1
        place = wanted.get(call)
        if place is not None and inputs and isinstance(inputs[0], Tensor):
            now.states[place] = moments(inputs[0], place.last)

    return look


def moments(tensor: Tensor, last: bool) -> tuple[Tensor, ...]:
    """Mean and mean square over all places, [batch, channels] each; a vector alone stays as it is."""
    if tensor.dim() == 2:
        return (tensor.float(),)
    if tensor.dim() == 4 and not last:
        stride = max(1, math.isqrt(tensor.shape[2] * tensor.shape[3] // PLACES))
        if stride > 1:
            tensor = tensor[:, :, ::stride, ::stride]
    places = tuple(range(1, tensor.dim() - 1)) if last else tuple(range(2, tensor.dim()))
    tensor = tensor.float()
    return tensor.mean(places), tensor.square().mean(places)  # several times faster than var_mean


def assembled(parts: list[tuple[Tensor, ...]], logits: Tensor) -> Reading:
    """A reading of the moments of each layer: means stay, mean squares become deviations."""
    wide = [part for part in parts if len(part) == 2]
    vectors = [part[0] for part in parts if len(part) == 1]
    pieces = [*vectors, logits]
    if wide:
        mean, square = torch.cat([m for m, _ in wide], 1), torch.cat([s for _, s in wide], 1)
        pieces = [mean, torch.addcmul(square, mean, mean, value=-1).clamp_min_(0).sqrt_(), *pieces]
    return Reading(torch.cat(pieces, 1), logits, _columns(tuple((len(p), p[0].shape[1]) for p in parts),
                                                          logits.shape[1], logits.device))


@lru_cache(maxsize=64)
def _columns(kinds: tuple[tuple[int, int], ...], classes: int, device: torch.device) -> tuple[Tensor, ...]:
    """Where the numbers of each layer are, from how many moments it has and of what width."""
    total = sum(width for count, width in kinds if count == 2)
    wide, narrow, found = 0, 2 * total, []
    for count, width in kinds:
        if count == 2:
            own = torch.arange(wide, wide + width)
            found.append(torch.cat([own, own + total]))
            wide += width
        else:
            found.append(torch.arange(narrow, narrow + width))
            narrow += width
    found.append(torch.arange(narrow, narrow + classes))
    return tuple(index.to(device) for index in found)


def _found(network: nn.Module, probe: Tensor, ctx: Context) -> list[Place]:
    """Inputs of layers with weights that hold one tensor a sample, without those that read the same tensor again."""
    found: list[Place] = []
    calls: dict[str, int] = {}
    kept: list[Tensor] = []  # also keeps addresses from being used again during the pass

    def hook(name: str) -> Any:
        def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            x = inputs[0] if inputs else None
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) != PROBE:
                return
            if any(x.data_ptr() == other.data_ptr() for other in kept):
                return
            kept.append(x)
            found.append(Place(name, call, "Conv" not in type(layer).__name__))

        return look

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in network.named_modules()
               if name and not any(True for _ in layer.children())
               and any(t.dim() >= 2 and t.is_floating_point()
                       for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))]
    try:
        ctx.spend(PROBE, backward=False)
        with torch.no_grad():
            network(probe)
    finally:
        for handle in handles:
            handle.remove()
    return found[1:] if len(found) > 1 else found  # the first reads the picture itself, normalised or not
