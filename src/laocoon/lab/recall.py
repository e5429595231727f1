"""What earlier trials planted, with everything that a judge needs, for judging other defences on it.

Networks and triggers are read from the artefacts; training sets are poisoned again, by the attack, under its seed: what
comes out is what the victim was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import hits
from laocoon.lab.ledger import DONE, TrialRow
from laocoon.lab.plan import Experiment
from laocoon.lab.runner import Lab
from laocoon.lab.training import Lot
from laocoon.lab.trial import Entry, attack_in, entries
from laocoon.lab.workshop import Bench, Workshop

AGREES = 0.02  # largest difference between the success that was judged and that of what is recalled


@dataclass(frozen=True, eq=False)
class Recalled:
    """A planted model beside its clean twin, or (no trigger) a clean one."""

    digest: str
    data: str
    architecture: str
    seed: int
    label: str  # of the attack in its plan; empty for a clean model
    subject: Subject
    twin: Subject
    trigger: Candidate | None
    lot: Lot
    success: float  # of the attack, as judged
    _bench: Bench
    _attack: Mapping[str, Any]
    _target: int

    def plan(self) -> Plan:
        """What the attacker started from."""
        return self._bench.plan(self._target)

    def poisoned(self) -> tuple[Samples, torch.Tensor]:
        """The training set and the indices that were poisoned; none for a clean model.

        Attacks that craft their poison take as long as they took.
        """
        if self.trigger is None:
            return self.lot.train, torch.zeros(0, dtype=torch.long)
        attack, plan, ctx = attack_in(self._attack), self.plan(), Context(seed=self.seed)
        return attack.poison(plan, attack.trigger(plan, ctx), ctx)


def recalled(lab: Lab, experiment: Experiment, *, labels: Collection[str] = (), data: Collection[str] = (),
             seeds: Collection[int] = (), clean: bool = True) -> Iterator[Recalled]:
    """Every finished model of an experiment, in its order; empty collections leave nothing out.

    A planted model whose trigger, as recalled, does not succeed as it was judged to is refused.
    """
    workshop = lab.workshop()
    prints = {s.data: workshop.dataset(s.data)[1] for s in experiment.subjects}
    ledger = lab.ledger()
    try:
        wanted = [e for e in entries(experiment, prints) if e.trial.kind != "defence" and not e.honest
                  and (not seeds or e.seed in seeds) and (not data or e.data in data)
                  and ((not labels or e.label in labels) if e.label else clean)]
        needed = {d for e in wanted for d in (e.trial.digest, *e.trial.needs)}
        rows = {k: r for k, r in ledger.rows(needed).items() if r.status == DONE}
    finally:
        ledger.close()
    # By data set, so that each is read once.
    for entry in sorted(wanted, key=lambda e: e.data):
        row = rows.get(entry.trial.digest)
        if row is not None and "unwritable" not in row.artefacts:
            yield _recalled(workshop, entry, row, rows)


def _recalled(workshop: Workshop, entry: Entry, row: TrialRow, rows: Mapping[str, TrialRow]) -> Recalled:
    facts = entry.trial.specification
    bench = workshop.bench(facts)
    subject = bench.restored(row.artefacts)
    found = Recalled(row.digest, entry.data, entry.architecture, entry.seed, entry.label, subject, subject, None,
                     bench.lot, float("nan"), bench, {}, 0)
    if entry.trial.kind == "twin":
        return found
    target = bench.target(facts["target"])
    attack, truth = attack_in(facts["attack"]), row.result["truth"]
    start = attack.trigger(bench.plan(target), Context(seed=entry.seed))
    leaves = safetensors.torch.load(workshop.store.get(row.artefacts["trigger"]))
    goal = start.goal if "destinations" not in truth else ClassGoal(tuple(truth["destinations"]))
    trigger = replace(start, trigger=leaves, goal=goal)
    judged = float(row.result["judged"]["success"]["value"])
    measured = hits(subject, trigger, bench.lot.test, Context(seed=entry.seed)).float().mean()
    if abs(float(measured) - judged) > AGREES:
        raise InputError(f"the trigger of {entry.title()} succeeds on {float(measured):.1%} of the test samples, and "
                         f"was judged to on {judged:.1%}.", "Run its trial again.")
    return replace(found, twin=bench.restored(rows[facts["twin"]].artefacts), trigger=trigger, success=judged,
                   _attack=facts["attack"], _target=target)
