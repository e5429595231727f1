"""The gradient of a two-level problem: the outer variables move, and the inner solution moves with them.

    minimise over θ  L(δ*(θ), θ)   where  δ* is a fixed point of  Φ(δ, θ)
    dL/dθ = ∂L/∂θ + (∂Φ/∂θ)ᵀ v,   v = (I − ∂Φ/∂δ)⁻ᵀ ∂L/∂δ,   found by  v ← (∂Φ/∂δ)ᵀ v + ∂L/∂δ

Grazzi et al., On the Iteration Complexity of Hypergradient Computation (ICML 2020, arXiv 2006.16218).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hypergradient(outer: Tensor, inner: Tensor, delta: Tensor, weights: Sequence[Tensor], *,
                  iterations: int) -> list[Tensor]:
    """dL/dθ for every tensor of `weights`.

    outer: L(δ, θ), a scalar. inner: Φ(δ, θ), shaped like δ, with a graph through δ and θ that can be differentiated
    once more. iterations: of the fixed point; each costs a backward pass through `inner`.
    """
    found = torch.autograd.grad(outer, [delta, *weights], retain_graph=True, allow_unused=True)
    slope = torch.zeros_like(delta) if found[0] is None else found[0]
    v = slope
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(inner, [delta], grad_outputs=v, retain_graph=True, allow_unused=True)
        v = slope if pulled is None else pulled + slope
    indirect = torch.autograd.grad(inner, list(weights), grad_outputs=v, allow_unused=True)
    zero = [torch.zeros_like(w) for w in weights]
    return [z + (0 if a is None else a) + (0 if b is None else b)
            for z, a, b in zip(zero, found[1:], indirect, strict=True)]
