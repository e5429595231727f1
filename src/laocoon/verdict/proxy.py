"""The model that the methods look into where the user has none: trained on the suspects, as a victim would."""

from __future__ import annotations

from collections.abc import Callable

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit, shift_and_flip

SEEN = 80_000  # samples that a proxy is trained on in all
FEWEST, MOST = 5, 45  # epochs
RATE = 3e-3  # peak learning rate


def epochs_for(samples: int) -> int:
    return max(FEWEST, min(MOST, SEEN // max(1, samples)))


def train_proxy(untrained: Callable[[Context], Subject], suspects: Samples, ctx: Context,
                epochs: int | None = None) -> Subject:
    """A new network trained on the suspects: poison, wrong labels and all."""
    subject = untrained(ctx).copy()
    count = epochs or epochs_for(len(suspects))
    ctx.spend(count * len(suspects))
    side = min(suspects.inputs.shape[-2:]) if suspects.inputs.dim() == 4 else 0  # only pictures can be moved a little
    module = subject.module.to(ctx.device)
    fit(module, suspects.inputs, suspects.labels, epochs=count, rng=ctx.rng, rate=RATE,
        augment=(lambda x: shift_and_flip(x, ctx.rng, shift=max(1, side // 16), flip=False)) if side else None,
        after=lambda share: ctx.progress("training a proxy", share, ""))
    return subject.to(ctx.device)
