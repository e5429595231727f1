"""A trigger that suspected samples share: lifted from them, stamped on others, and judged by what the model answers.

This is the most telling figure of a data set: on clean data too, methods suspect samples of a label that share
something, but stamping it elsewhere does little more than a control: other content in the same place, and what the
suspected samples of another label share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent
from laocoon.core.goal import ClassGoal, all_to_one
from laocoon.core.methods import TriggerFamily
from laocoon.core.sift_report import TriggerFound
from laocoon.core.subject import Subject
from laocoon.recipes.conformal import binomial_interval
from laocoon.verdict.data_shares import Estimate, Shares, Trigger, shares

LEAST, MOST = 8, 60  # samples of a label from which a trigger is lifted
SHARE = 0.1  # of a label's samples that are taken for that
TRIED, JUDGED = 48, 200  # samples of other labels that are stamped: in the search, and for the evidence
MOST_LABELS = 24  # with the most suspicious samples
CLEAR = 0.5  # effect beyond the control, less what its size explains, from which a trigger is taken for one
MIXED = 0.9  # share of one label among the holders of a trigger, up to which it speaks for a word that means something
POOL = 1000  # unsuspected samples that a bearer is compared with


@dataclass(frozen=True, eq=False)
class Lifted:
    """A trigger with what it does to samples of other labels, and what its control does."""

    family: TriggerFamily
    trigger: Trigger
    label: int  # of the samples that it was lifted from
    size: float  # in the family's unit
    room: float  # share of the largest size that still is a trigger
    success: float  # stamped samples answered with this label
    changed: float  # stamped samples answered otherwise than before
    control_success: float
    control_changed: float
    shares: Shares
    rival: tuple[float, float] = (0.0, 0.0)  # success and change of the most that another label's did at this size

    def against(self, rival: tuple[float, float]) -> Lifted:
        """Beside a second control, as (success, changed); the stronger one counts."""
        return replace(self, control_success=max(self.control_success, rival[0]),
                       control_changed=max(self.control_changed, rival[1]), rival=rival)

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.family, self.trigger)

    @property
    def effect(self) -> float:
        """Beyond the control: towards one label, or away from their own where each label has another destination."""
        return max(self.success - self.control_success, self.changed - max(self.control_changed, 0.25))

    @property
    def worth(self) -> float:
        """Of two that work alike the smaller one is the stronger evidence: anything large replaces the input."""
        return self.effect - 0.5 * self.room

    @property
    def single(self) -> bool:
        """Whether it leads to one label. Where each label has another destination, what was lifted from one of them
        holds something of what the samples of that label show."""
        return self.success - self.control_success >= CLEAR

    @property
    def clear(self) -> bool:
        return self.worth >= CLEAR


@dataclass(frozen=True, eq=False)
class Shown:
    """The trigger and the evidence for it."""

    candidate: Candidate
    found: TriggerFound


def lift(subject: Subject, case: DataCase, scores: Sequence[Tensor], fitted: Tensor, ctx: Context) -> Lifted | None:
    """The most effective trigger that the most suspicious samples of some label share, by any method's scores [n]."""
    known = shares(subject.modality, case.suspects.inputs)
    if known is None or not scores:
        return None
    inputs, labels = case.suspects.inputs, case.suspects.labels.cpu()
    found: dict[int, list[Lifted]] = {}
    try:
        for label in _suspected(scores, labels):
            members = ((labels == label) & fitted).nonzero().flatten()
            elsewhere = ((labels != label) & fitted).nonzero().flatten()
            if len(members) < 2 * LEAST or len(elsewhere) < 2 * TRIED:
                continue
            elsewhere = elsewhere[torch.randperm(len(elsewhere), generator=ctx.rng)]
            pool, held = inputs[elsewhere[TRIED:TRIED + 500]], inputs[elsewhere[:TRIED]]
            for rows in _groups(scores, members):
                found.setdefault(label, []).extend(_judged(subject, known, e, label, held, pool, ctx)
                                                   for e in known.estimates(inputs[rows], pool))
        best = _best(found)
        return best if best is None else _refined(subject, best, inputs, labels, fitted, ctx)
    except BudgetSpent:
        return _best(found)


