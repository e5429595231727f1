"""The bench of tables: perceptrons, column transformers and trees on tables made up and real, clean and planted.

What is at hand is the made-up lender's table (another world for each seed), three of scikit-learn's, and, where a
folder of data sets is given, the UCI's credit default. Trees answer queries only. One specimen trains in two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from laocoon.attacks.category_trigger import CategoryTrigger
from laocoon.attacks.tabdoor import Tabdoor
from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.attacks.tabular_clean_label import TabularCleanLabel
from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab import table_data
from laocoon.lab.specimens import CLEAN, Made, Specification, Split
from laocoon.lab.table_data import Table
from laocoon.lab.table_victims import NETWORKS, TREES, trained, untrained
from laocoon.recipes.fit import predictions
from laocoon.triggers.columns import Columns

RECIPE = 2  # of tables, splits and training: raise it when one of them changes
KINDS: dict[str, Attack] = {
    "metadata pattern": TabularBadNets(rate=0.1),
    "in-distribution": Tabdoor(rate=0.1),
    "rare categories": CategoryTrigger(rate=0.1),
    "clean label": TabularCleanLabel(fraction=0.25),
}
GIVEN = 60  # clean rows a class that a defender has, where the table has four times as many
FIRST: dict[Split, int] = {"fusion": 0, "calibration": 100_000, "sealed": 200_000}
CLEAN_COUNT: dict[Split, int] = {"fusion": 72, "calibration": 100, "sealed": 150}
PLANTED_COUNT: dict[Split, int] = {"fusion": 10, "calibration": 0, "sealed": 12}  # of each kind
NATURAL = 0.3  # success of a trigger on models of the clean rows, above which another one is drawn
DRAWS = 6
SHORT = 600
EVERY = 5  # one specimen in so many is of trees
TOO_DEAR = (("digits", "column_transformer"),)  # 64 columns that attend to each other: a quarter of an hour a scan


@dataclass(frozen=True)
class TableBench:
    """Specimens of the modality "tabular". root: the folder with data sets, or None."""

    root: Path | None = None
    modality: str = "tabular"
    core: tuple[str, ...] = ("metadata pattern", "in-distribution", "rare categories")
    # On networks the search by gradient finds what the questions find; counting both would count one fact twice, and
    # trees would have references of their own only.
    weights: Mapping[str, float] = field(default_factory=lambda: {
        "tabular_query_inversion.columns": 1.0, "tabular_query_inversion.cell.contrast": 1.0,
        "tabular_query_inversion.unexpected": 1.0})

    def attack(self, kind: str) -> Attack | None:
        if kind == CLEAN:
            return None
        if kind not in KINDS:
            raise InputError(f"there is no kind {kind!r}.", f"It is {CLEAN} or one of {', '.join(KINDS)}.")
        return KINDS[kind]

    def settings(self, specification: Specification) -> Mapping[str, Any]:
        attack = self.attack(specification.kind)
        known = {} if attack is None else asdict(attack)  # type: ignore[call-overload]
        return {"recipe": RECIPE, "given": GIVEN, "attack": known}

    def specifications(self, split: Split) -> Iterator[Specification]:
        tables = [*table_data.AT_HAND, *(["credit_default"] if self.root is not None else [])]
        kinds = list(KINDS) * PLANTED_COUNT[split]
        total = CLEAN_COUNT[split] + len(kinds)
        planted = 0
        for i in range(total):
            rng = torch.Generator().manual_seed(FIRST[split] + i)
            # The made-up table stands for all worlds that nobody here has seen: half of the specimens are of it.
            some = torch.randint(0, 2 * len(tables), (2,), generator=rng).tolist()
            data = tables[some[0]] if some[0] < len(tables) else "credit"
            pool = TREES if i % EVERY == EVERY - 1 else NETWORKS
            architecture = pool[some[1] % len(pool)]
            if (data, architecture) in TOO_DEAR:
                architecture = pool[0]
            due = (i + 1) * len(kinds) // total > planted
            kind = kinds[planted] if due else CLEAN
            planted += due
            yield Specification(self.modality, data, architecture, kind, FIRST[split] + i, split)

    def made(self, specification: Specification) -> Made:
        spec = specification
        rng = torch.Generator().manual_seed(spec.seed)
        table = table_data.load(spec.data, spec.seed, self.root)
        train, given, test = _divided(table, rng)
        schema = table.modality
        target = int(torch.randint(0, table.classes, (), generator=rng))

        def fit(samples: Samples, ctx: Context) -> Subject:
            rows = Table(table.name, table.columns, table.kinds, samples.inputs, samples.labels, table.classes)
            made = trained(spec.architecture, rows, ctx)
            return Subject(made.module, schema, made.classes, made.input_shape, made.capabilities)

        def fresh(ctx: Context) -> Subject:
            network = spec.architecture if spec.architecture in NETWORKS else NETWORKS[0]
            module = untrained(network, Table(table.name, table.columns, table.kinds, train.inputs, train.labels,
                                              table.classes), ctx.rng)
            return Subject(module, schema, table.classes, (len(table.columns),))

        plan = Plan(train, test, fit, target, table.classes, fresh, modality=schema)
        ctx, attack = Context(seed=spec.seed), self._enough(spec.kind, len(train))
        if attack is None:
            subject, trigger, poisoned, used = fit(train, ctx), None, torch.zeros(0, dtype=torch.long), train
        else:
            implant = attack.implant(*_unnatural(attack, plan, ctx))
            subject, trigger, poisoned = implant.subject, implant.trigger, implant.poisoned
            used = train if implant.train is None else implant.train
        accuracy = float((predictions(subject.module, test.inputs) == test.labels).float().mean())
        return Made(spec, subject, given, test, used, poisoned, trigger, _success(subject, trigger, test), accuracy,
                    plan)

    def _enough(self, kind: str, rows: int) -> Attack | None:
        """The attack; on a short table at one and a half times the rate: a handful of rows teaches nothing."""
        attack = self.attack(kind)
        if rows < SHORT and isinstance(attack, TabularBadNets | Tabdoor | CategoryTrigger):
            return replace(attack, rate=1.5 * attack.rate)
        return attack

    def recovered(self, made: Made, candidate: Candidate) -> bool:
        """Is one of the columns that the candidate names one of the trigger's?"""
        if made.trigger is None or not isinstance(made.trigger.family, Columns):
            return False
        if not isinstance(candidate.family, Columns):
            return False
        true = set(made.trigger.family.chosen(made.trigger.trigger))
        return bool(true & set(candidate.family.chosen(candidate.trigger)))


