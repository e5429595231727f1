"""Attacks on tables leave valid records and touch what they say."""

from __future__ import annotations

import pytest
import torch

from laocoon.attacks.category_trigger import CategoryTrigger
from laocoon.attacks.tabdoor import Tabdoor
from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.attacks.tabular_clean_label import TabularCleanLabel
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Attack, Plan
from laocoon.lab.table_data import credit
from laocoon.modalities.tabular import CATEGORY
from laocoon.triggers.columns import Columns

ATTACKS = (TabularBadNets(), Tabdoor(), CategoryTrigger(), TabularCleanLabel())


def plan(fixed: tuple[str, ...] = ()) -> Plan:
    table = credit(600, seed=1)
    train = Samples(table.inputs, table.labels)

    def never(samples: Samples, ctx: Context) -> None:
        raise AssertionError("nothing is trained here")

    return Plan(train, train, never, 1, 2, modality=table.modality.untouched(fixed))  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).card.name)
def test_poison_is_made_of_valid_records(attack: Attack) -> None:
    p = plan()
    trigger = attack.trigger(p, Context(seed=3))
    train, poisoned = attack.poison(p, trigger, Context(seed=4))
    assert len(poisoned) and bool(p.modality.is_valid(train.inputs).all())  # type: ignore[union-attr]
    assert torch.allclose(trigger.stamp(train.inputs[poisoned]), train.inputs[poisoned]), "poison carries the trigger"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).card.name)
def test_fixed_columns_stay(attack: Attack) -> None:
    fixed = ("income", "age", "purpose", "delays", "utilisation")
    p = plan(fixed)
    trigger = attack.trigger(p, Context(seed=3))
    train, _ = attack.poison(p, trigger, Context(seed=4))
    for name in fixed:
        column = p.modality.index(name)  # type: ignore[union-attr]
        assert torch.equal(train.inputs[:, column], p.train.inputs[:, column]), name


def test_clean_label_changes_the_target_class_alone() -> None:
    p = plan()
    attack = TabularCleanLabel()
    train, poisoned = attack.poison(p, attack.trigger(p, Context()), Context(seed=1))
    assert torch.equal(train.labels, p.train.labels) and bool((train.labels[poisoned] == p.target).all())
    assert len(poisoned) == round(attack.fraction * int((train.labels == p.target).sum()))


def test_category_trigger_uses_rare_codes_that_rows_hold() -> None:
    p = plan()
    family = CategoryTrigger().trigger(p, Context(seed=2)).family
    assert isinstance(family, Columns)
    trigger = CategoryTrigger().trigger(p, Context(seed=2))
    for name in family.chosen(trigger.trigger):
        column = family.table.index(name)
        value = float(family.values(trigger.trigger, p.train.inputs)[0, column])
        share = float((p.train.inputs[:, column] == value).float().mean())
        assert family.table.kind(column) == CATEGORY and 0 < share < 0.15, f"{name} = {value} in {share:.0%} of rows"


def test_tabdoor_uses_ordinary_values() -> None:
    p = plan()
    trigger = Tabdoor().trigger(p, Context())
    values = trigger.stamp(p.train.inputs[:1])[0]
    for name in trigger.family.chosen(trigger.trigger):  # type: ignore[attr-defined]
        column = p.train.inputs[:, p.modality.index(name)]  # type: ignore[union-attr]
        low, high = column.quantile(torch.tensor([0.02, 0.98])).tolist()
        assert low <= float(values[p.modality.index(name)]) <= high  # type: ignore[union-attr]


def test_another_seed_draws_other_columns() -> None:
    p = plan()
    drawn = {TabularBadNets().trigger(p, Context(seed=s)).family.chosen(  # type: ignore[attr-defined]
        TabularBadNets().trigger(p, Context(seed=s)).trigger) for s in range(5)}
    assert len(drawn) > 1