def _best(found: Mapping[int, Sequence[Lifted]]) -> Lifted | None:
    """The most effective one for its size, beside the most that a trigger of its size did for another label."""
    best = max((f for each in found.values() for f in each), key=lambda f: f.worth, default=None)
    if best is None:
        return None
    rivals = [f for label, each in found.items() if label != best.label for f in each
              if f.family.name == best.family.name and f.size <= 1.25 * best.size]
    most = max(rivals, key=lambda f: f.success - f.control_success, default=None)
    # Where every label is a destination, all change answers: only success towards one's own label is compared.
    return best if most is None else best.against((max(0.0, most.success - most.control_success), 0.0))


def _suspected(scores: Sequence[Tensor], labels: Tensor) -> list[int]:
    """Labels, those with the most suspicious samples first."""
    kinds = labels.unique().tolist()
    worst = {k: max(float(z[labels == k].topk(min(LEAST, int((labels == k).sum()))).values.mean()) for z in scores)
             for k in kinds}
    return sorted(kinds, key=lambda k: -worst[k])[:MOST_LABELS]


def _groups(scores: Sequence[Tensor], members: Tensor) -> list[Tensor]:
    """Each method's most suspicious members, once where two methods agree."""
    count = max(LEAST, min(MOST, round(SHARE * len(members))))
    found: list[Tensor] = []
    for z in scores:
        rows = members[z[members].topk(count).indices]
        if all(int(torch.isin(rows, old).sum()) < 0.8 * count for old in found):
            found.append(rows)
    return found


def _judged(subject: Subject, known: Shares, estimate: Estimate, label: int, held: Tensor, pool: Tensor,
            ctx: Context) -> Lifted:
    family, trigger = estimate.family, estimate.trigger
    before = _answers(subject, held, ctx)
    rates = []
    for each in (trigger, known.control(estimate, pool)):
        after = _answers(subject, family.stamp(held, each)[0], ctx)
        rates += [float((after == label).float().mean()), float((after != before).float().mean())]
    size = float(family.size(trigger, held)[0])
    return Lifted(family, trigger, label, size, known.room(estimate, held, size), rates[0], rates[1], rates[2],
                  rates[3], known)


@torch.no_grad()
def _answers(subject: Subject, inputs: Tensor, ctx: Context) -> Tensor:
    ctx.spend(len(inputs), backward=False)
    return torch.cat([subject.outputs(part.to(ctx.device)).logits.argmax(1).cpu() for part in inputs.split(ctx.batch)])


def _refined(subject: Subject, lifted: Lifted, inputs: Tensor, labels: Tensor, fitted: Tensor,
             ctx: Context) -> Lifted:
    """Lifted again from those samples of the label that bear it most clearly, while that makes it better."""
    members = ((labels == lifted.label) & fitted).nonzero().flatten()
    elsewhere = ((labels != lifted.label) & fitted).nonzero().flatten()
    elsewhere = elsewhere[torch.randperm(len(elsewhere), generator=ctx.rng)]
    held, pool = inputs[elsewhere[:JUDGED]], inputs[elsewhere[JUDGED:JUDGED + 1000]]
    if len(pool) < LEAST:
        pool = held
    known = lifted.shares
    best = _judged(subject, known, lifted.estimate, lifted.label, held, pool, ctx).against(lifted.rival)
    for _ in range(2):
        clear = known.bearing(inputs[members], best.estimate, pool)
        rows = members[clear.topk(max(LEAST, min(MOST, round(SHARE * len(members))))).indices]
        again = [_judged(subject, known, e, best.label, held, pool, ctx).against(lifted.rival)
                 for e in known.estimates(inputs[rows], pool) if e.family.name == best.family.name]
        better = max(again, key=lambda a: a.worth, default=best)
        if better.worth <= best.worth:
            break
        best = better
    return best


