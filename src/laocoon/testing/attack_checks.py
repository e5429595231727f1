"""What every data-poisoning attack promises. Specimens that are not what they claim spoil every measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.core.subject import Modality, Subject
from laocoon.modalities.text import Text
from laocoon.testing.probes import stirred, surroundings
from laocoon.testing.twins import Twins, accuracy, success

SUCCESS_FLOOR = 0.7  # of the attack on test samples, under the card's quick parameters
NATURAL_CEILING = 0.5  # of its trigger on the clean twin: above, the trigger proves nothing
ACCURACY_LOSS = 0.08  # at most, against the clean twin


def check_card_is_complete(attack: Attack, twins: Twins) -> None:
    """The card says what documentation needs; the threat model grants something."""
    card = type(attack).card
    for field in ("name", "paper", "url", "summary"):
        assert str(getattr(card, field)).strip(), f"the card of {card.name!r} has an empty {field!r}."
    assert card.url.startswith("https://"), f"{card.name}: {card.url!r} is no https address."
    assert is_dataclass(attack), f"{card.name} is not a dataclass."
    known = {f.name for f in fields(attack)}
    assert set(card.quick) <= known, f"{card.name}: quick names {set(card.quick) - known}, which are no parameters."
    names = {check.__name__ for check in CHECKS}
    assert set(card.fails) <= names, f"{card.name}: fails names {set(card.fails) - names}, which are no checks."
    threat = type(attack).threat
    assert threat.facts()["controls"], f"{card.name}: its threat model grants nothing."
    phases = ("verification", "refinement", "diversification")
    assert type(attack).phase in phases, f"{card.name}: its phase is {type(attack).phase!r}, none of {phases}."
    relabelled = _implanted(attack, twins).relabelled
    assert threat.labels or not len(relabelled), f"{card.name} changes labels, which its threat model does not grant."


def check_indices_are_true(attack: Attack, twins: Twins) -> None:
    """Exactly the samples that it returns were changed; the training data handed in was not."""
    before = copy.deepcopy((twins.plan.train.inputs, twins.plan.train.labels))
    found = _poisoned(attack, twins, Context(seed=8))
    assert torch.equal(before[0], twins.plan.train.inputs) and torch.equal(before[1], twins.plan.train.labels), (
        "the training data that it was given was changed in place.")
    said = found.indices.sort().values
    assert torch.equal(said, said.unique()), "an index is named twice."
    assert torch.equal(said, found.changed), (
        f"{len(said)} samples are said to be changed, {len(found.changed)} are, "
        f"{len(set(said.tolist()) ^ set(found.changed.tolist()))} of them disagree.")


def check_poison_rate_is_exact(attack: Attack, twins: Twins) -> None:
    """As many samples are relabelled as its rate says, to the sample; the facts count all changed ones."""
    found, n = _implanted(attack, twins), len(twins.plan.train)
    facts = found.implant.facts
    assert facts["poisoned"] == len(found.changed), f"{facts['poisoned']} in the facts, {len(found.changed)} changed."
    assert facts["poison_rate"] == len(found.changed) / n, f"a rate of {facts['poison_rate']} in the facts."
    rate = getattr(attack, "rate", None)
    if rate is not None and len(found.relabelled):
        assert len(found.relabelled) == round(rate * n), (
            f"{len(found.relabelled)} of {n} samples are relabelled at a rate of {rate}.")


def check_stamps_only_what_it_says(attack: Attack, twins: Twins) -> None:
    """Relabelled samples carry its trigger and its goal's label; stamping is repeatable, in range, and on a copy."""
    found, train = _implanted(attack, twins), twins.plan.train
    trigger = found.implant.trigger
    goal = trigger.goal
    assert isinstance(goal, ClassGoal), "the goal is none over classes."
    rows = found.relabelled if len(found.relabelled) else found.changed
    carries = len(rows) > 0 and not type(attack).crafts  # nothing in the training set to compare with otherwise
    if not len(rows):
        rows = goal.applies(train.labels).nonzero().flatten()[:64]
    originals = train.inputs[rows].clone()
    kept = originals.clone()
    stamped = torch.cat([trigger.stamp(part) for part in originals.split(64)])
    assert torch.equal(originals, kept), "stamping changes the samples that it is given."
    assert stamped.shape == originals.shape and stamped.dtype == originals.dtype, "stamping changes shape or type."
    assert not carries or torch.allclose(stamped.double(), found.train.inputs[rows].double(), atol=1e-4), (
        "what is in the training set is not what the returned trigger stamps.")
    low, high = _range(train.inputs, twins.plan.modality)
    assert stamped.min() >= low - 1e-4 and stamped.max() <= high + 1e-4, "stamped samples leave the valid range."
    if len(found.relabelled):
        wanted = goal.destination(train.labels[rows])
        assert bool(goal.applies(train.labels[rows]).all()), "a sample that the goal does not speak of is relabelled."
        assert torch.equal(found.train.labels[rows], wanted), "a relabelled sample does not carry the goal's label."