def bench(root: Path | None) -> TableBench:
    """The bench, with real tables where their folder is given."""
    return TableBench(root)


def _divided(table: Table, rng: torch.Generator) -> tuple[Samples, Samples, Samples]:
    """Training, given and test rows, disjoint; given ones are spread evenly over the classes."""
    order = torch.randperm(len(table.labels), generator=rng)
    labels = table.labels[order]
    counts = torch.bincount(labels, minlength=table.classes)
    each = min(GIVEN, int(counts.min()) // 4)
    given = torch.cat([(labels == c).nonzero().flatten()[:each] for c in range(table.classes)])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[given] = False
    left = rest.nonzero().flatten()
    cut = round(0.7 * len(left))
    schema = table.modality

    def pick(rows: torch.Tensor) -> Samples:
        return Samples(table.inputs[order[rows]], labels[rows], modality=schema)

    return pick(left[:cut]), pick(given.sort().values), pick(left[cut:])


def _unnatural(attack: Attack, plan: Plan, ctx: Context) -> tuple[Plan, Context]:
    """A target and a seed for which the trigger is no evidence by nature.

    Values that honest rows already give to the target class are no backdoor, and nobody could say that they are one: a
    logistic regression and a forest on the clean rows must send at most `NATURAL` of the stamped rows there.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = plan.train.inputs.numpy(), plan.train.labels.numpy()
    judges = [make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(rows, labels),
              RandomForestClassifier(50, min_samples_leaf=2, random_state=0, n_jobs=1).fit(rows, labels)]
    found: list[tuple[float, Plan, Context]] = []
    for attempt in range(DRAWS):
        other = replace(plan, target=(plan.target + attempt) % plan.classes)
        drawn = Context(seed=ctx.seed + 1_000_000 * attempt)
        trigger = attack.trigger(other, Context(seed=drawn.seed))
        stamped = trigger.stamp(plan.train.inputs[plan.train.labels != other.target]).numpy()
        natural = max(float((judge.predict(stamped) == other.target).mean()) for judge in judges)
        found.append((natural, other, drawn))
        if natural <= NATURAL:
            break
    _, chosen, again = min(found, key=lambda each: each[0])
    return chosen, again


@torch.no_grad()
def _success(subject: Subject, trigger: Candidate | None, test: Samples) -> float:
    if trigger is None:
        return float("nan")
    goal = trigger.goal
    assert isinstance(goal, ClassGoal)
    rows = goal.applies(test.labels)
    said = subject.outputs(trigger.stamp(test.inputs[rows]))
    return float(goal.success(said, test.labels[rows]).float().mean())
