"""How the layers of a network are wired, read off the graph that one differentiable pass leaves behind.

What autograd writes down is the same whatever file a network came from: ONNX, TorchScript, torch.export or a module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

# Operators that autograd calls by these names, without the digit behind them.
LEARNED = ("ConvolutionBackward", "MkldnnConvolutionBackward", "AddmmBackward", "MmBackward", "LinearBackward")
PRODUCTS = ("BmmBackward", "MmBackward", "BaddbmmBackward")
MIXES, SIDES = ("AddBackward", "SubBackward", "MulBackward"), ("CatBackward", "StackBackward")
FAILS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError)
OPAQUE = ("DifferentiableGraph", "CompiledFunction", "Checkpoint")  # what happens inside is not written down


def branching(module: nn.Module, shape: tuple[int, ...]) -> bool | None:
    """Does a value take more than one way through the layers, or does a layer look at single channels?

    True for skip connections, branches that are joined, attention, and grouped or depthwise convolutions; False for a
    chain of layers; None where the graph hides something or there is none. Activations and normalisations that are
    written out with several operators are no branches: both of their ways have passed the same number of layers.

    Args:
        module: maps [n, *shape] to [n, ...]; one pass of one sample of zeros is made.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    sample = torch.zeros(1, *shape, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            output = module(sample)
    except FAILS:
        return None
    if not isinstance(output, Tensor) or output.grad_fn is None:
        return None
    depths: dict[Any, int] = {}  # most layers between the input and a node's result; absent: does not depend on it
    found = False
    for node in _in_order(output.grad_fn):
        name = type(node).__name__.rstrip("0123456789")
        if isinstance(node, BackwardCFunction) or name.startswith(OPAQUE):
            return None
        if getattr(node, "variable", None) is sample:
            depths[node] = 0
            continue
        before = {n: depths[n] for n, _ in node.next_functions if n in depths}
        if not before:
            continue
        deepest = max(before.values())
        attends = (name in PRODUCTS and len(before) > 1) or "Attention" in name
        joins = (name in MIXES + SIDES and len(set(before.values())) > 1) or (
            name in SIDES and len(before) > 1 and deepest > 0)
        found = found or attends or joins or getattr(node, "_saved_groups", 1) > 1
        depths[node] = deepest + (name in LEARNED or attends)
    return found if output.grad_fn in depths else None


def _in_order(last: Any) -> Iterator[Any]:
    """Every node after those that it needs, without recursion: networks are deep."""
    seen, pending = set(), [(last, False)]
    while pending:
        node, ready = pending.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending += [(n, False) for n, _ in node.next_functions if n is not None and n not in seen]
