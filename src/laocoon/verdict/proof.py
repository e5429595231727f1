"""Show that a repaired model is rid of its backdoor, on samples that neither search, repair nor choice has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.context import Context
from laocoon.core.repaired import Rate, Reactivation, TriggerChange
from laocoon.core.subject import Subject
from laocoon.verdict.examination import Crash, attempted
from laocoon.verdict.portfolio import Suspect
from laocoon.verdict.residue import Split, meaningless, obeyed, rate, reactivated, residue
from laocoon.verdict.searches import search


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
            control_before=_obeyed(subject, control, parts, ctx), control_after=_obeyed(mended, control, parts, ctx),
            shown=in_words(candidate, subject)))
        found.append(again.candidate if again is not None else None)
        if control is None:
            root.spent += ctx.spent
            continue
        done = attempted(lambda c=candidate, m=control, x=ctx: reactivated(  # type: ignore[misc]
            mended, c, m, parts.fit, parts.prove, x))
        if not isinstance(done, Crash):
            reactivations.append(done)
        root.spent += ctx.spent
    return Proven(tuple(triggers), tuple(reactivations), tuple(found))


def _obeyed(model: Subject, control: Candidate | None, parts: Split, ctx: Context) -> Rate:
    """Of the control; of none where there is none."""
    hits = torch.zeros(0, dtype=torch.bool) if control is None else obeyed(model, control, parts.prove, ctx)
    return rate(hits)


def in_words(candidate: Candidate, subject: Subject) -> str:
    """The trigger as its family tells it; empty where it is a picture."""
    describe = getattr(candidate.family, "describe", None)
    return str(describe(candidate.trigger, subject.modality)) if describe is not None else ""
