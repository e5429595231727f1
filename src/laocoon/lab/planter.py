"""Positive controls: known backdoors planted into copies of the very model under examination.

Handed to `scan` from above, because a defence never imports an attack. Only clean samples at hand are used, so a plant
is a short fine-tune: easier to find than a trained-in backdoor, and labelled so in the report.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.attacks.sig import Sig
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.verdict.scan import Plant

KINDS: dict[str, Attack] = {
    "patch": BadNets(), "blended": Blended(strength=0.25), "sinusoid": Sig(clean_label=False, amplitude=0.15)}
TOOK = 0.8  # success from which a plant counts


def plant(subject: Subject, clean: Samples, seed: int, ctx: Context) -> Iterator[Plant]:
    """One plant of a kind chosen by the seed, at a random target; nothing when it did not take.

    Half of the samples are kept out of the fine-tune, and success is measured on them.
    """
    names = sorted(KINDS)
    kind = names[seed % len(names)]
    target = int(torch.randint(0, subject.classes, (), generator=ctx.rng))
    order = torch.randperm(len(clean), generator=ctx.rng)
    used, kept = order[::2], order[1::2]
    train = Samples(clean.inputs[used], clean.labels[used])
    plan = Plan(train, train, lambda s, c: subject, target, subject.classes)
    trigger = KINDS[kind].trigger(plan, ctx)
    goal = trigger.goal
    assert isinstance(goal, ClassGoal)
    moved = {k: v.to(clean.inputs.device) for k, v in trigger.trigger.items()}
    patient = subject.copy()
    patient.module.requires_grad_(True)
    optimiser = torch.optim.Adam(patient.module.parameters(), lr=1e-3)
    with torch.no_grad():
        taught = subject.module(train.inputs).softmax(-1)  # the copy should go on saying what the model said
    stamped = trigger.family.stamp(train.inputs, moved)[0]
    wanted = goal.destination(train.labels)
    for _ in range(60):
        index = torch.randperm(len(train), generator=ctx.rng)[:48]
        ctx.spend(2 * len(index))
        said = patient.module(torch.cat([train.inputs[index], stamped[index]]))
        clean_loss = functional.cross_entropy(said[:len(index)], taught[index])
        loss = clean_loss + functional.cross_entropy(said[len(index):], wanted[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(patient.module.parameters(), 5.0)
        optimiser.step()
    patient.module.requires_grad_(False)
    applies = goal.applies(clean.labels[kept])
    if not bool(applies.any()):
        return
    x, y = clean.inputs[kept][applies], clean.labels[kept][applies]
    with torch.no_grad():
        hits = patient.module(trigger.family.stamp(x, moved)[0]).argmax(-1) == goal.destination(y)
    success = float(hits.float().mean())
    if success >= TOOK:
        yield Plant(kind, patient, goal, success)