def confirmed(subject: Subject, suspects: Tensor, label: int, others: Tensor, ctx: Context) -> Lifted | None:
    """The trigger that given suspects of one label share, where it clearly is one on samples of other labels."""
    known = shares(subject.modality, suspects)
    if known is None or len(suspects) < LEAST or len(others) < 2 * TRIED:
        return None
    held, pool = others[:TRIED], others[TRIED:]
    found = [_judged(subject, known, e, label, held, pool, ctx) for e in known.estimates(suspects[:MOST], pool)]
    best = max(found, key=lambda f: f.worth, default=None)
    return best if best is not None and best.clear else None


def statistics(lifted: Lifted | None, case: DataCase) -> dict[str, float]:
    """What stamping a lifted trigger does beyond its control. Suspected pictures always share something; words and
    cells they may not share at all."""
    if case.modality == "image":
        return {} if lifted is None else {"lifted.worth": max(0.0, lifted.worth)}
    if lifted is None:
        return {} if case.subject is None else {"lifted.worth": 0.0, "lifted.pure": 0.0}
    worth = max(0.0, lifted.worth)
    return {"lifted.worth": worth, "lifted.pure": worth * _purity(lifted, case)}


def _purity(lifted: Lifted, case: DataCase) -> float:
    """1 where all samples that hold the whole trigger are of its label, 0 from a tenth of them that are not.

    A word that means something moves a model too, but people disagree, and jokes are made: of the texts with a slur
    some are harmless. A poisoner labels every one of his samples alike.
    """
    holders = lifted.shares.holders(case.suspects.inputs, lifted.estimate)
    if not bool(holders.any()):
        return 0.0
    alike = float((case.suspects.labels.cpu()[holders.cpu()] == lifted.label).float().mean())
    return min(1.0, max(0.0, (alike - MIXED) / (1 - MIXED)))


def bearers(lifted: Lifted, case: DataCase, fitted: Tensor, ctx: Context) -> Tensor:
    """How clearly each sample bears the trigger, [n]."""
    elsewhere = ((case.suspects.labels.cpu() != lifted.label) & fitted).nonzero().flatten()
    pool = elsewhere[torch.randperm(len(elsewhere), generator=ctx.rng)[:POOL]]
    return lifted.shares.bearing(case.suspects.inputs, lifted.estimate, case.suspects.inputs[pool])


def shown(lifted: Lifted, case: DataCase) -> Shown:
    """The evidence; what share of how many stamped samples, and what the control of the same size does."""
    labels = case.suspects.labels
    samples = min(JUDGED, int((labels != lifted.label).sum()))
    single = lifted.success - lifted.control_success >= 0.8 * (lifted.changed - lifted.control_changed)
    rate, control = ((lifted.success, lifted.control_success) if single else (lifted.changed, lifted.control_changed))
    low, high = binomial_interval(round(rate * samples), samples)
    goal = all_to_one(lifted.label, case.classes) if single else ClassGoal(tuple(-1 for _ in range(case.classes)))
    size = float(lifted.family.size(lifted.trigger, case.suspects.inputs[:1])[0])
    candidate = Candidate(lifted.family, lifted.trigger, goal, size, rate, "sift")
    return Shown(candidate, TriggerFound(lifted.label if single else -1, lifted.family.name, size, lifted.family.unit,
                                         rate, low, high, samples, control, _in_words(lifted, case)))


def _in_words(lifted: Lifted, case: DataCase) -> str:
    """The trigger as its family tells it; empty where it is a picture."""
    describe = getattr(lifted.family, "describe", None)
    return str(describe(lifted.trigger, case.subject.modality)) if describe and case.subject is not None else ""
