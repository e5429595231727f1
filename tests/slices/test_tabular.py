"""The tabular slice: triggers stay inside the ranges and on their columns, and the search finds what was planted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.detectors.model.tabular_inversion import TabularInversion
from laocoon.detectors.model.tabular_query_inversion import TabularQueryInversion
from laocoon.lab.table_data import credit
from laocoon.modalities.tabular import Tabular
from laocoon.testing.corpora import Corpus
from laocoon.testing.twins import make_twins
from laocoon.triggers.columns import Columns


@given(seed=st.integers(0, 10_000), columns=st.integers(1, 6), arms=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_stamped_rows_stay_in_range_and_other_columns_stay(seed: int, columns: int, arms: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, columns, generator=rng) * 100
    table = Tabular.of(tuple(str(i) for i in range(columns)), rows)
    family = Columns(table)
    trigger = {"mask": torch.randint(0, 2, (arms, columns), generator=rng).float(),
               "value": torch.rand(arms, columns, generator=rng) * 4 - 2}
    family.project(trigger)
    stamped = family.stamp(rows, trigger)
    assert stamped.shape == (arms, 7, columns)
    slack = 1e-3
    assert (stamped >= rows.amin(0) - slack).all() and (stamped <= rows.amax(0) + slack).all()
    for arm in range(arms):
        untouched = trigger["mask"][arm] == 0
        assert torch.equal(stamped[arm][:, untouched], rows[:, untouched])
        chosen = ~untouched
        assert (stamped[arm][:, chosen].amax(0) - stamped[arm][:, chosen].amin(0) < slack).all()


def test_size_counts_columns() -> None:
    family = Columns(Tabular(("a", "b", "c"), (0.0,) * 3, (1.0,) * 3))
    mask = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert family.size({"mask": mask, "value": mask}, torch.zeros(1, 3)).tolist() == [2, 0]


def test_a_constant_column_is_no_division_by_zero() -> None:
    table = Tabular.of(("a", "b"), torch.tensor([[1.0, 5.0], [1.0, 7.0]]))
    family = Columns(table)
    stamped = family.stamp(torch.tensor([[1.0, 6.0]]), {"mask": torch.ones(1, 2), "value": torch.ones(1, 2)})
    assert torch.isfinite(stamped).all() and stamped.flatten().tolist() == [1.0, 7.0]


@pytest.mark.parametrize("method", [TabularInversion(), TabularQueryInversion()], ids=lambda m: m.card.name)
def test_the_planted_class_is_named_and_planted_columns_found(method: Detector) -> None:
    table = credit(1800, seed=2)
    train, test = (Samples(table.inputs[i], table.labels[i]) for i in (slice(0, 1400), slice(1400, None)))
    pair = make_twins(Corpus(table.modality, train, test, 2), TabularBadNets(), epochs=12, target=1, each=60, seed=2)
    assert pair.success > 0.9
    ctx = Context()
    report = method.examine(pair.planted, ctx)
    assert max(report.findings, key=lambda f: f.score).target_classes == (pair.plan.target,)
    assert report.score > 2 * method.examine(pair.clean, Context()).score
    planted = pair.implant.trigger
    assert isinstance(planted.family, Columns)
    found = planted.family.chosen(ctx.candidates[0].trigger)
    assert len(set(found) & set(planted.family.chosen(planted.trigger))) >= 2
