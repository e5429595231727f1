"""What attackers who control training need: the victim's loop with an objective of their own, and a network that
can be looked at in the midst of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.recipes.fit import Objective, fit, shift_and_flip


def steer(subject: Subject, plan: Plan, train: Samples, objective: Objective, ctx: Context, *, epochs: int,
          rate: float = 3e-3, others: Sequence[torch.optim.Optimizer] = (), start: float = 0.1) -> None:
    """Train the subject in place by the attacker's objective (see `fit`).

    Inputs are augmented as the victim does (`Plan.augment`), or by a shift of 1 px. What an objective does beside its
    return value (a discriminator's own step) is its own business.
    """
    def spent(inputs: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        ctx.spend(len(inputs))
        return objective(inputs, labels, index)

    fit(subject.module, train.inputs, train.labels, epochs=epochs, rng=ctx.rng, rate=rate, others=others, start=start,
        batch=min(128, max(16, len(train) // 16)), augment=lambda x: augmented(plan, x, ctx), objective=spent,
        after=lambda share: ctx.progress("training", share, ""))


def augmented(plan: Plan, inputs: Tensor, ctx: Context) -> Tensor:
    """A batch as the victim's recipe varies it, or moved by up to 1 px."""
    if plan.augment is not None:
        inputs = plan.augment(inputs, ctx)
    elif inputs.dim() == 4:
        inputs = shift_and_flip(inputs, ctx.rng, shift=1, flip=False)
    return inputs


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
