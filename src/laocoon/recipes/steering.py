"""The training loop of an attacker who controls training: the plain one of `fit`, with a loss of their own.

What Bagdasaryan and Shmatikov (Blind backdoors, USENIX Security 2021) call computing loss values under attack: data,
optimiser and schedule are the victim's, the objective is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.recipes.fit import shift_and_flip

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # inputs [batch, …], labels [batch], their indices -> scalar


def steer(subject: Subject, plan: Plan, train: Samples, objective: Objective, ctx: Context, *, epochs: int,
          rate: float = 3e-3, others: Sequence[torch.optim.Optimizer] = (), start: float = 0.1) -> None:
    """Train the subject in place, in shuffled batches, on the attacker's objective; `others` step along with it.

    Inputs are augmented as the victim does (`Plan.augment`), or by a shift of 1 px. `start`: share of the steps in
    which the learning rate rises. What an objective does beside its return value (a discriminator's own step) is its
    own business; gradients that it leaves in the network are dropped.
    """
    module, n = subject.module, len(train)
    batch = min(128, max(16, n // 16))
    steps = max(1, n // batch)
    module.requires_grad_(True)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=epochs * steps + 1,
                                                   pct_start=start)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=ctx.rng)
        for step in range(steps):
            index = order[step * batch:(step + 1) * batch]
            ctx.spend(len(index))
            module.train()
            loss = objective(_augmented(plan, train.inputs[index], ctx), train.labels[index], index)
            for each in (optimiser, *others):
                each.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            for each in (optimiser, *others):
                each.step()
            schedule.step()
        ctx.progress("training", (epoch + 1) / epochs, "")
    module.eval()
    module.requires_grad_(False)


def _augmented(plan: Plan, inputs: Tensor, ctx: Context) -> Tensor:
    if plan.augment is not None:
        inputs = plan.augment(inputs, ctx)
    elif inputs.dim() == 4:
        inputs = shift_and_flip(inputs, ctx.rng, shift=1, flip=False)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


@contextmanager
def settled(subject: Subject) -> Iterator[None]:
    """Within the block batch norms use their running statistics and leave them alone; gradients flow.

    For what is no sample of the data: a batch of one class, or of probes, would spoil the statistics of all.
    """
    subject.module.eval()
    try:
        yield
    finally:
        subject.module.train()


@contextmanager
def at_rest(subject: Subject) -> Iterator[None]:
    """Within the block the network is as others will see it: in evaluation mode, its weights without gradients."""
    subject.module.eval()
    subject.module.requires_grad_(False)
    try:
        yield
    finally:
        subject.module.requires_grad_(True)
        subject.module.train()


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Within the block the initial weights of new modules depend on `rng` alone; the global state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        yield
