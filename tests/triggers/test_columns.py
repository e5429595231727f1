"""What a trigger over columns promises: stamped records could stand in the table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laocoon.core.errors import InputError, NotApplicable
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular, kind_of
from laocoon.triggers.columns import Columns


def table(seed=0, rows=40, fixed=("age",)):
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.stack([torch.rand(rows, generator=rng) * 9e5 - 3e5,
                          torch.randint(18, 91, (rows,), generator=rng).float(),
                          torch.tensor([2.0, 3.0, 7.0])[torch.randint(0, 3, (rows,), generator=rng)],
                          torch.randint(-2, 9, (rows,), generator=rng).float()], 1)
    return Tabular.of(("income", "age", "region", "months"), inputs, (NUMERIC, INTEGER, CATEGORY, INTEGER), fixed), inputs


@given(seed=st.integers(0, 2**16), hard=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_stamped_record_is_valid_and_fixed_columns_stay(seed, hard):
    modality, inputs = table(seed)
    family, rng = Columns(modality), torch.Generator().manual_seed(seed)
    trigger = {k: torch.rand(3, 4, generator=rng) for k in ("mask", "value")}
    if hard:
        trigger["mask"] = trigger["mask"].round()
    stamped = family.stamp(inputs, trigger)
    assert stamped.shape == (3, *inputs.shape)
    assert bool(modality.is_valid(stamped).all())
    assert torch.equal(stamped[..., 1], inputs[:, 1].expand(3, -1))
    assert set(stamped[..., 2].unique().tolist()) <= {2.0, 3.0, 7.0}
    assert torch.equal(stamped[..., 3], stamped[..., 3].round())
    if hard:  # a column is set in every row, to one value, or is left alone
        for arm in range(3):
            for column in (0, 2, 3):
                if trigger["mask"][arm, column]:
                    assert len(stamped[arm, :, column].unique()) == 1
                else:
                    assert torch.equal(stamped[arm, :, column], inputs[:, column])


def test_an_exact_trigger_sets_what_it_says_and_says_what_it_sets():
    modality, inputs = table()
    family = Columns(modality)
    trigger = family.exact({"months": 8, "region": 7}, inputs, arms=2)
    stamped = family.stamp(inputs, trigger)[1]
    assert bool((stamped[:, 3] == 8).all()) and bool((stamped[:, 2] == 7).all())
    assert torch.equal(stamped[:, :2], inputs[:, :2])
    assert family.describe(trigger) == "region = 7, months = 8"
    worded = Tabular.of(modality.columns, inputs, modality.kinds, words=((), (), ("north", "south", "west"), ()))
    assert family.describe(trigger, worded) == "region = west, months = 8"
    assert family.describe(family.exact({"age": 20}, inputs)) == ""  # nobody can touch it


def test_gradients_pass_through_rounding_but_not_into_fixed_columns():
    modality, inputs = table()
    family = Columns(modality)
    leaves = {k: torch.full((2, 4), 0.6).requires_grad_(True) for k in ("mask", "value")}
    (family.stamp(inputs, leaves).sum() + family.size(leaves, inputs).sum()).backward()
    for leaf in leaves.values():
        assert bool((leaf.grad[:, [0, 2, 3]] != 0).all()) and bool((leaf.grad[:, 1] == 0).all())


def test_project_keeps_fixed_columns_out():
    modality, _ = table()
    trigger = {"mask": torch.full((2, 4), 1.4), "value": torch.full((2, 4), -3.0)}
    Columns(modality).project(trigger)
    assert torch.equal(trigger["mask"], torch.tensor([[1.0, 0, 1, 1]] * 2)) and not trigger["value"].any()


def test_kinds_are_read_off_the_numbers():
    assert kind_of(torch.tensor([1.5, 2, 3] * 10)) == NUMERIC
    assert kind_of(torch.tensor([1.0, 2, 3] * 10)) == CATEGORY
    assert kind_of(torch.arange(30.0)) == INTEGER
    assert kind_of(torch.tensor([1.0, 2, 3])) == INTEGER  # too few rows to tell


def test_what_makes_no_sense_is_refused():
    modality, inputs = table()
    with pytest.raises(InputError, match="'colour'"):
        Columns(modality).exact({"colour": 1}, inputs)
    with pytest.raises(InputError, match="low has 1 entries for 2 columns"):
        Tabular(("a", "b"), (0.0,), (1.0, 1.0))
    with pytest.raises(InputError, match="fixed column 'x'"):
        modality.untouched(("x",))
    with pytest.raises(NotApplicable, match="ranges"):
        Columns(Tabular.unknown(("a", "b"))).stamp(inputs[:, :2], {k: torch.ones(1, 2) for k in ("mask", "value")})
