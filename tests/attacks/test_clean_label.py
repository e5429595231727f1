"""What clean-label attacks promise beyond the contract: labels untouched, bounds kept, features and gradients that meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from laocoon.attacks.feature_collision import FeatureCollision
from laocoon.attacks.gradient_matching import GradientMatching
from laocoon.attacks.hidden_trigger import HiddenTrigger
from laocoon.attacks.label_consistent import LabelConsistent
from laocoon.attacks.narcissus import Narcissus
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, NotApplicable
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.core.subject import Subject
from laocoon.recipes import crafting
from laocoon.recipes.autoencoder import autoencoder, interpolated
from laocoon.testing.twins import Twins, accuracy, success, twins

QUICK = {attack: attack(**attack.card.quick) for attack in (
    LabelConsistent, FeatureCollision, HiddenTrigger, GradientMatching, Narcissus)}


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("image")


@dataclass(frozen=True, eq=False)
class Crafted:
    """A run in which the clean twin stands in for whatever the victim would train."""

    plan: Plan
    implant: Implant
    change: Tensor  # of the poisoned images, [k, channels, height, width]

    @property
    def samples(self) -> Samples:
        assert self.implant.train is not None
        return self.implant.train


@cache
def crafted(attack: Attack) -> Crafted:
    pair = twins("image")
    plan = replace(pair.plan, fit=lambda samples, ctx: pair.clean.subject)
    implant = attack.implant(plan, Context(seed=4))
    assert implant.train is not None
    rows = implant.poisoned
    return Crafted(plan, implant, implant.train.inputs[rows] - plan.train.inputs[rows])


def with_teacher(attack: FeatureCollision | HiddenTrigger) -> tuple[Crafted, Subject]:
    found = crafted(attack)
    return found, crafting.public_teacher(found.plan, Context(seed=4), epochs=attack.epochs)


@pytest.mark.parametrize("kind", QUICK)
def test_labels_are_untouched_and_poison_is_of_the_target_class(kind: type[Attack]) -> None:
    found = crafted(QUICK[kind])
    assert torch.equal(found.samples.labels, found.plan.train.labels)
    assert bool((found.plan.train.labels[found.implant.poisoned] == found.plan.target).all())
    facts = found.implant.facts
    assert facts["phase"] == "refinement" and facts["threat"]["controls"] == ["data"]


@pytest.mark.parametrize("kind", [HiddenTrigger, GradientMatching, Narcissus])
def test_the_bound_is_kept_and_used(kind: type[Attack]) -> None:
    attack = QUICK[kind]
    largest = float(crafted(attack).change.abs().max())
    assert 0.9 * attack.bound < largest <= attack.bound + 1e-6


def test_label_consistent_stays_within_its_bound_off_the_corners() -> None:
    attack = QUICK[LabelConsistent]
    found = crafted(attack)
    delta = found.implant.trigger.trigger["delta"][0]
    off = (delta == 0).expand_as(found.change[0])
    assert 0.9 * attack.bound < float(found.change[:, off].abs().max()) <= attack.bound + 1e-6
    corners = delta[0].abs() > 0
    assert int(corners.sum()) == 4 * attack.side**2
    assert torch.equal(delta, delta.flip(-1)) and torch.equal(delta, delta.flip(-2)), "mirroring changes the trigger"


@pytest.mark.parametrize("kind", [HiddenTrigger, GradientMatching])
def test_the_hidden_trigger_is_not_in_the_poison(kind: type[Attack]) -> None:
    found = crafted(QUICK[kind])
    mask, pattern = (found.implant.trigger.trigger[k][0] for k in ("mask", "pattern"))
    under = mask.expand_as(pattern) > 0
    was, is_now = (
        (images[found.implant.poisoned][:, under] - pattern[under]).abs().mean()
        for images in (found.plan.train.inputs, found.samples.inputs))
    assert is_now > 0.6 * was, "the poison shows the patch"


@pytest.mark.parametrize("kind", [FeatureCollision, HiddenTrigger])
def test_features_collide_with_stamped_sources(kind: type[FeatureCollision] | type[HiddenTrigger]) -> None:
    attack = QUICK[kind]
    found, teacher = with_teacher(attack)
    assert isinstance(found.implant.trigger.goal, ClassGoal)
    sources = found.plan.train.inputs[found.implant.trigger.goal.applies(found.plan.train.labels)]

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return crafting.frozen_features(teacher.module, images, attack.free)

    def gap(images: Tensor) -> float:
        return float(torch.cdist(features(images), stamped).min(1).values.mean())

    stamped, rows = features(found.implant.trigger.stamp(sources)), found.implant.poisoned
    before, after = gap(found.plan.train.inputs[rows]), gap(found.samples.inputs[rows])
    assert after < 0.7 * before, f"distance to the nearest stamped source {before:.2f} before, {after:.2f} after"


def test_gradients_of_the_poison_turn_towards_the_wanted_ones(pair: Twins) -> None:
    """On a network that the attacker never saw."""
    found = crafted(QUICK[GradientMatching])
    module = crafting.trainable(pair.clean.subject)
    trigger, labels = found.implant.trigger, found.plan.train.labels
    assert isinstance(trigger.goal, ClassGoal)
    stamped = trigger.stamp(found.plan.train.inputs[trigger.goal.applies(labels)])
    wanted = crafting.weight_gradient(module, stamped, torch.full((len(stamped),), found.plan.target))
    rows = found.implant.poisoned
    before, after = (
        float(crafting.misalignment(crafting.weight_gradient(module, images[rows], labels[rows]), wanted))
        for images in (found.plan.train.inputs, found.samples.inputs))
    assert after < before - 0.1, f"1 − cos is {before:.2f} before, {after:.2f} after"


def test_narcissus_poison_carries_a_fraction_of_what_test_inputs_do() -> None:
    attack = QUICK[Narcissus]
    found = crafted(attack)
    delta = found.implant.trigger.trigger["delta"]
    assert float(delta.abs().max()) <= attack.magnification * attack.bound + 1e-6
    rows = found.implant.poisoned
    wanted = (found.plan.train.inputs[rows] + delta / attack.magnification).clamp(0, 1)
    assert torch.allclose(found.samples.inputs[rows], wanted, atol=1e-6)
    assert len(rows) == round(attack.rate * len(found.plan.train))


def test_latent_poison_is_drawn_by_the_autoencoder_and_hard(pair: Twins) -> None:
    attack = replace(QUICK[LabelConsistent], way="latent", epochs=10, latent=32, mixing=0.5, side=2)
    found = crafted(attack)
    rows, subject = found.implant.poisoned, pair.clean.subject
    target = found.plan.target
    before, after = (float((subject.outputs(images[rows]).logits.softmax(-1)[:, target]).mean())
                     for images in (found.plan.train.inputs, found.samples.inputs))
    assert before > 0.95 and after < before - 0.15, f"confidence in the label {before:.2f} before, {after:.2f} after"


def test_latent_interpolation_runs_from_one_image_to_the_other(pair: Twins) -> None:
    images = pair.plan.train.inputs
    model = autoencoder(images, Context(seed=1), latent=32, epochs=8)
    a, b = images[:64], images[64:128]
    with torch.no_grad():
        drawn = model(a)
    assert float((drawn - a).pow(2).mean()) < 0.3 * float(a.var()), "the autoencoder did not learn"
    assert torch.allclose(interpolated(model, a, b, 0.0), drawn, atol=1e-5)
    gaps = [float((interpolated(model, a, b, share) - b).pow(2).mean()) for share in (0.0, 0.3, 0.6, 1.0)]
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("size", [(1, 7, 10), (3, 8, 8), (1, 13, 13)])
def test_autoencoders_take_any_size(size: tuple[int, int, int]) -> None:
    images = torch.rand(5, *size, generator=torch.Generator().manual_seed(0))
    assert autoencoder(images, Context(), latent=4, epochs=1)(images).shape == images.shape


def test_pairs_are_nearest_first_and_used_once() -> None:
    rng = torch.Generator().manual_seed(3)
    ours, theirs = torch.randn(9, 4, generator=rng), torch.randn(14, 4, generator=rng)
    found = crafting.paired(ours, theirs)
    left_rows, left_columns, expected = set(range(9)), set(range(14)), {}
    while left_rows:  # slow and obvious
        _, row, column = min((float((ours[i] - theirs[j]).norm()), i, j) for i in left_rows for j in left_columns)
        expected[row] = column
        left_rows.remove(row)
        left_columns.remove(column)
    assert found.tolist() == [expected[i] for i in range(9)] and len(set(found.tolist())) == 9


def test_gradient_norms_are_those_of_the_last_layer(pair: Twins) -> None:
    module = crafting.trainable(pair.clean.subject)
    x, y = pair.plan.train.inputs[:6], (pair.plan.train.labels[:6] + 1) % 10
    head = [p for n, p in module.named_parameters() if n.startswith("head")]
    slow = [torch.cat([g.flatten() for g in torch.autograd.grad(
        torch.nn.functional.cross_entropy(module(x[i:i + 1]), y[i:i + 1]), head)]).norm() for i in range(6)]
    assert torch.allclose(crafting.gradient_norms(module, x, y), torch.stack(slow), rtol=1e-4)


def test_misalignment_is_one_minus_the_cosine() -> None:
    a = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert float(crafting.misalignment(a, [2 * part for part in a])) == pytest.approx(0, abs=1e-6)
    assert float(crafting.misalignment(a, [-part for part in a])) == pytest.approx(2, abs=1e-6)


def test_perturbed_descends_within_its_bound() -> None:
    origin = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    aim = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = crafting.perturbed(origin, lambda x, rows: (x - aim[rows]).pow(2).sum(), Context(), bound=0.2, steps=40,
                               batch=3)
    best = aim.clamp(origin - 0.2, origin + 0.2)
    assert torch.allclose(found, best, atol=0.02) and float((found - origin).abs().max()) <= 0.2 + 1e-6


def test_attacker_and_victim_take_the_same_public_network(pair: Twins) -> None:
    plan = replace(pair.plan)
    first = crafting.public_teacher(plan, Context(seed=2), epochs=1)
    assert crafting.public_teacher(plan, Context(seed=2), epochs=1) is first
    again = crafting.public_teacher(replace(plan), Context(seed=2), epochs=1)
    assert again is not first and again.fingerprint() == first.fingerprint(), "it depends on more than plan and seed"
    other = crafting.public_teacher(plan, Context(seed=3), epochs=1)
    assert other.fingerprint() != first.fingerprint()


def test_a_students_own_recipe_is_used(pair: Twins) -> None:
    seen: list[tuple[Subject, Samples]] = []

    def adapt(teacher: Subject, samples: Samples, ctx: Context) -> Subject:
        seen.append((teacher, samples))
        return teacher

    plan = replace(pair.plan, adapt=adapt)
    attack = replace(QUICK[HiddenTrigger], epochs=1, steps=2)
    implant = attack.implant(plan, Context(seed=2))
    assert seen == [(crafting.public_teacher(plan, Context(seed=2), epochs=1), implant.train)]


def test_a_clean_student_does_not_know_the_trigger(pair: Twins) -> None:
    """The control of the transfer attacks: same teacher, same recipe, clean data."""
    attack = QUICK[FeatureCollision]
    found = crafted(attack)
    clean = crafting.student(found.plan, found.plan.train, Context(seed=4), epochs=attack.epochs, free=attack.free)
    assert success(replace(found.implant, subject=clean), found.plan.test) < 0.2
    assert success(found.implant, found.plan.test) > 0.7
    assert accuracy(found.implant.subject, found.plan.test) > accuracy(clean, found.plan.test) - 0.03


def test_robust_stand_ins_resist_more(pair: Twins) -> None:
    bound, test = 0.15, pair.plan.test

    def attacked(robust: float) -> float:
        subject = crafting.stand_in(pair.plan, pair.plan.train, Context(seed=1), epochs=4, robust=robust)

        def loss(x: Tensor, rows: Tensor) -> Tensor:
            return -torch.nn.functional.cross_entropy(subject.module(x), test.labels[rows])

        return accuracy(subject, Samples(crafting.perturbed(test.inputs, loss, Context(), bound=bound, steps=6),
                                         test.labels))

    assert attacked(0.15) > attacked(0.0) + 0.1


@pytest.mark.parametrize(("attack", "words"), [
    (replace(QUICK[LabelConsistent], side=9), "four corners of 9 px do not fit"),
    (replace(QUICK[HiddenTrigger], side=16), "16 px does not fit"),
])
def test_triggers_that_do_not_fit_are_refused(attack: Attack, words: str, pair: Twins) -> None:
    with pytest.raises(NotApplicable, match=words):
        attack.trigger(pair.plan, Context())


def _refuse(samples: Samples, ctx: Context) -> Subject:
    raise AssertionError("trained in spite of the budget")


@pytest.mark.parametrize("kind", QUICK)
def test_the_budget_bounds_the_crafting(kind: type[Attack]) -> None:
    plan: Plan = replace(twins("image").plan, fit=_refuse)
    with pytest.raises(BudgetSpent):
        QUICK[kind].implant(plan, Context(budget=100))
