"""Show that a repaired model is rid of its backdoor, on samples that neither search, repair nor choice has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.context import Context
from laocoon.core.repaired import Reactivation, TriggerChange
from laocoon.core.subject import Subject
from laocoon.recipes.reactivation import Shots, lesson, taught
from laocoon.verdict.examination import Crash, attempted
from laocoon.verdict.portfolio import Suspect
from laocoon.verdict.residue import Split, meaningless, obeyed, rate, residue, search


@dataclass(frozen=True, eq=False)
class Proven:
    """One change per suspect, and what a new search found on the result."""

    triggers: tuple[TriggerChange, ...]
    reactivations: tuple[Reactivation, ...]
    found: tuple[Candidate | None, ...]


def proven(subject: Subject, mended: Subject, suspected: Sequence[Suspect], parts: Split, root: Context) -> Proven:
    """Judge every suspect on the samples to prove with."""
    triggers, reactivations, found = [], [], []
    for number, suspect in enumerate(suspected):
        root.progress("proof", number / len(suspected), suspect.candidate.goal.describe())
        ctx = root.child(float("inf"), f"proof-{number}")
        candidate = suspect.candidate
        control = meaningless(candidate, ctx.rng)
        again = search(mended, candidate, parts.fit, ctx) if suspect.searched is not None else None
        triggers.append(TriggerChange(
            goal=candidate.goal.describe(), target_classes=tuple(getattr(candidate.goal, "targets", ())),
            family=candidate.family.name, method=candidate.method, size=candidate.size, unit=candidate.family.unit,
            before=residue(subject, candidate, parts.prove, ctx, suspect.searched),
            after=residue(mended, candidate, parts.prove, ctx, again),
            control_before=rate(obeyed(subject, control, parts.prove, ctx)),
            control_after=rate(obeyed(mended, control, parts.prove, ctx))))
        found.append(again.candidate if again is not None else None)
        done = attempted(lambda c=candidate, m=control, x=ctx: _reactivated(mended, c, m, parts, x))  # type: ignore[misc]
        if not isinstance(done, Crash):
            reactivations.append(done)
        root.spent += ctx.spent
    return Proven(tuple(triggers), tuple(reactivations), tuple(found))


def _reactivated(mended: Subject, candidate: Candidate, control: Candidate, parts: Split,
                 ctx: Context) -> Reactivation:
    """The same lesson twice, on the same samples: with the trigger, and with a meaningless one in its place.

    A clean model of the task, the control of the paper, is what a defender lacks; a trigger that the mended model
    never knew stands in for a model that never knew the trigger.
    """
    how, rates = Shots(), []
    seed = int(torch.randint(0, 2**31, (), generator=ctx.rng))
    for trigger in (candidate, control):
        own = Context(seed=seed, device=ctx.device)
        patient = taught(mended, lesson(trigger, parts.fit, own, how), own, how)
        rates.append(rate(obeyed(patient, trigger, parts.prove, own)))
        ctx.spent += own.spent
    return Reactivation(candidate.goal.describe(), how.shots, rates[0], rates[1])