def check_takes_and_keeps_accuracy(attack: Attack, twins: Twins) -> None:
    """The backdoor works, the model still does its job, and the trigger is no natural feature."""
    found = _implanted(attack, twins)
    rate = success(found.implant, twins.plan.test)
    natural = success(replace(found.implant, subject=twins.clean.subject), twins.plan.test)
    kept = accuracy(found.implant.subject, twins.plan.test)
    assert rate >= SUCCESS_FLOOR, f"an attack success rate of {rate:.0%}."
    assert natural <= NATURAL_CEILING, f"its trigger already sends {natural:.0%} there on the clean twin."
    assert kept >= twins.accuracy - ACCURACY_LOSS, f"clean accuracy falls from {twins.accuracy:.0%} to {kept:.0%}."


def check_repeats(attack: Attack, twins: Twins) -> None:
    """Same seed, same poison, whatever the state of the global generators; another seed, other samples."""
    first = _poisoned(attack, twins, Context(seed=21))
    with stirred(4321):
        around = surroundings()
        again = _poisoned(attack, twins, Context(seed=21))
        for what, value in surroundings().items():
            assert around[what] == value, f"{what} changed."
    assert torch.equal(first.train.inputs, again.train.inputs), "two runs with one seed stamp differently."
    assert torch.equal(first.train.labels, again.train.labels), "two runs with one seed relabel differently."
    other = _poisoned(attack, twins, Context(seed=22))
    same = torch.equal(first.indices.sort().values, other.indices.sort().values)
    assert not same or not len(first.indices), "another seed, the same samples."


Check = Callable[[Attack, Twins], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_indices_are_true,
    check_poison_rate_is_exact,
    check_stamps_only_what_it_says,
    check_takes_and_keeps_accuracy,
    check_repeats,
)


@dataclass(frozen=True, eq=False)
class _Poisoned:
    """What the victim was given to train on, against what the attacker was given."""

    implant: Implant
    train: Samples
    changed: Tensor  # indices of samples whose input or label differs
    relabelled: Tensor

    @property
    def indices(self) -> Tensor:
        return self.implant.poisoned


def _compare(implant: Implant, plan: Plan, given: Samples) -> _Poisoned:
    stamped = (given.inputs != plan.train.inputs).flatten(1).any(1)
    relabelled = given.labels != plan.train.labels
    return _Poisoned(implant, given, (stamped | relabelled).nonzero().flatten(), relabelled.nonzero().flatten())


def _watched(attack: Attack, twins: Twins, ctx: Context, fit: Callable[[Samples, Context], Subject]) -> _Poisoned:
    seen: list[Samples] = []

    def train(samples: Samples, context: Context) -> Subject:
        seen.append(samples)
        return fit(samples, context)

    implant = attack.implant(replace(twins.plan, fit=train), ctx)
    # Attackers who train themselves may fit surrogates only, or nothing: then the training set is what they return.
    given = implant.train if implant.train is not None else twins.plan.train
    assert implant.train is None or any(given is one for one in seen) or type(attack).train is not Attack.train, (
        "the victim was trained on another set than the one returned.")
    return _compare(implant, twins.plan, given)


def _poisoned(attack: Attack, twins: Twins, ctx: Context) -> _Poisoned:
    """Without training: the clean twin stands in for the victim."""
    return _watched(attack, twins, ctx, lambda samples, context: twins.clean.subject)


@lru_cache(maxsize=64)
def _implanted(attack: Attack, twins: Twins) -> _Poisoned:
    return _watched(attack, twins, Context(seed=1), twins.plan.fit)


def _range(inputs: Tensor, modality: Modality | None) -> tuple[float, float]:
    """Images live in [0, 1], texts in their vocabulary; others in the range of their own data."""
    if inputs.dim() == 4:
        return 0.0, 1.0
    if isinstance(modality, Text):
        return 0.0, float(len(modality.vocabulary) - 1)
    return float(inputs.min()), float(inputs.max())


def quick(attack: type[Attack]) -> Attack:
    """The attack under the parameters that suit the twins."""
    return attack(**attack.card.quick)


__all__ = ["CHECKS", "Check", "quick"]
