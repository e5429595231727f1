"""Further training of a network that is there already: fine-tuning, distillation, a new head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.context import Context, governed
from laocoon.core.errors import NotApplicable


def tune(module: nn.Module, inputs: Tensor, wanted: Tensor, ctx: Context, *, epochs: int, rate: float, batch: int = 64,
         method: Literal["sgd", "adam"] = "sgd", only: Sequence[nn.Parameter] | None = None,
         temperature: float = 1.0) -> None:
    """Train in place on inputs [n, …] towards labels [n] or a teacher's logits [n, classes].

    only: the parameters that may change (then the network stays in eval mode, statistics and all). Against logits, the
    loss is the cross entropy of both softmaxes at the temperature, times its square (Hinton et al., 2015).
    """
    n = len(inputs)
    if n < 2:
        raise NotApplicable(f"{n} clean samples are too few to train on.")
    module.requires_grad_(only is None)
    module.train(only is None)
    parameters = [p for p in module.parameters() if p.is_floating_point()] if only is None else list(only)
    for parameter in parameters:
        parameter.requires_grad_(True)
    if not parameters:
        raise NotApplicable("the network has no weights to train.")
    optimiser: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4) if method == "sgd" else
        torch.optim.AdamW(parameters, lr=rate, weight_decay=5e-4))
    steps = max(1, n // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    with governed(ctx.rng):
        for _ in range(epochs):
            order = torch.randperm(n, generator=ctx.rng).to(inputs.device)
            for step in range(steps):
                index = order[step * batch:(step + 1) * batch]
                ctx.spend(len(index))
                logits, goal = module(inputs[index]) / temperature, wanted[index]
                if goal.is_floating_point():
                    goal = (goal / temperature).softmax(-1)
                loss = functional.cross_entropy(logits, goal) * temperature**2
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimiser.step()
                schedule.step()
    module.eval()
    module.requires_grad_(False)


def renew(module: nn.Module, rng: torch.Generator, keep: Sequence[Tensor] = ()) -> None:
    """Draw all weights anew, in place, but those to keep.

    Layers draw theirs as they do when they are made. What belongs to no such layer (a graph's constants, a token of a
    transformer) is drawn from a normal of its own mean and spread.
    """
    kept = [(p, p.detach().clone()) for p in keep]
    drawn: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        for layer in module.modules():
            reset_layer = getattr(layer, "reset_parameters", None)
            if callable(reset_layer):
                reset_layer()
                drawn |= {id(t) for t in layer.parameters(recurse=False)}
        for loose in module.parameters():
            if id(loose) not in drawn and loose.is_floating_point() and loose.numel() > 1:
                loose.copy_(loose.mean() + loose.std() * torch.randn(loose.shape).to(loose))
        for parameter, value in kept:
            parameter.copy_(value)
