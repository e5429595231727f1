"""A twin of a network that shares its numbers: layers of its own to hang hooks on or to change, the same weights.

A guard stands beside a model that others use at the same time. Hooks on the model itself would be called by
everybody's passes and could be left behind by an exception; hooks on a shadow can do neither. A shadow costs the
memory of the layers' names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from laocoon.core.errors import NotApplicable


def shadow(module: nn.Module, own: Callable[[nn.Module], bool] = lambda layer: False) -> nn.Module:
    """A copy in evaluation mode, without gradients, whose tensors lie in the same memory.

    Hooks that the model already has belong to it and are copied.

    own: layers whose tensors are copied instead, so that they can be changed.
    """
    kept: set[int] = set()
    for layer in module.modules():
        if own(layer):
            kept |= {id(tensor) for tensor in _tensors(layer)}
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for tensor in _tensors(layer):
            if id(tensor) not in kept:
                shared = tensor.detach()
                memo[id(tensor)] = (nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter)
                                    else shared)
    try:
        twin = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, NotImplementedError) as error:  # a layer that holds a lock, a file, a process
        raise NotApplicable(f"the model cannot be copied ({type(error).__name__}).") from None
    return twin.eval().requires_grad_(False)


def _tensors(layer: nn.Module) -> Iterable[torch.Tensor]:
    yield from (p for p in layer.parameters(recurse=False))
    yield from (b for b in layer.buffers(recurse=False))
