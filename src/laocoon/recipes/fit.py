"""The training loop, the victim's and the attacker's alike, and accuracy. Tensors in, weights changed in place.

An attacker who controls training changes the objective alone, what Bagdasaryan and Shmatikov (Blind backdoors, USENIX
Security 2021) call computing loss values under attack: data, optimiser and schedule are the victim's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.context import governed

Optimiser = Literal["adamw", "sgd"]
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # inputs [batch, …], labels [batch], their indices -> scalar


def shift_and_flip(inputs: Tensor, rng: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Random translation by up to `shift` pixels (edges repeated) and, optionally, mirroring, per batch sample."""
    n, _, h, w = inputs.shape
    if flip:
        mirror = torch.rand(n, generator=rng) < 0.5
        inputs = torch.where(mirror[:, None, None, None].to(inputs.device), inputs.flip(-1), inputs)
    if shift:
        padded = functional.pad(inputs, (shift,) * 4, mode="replicate")
        dy, dx = (torch.randint(0, 2 * shift + 1, (n, 1, 1), generator=rng) for _ in range(2))
        rows = (dy + torch.arange(h)[None, :, None]).to(inputs.device)
        columns = (dx + torch.arange(w)[None, None, :]).to(inputs.device)
        index = torch.arange(n, device=inputs.device)[:, None, None]
        inputs = padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)
    return inputs


def fit(module: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, rng: torch.Generator, batch: int = 128,
        rate: float = 2e-3, weight_decay: float = 5e-4, augment: Callable[[Tensor], Tensor] | None = None,
        objective: Objective | None = None, others: Sequence[torch.optim.Optimizer] = (), start: float = 0.3,
        after: Callable[[float], None] = lambda share: None, optimiser: Optimiser = "adamw",
        smoothing: float = 0.0) -> None:
    """Train a classifier with AdamW, or SGD with Nesterov's momentum, and a one-cycle schedule.

    Every sample is seen once an epoch, in shuffled order.

    inputs [n, channels, height, width], labels [n]; all in memory, where the module is. On a GPU the network runs in
    bfloat16; on a processor it does not, so that every machine trains the same network.

    objective: what an attacker who controls training minimises instead of the cross-entropy; `others` step along.
    start: share of the steps in which the learning rate rises. after: told the share done, once an epoch.
    smoothing: share of each label that goes to all classes alike, where there is no `objective`.
    """
    place = next(module.parameters()).device
    inputs, labels = inputs.to(place), labels.to(place)
    module.requires_grad_(True)
    n, steps = len(inputs), max(1, len(inputs) // batch)
    own: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay)
    if optimiser == "sgd":
        own = torch.optim.SGD(module.parameters(), lr=rate, weight_decay=weight_decay, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(own, max_lr=rate, total_steps=epochs * steps + 1, pct_start=start,
                                                   cycle_momentum=optimiser == "adamw")
    with governed(rng):
        for epoch in range(epochs):
            order = torch.randperm(n, generator=rng)
            for step in range(steps):
                index = order[step * batch:(step + 1) * batch]
                x, y = inputs[index.to(place)], labels[index.to(place)]
                if augment is not None:
                    x = augment(x)
                if x.dim() == 4:
                    x = x.contiguous(memory_format=torch.channels_last)
                module.train()  # each time: an objective may look at the network at rest
                with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
                    loss = (functional.cross_entropy(module(x), y, label_smoothing=smoothing) if objective is None else
                            objective(x, y, index))
                for each in (own, *others):  # gradients that an objective leaves in the network are dropped
                    each.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(module.parameters(), 5.0)
                for each in (own, *others):
                    each.step()
                schedule.step()
            after((epoch + 1) / epochs)
    module.eval()
    module.requires_grad_(False)


@torch.no_grad()
def predictions(module: Callable[[Tensor], Tensor], inputs: Tensor, batch: int = 512) -> Tensor:
    """Predicted classes, [n]."""
    return torch.cat([module(part).argmax(-1) for part in inputs.split(batch)])
