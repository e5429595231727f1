"""What the contract cannot know of the attacks of the diversification phase."""

from dataclasses import replace

import pytest
import torch

from laocoon.attacks.adap_blend import AdapBlend
from laocoon.attacks.adap_patch import AdapPatch
from laocoon.attacks.adversarial_embedding import AdversarialEmbedding
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.input_aware import InputAware
from laocoon.attacks.issba import Issba
from laocoon.attacks.multi_trigger import MultiTrigger
from laocoon.attacks.probe_evading import ProbeEvading
from laocoon.attacks.tact import Tact
from laocoon.attacks.tuap import Tuap
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.recipes.fit import predictions
from laocoon.recipes.inversion import Search, invert
from laocoon.recipes.steering import seeded, steer
from laocoon.recipes.transfer import boundary, features
from laocoon.testing.twins import accuracy, success, twins
from laocoon.triggers.conditional import Inlay, Residue
from laocoon.triggers.patch import Patch
from laocoon.triggers.patches import Patches, each

CONDITIONAL = [Residue(width=4, memory=8), Inlay(width=4, memory=8)]


@pytest.fixture(scope="module")
def plan():
    return twins("image").plan


def changed_in(train, plan):
    return (train.inputs != plan.train.inputs).flatten(1).any(1).nonzero().flatten()


# Trigger families


@pytest.mark.parametrize("family", CONDITIONAL, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 13)])
def test_a_drawn_trigger_keeps_images_images_and_arms_apart(family, shape):
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(5, *shape, generator=rng)
    trigger = family.blank(images, 3, rng=rng, bits=4)
    whole = family.stamp(images, trigger)
    assert whole.shape == (3, *images.shape) and float(whole.min()) >= 0 and float(whole.max()) <= 1
    one = family.select(trigger, torch.tensor([1]))
    assert torch.allclose(family.stamp(images, one)[0], whole[1], atol=1e-6)
    own = family.stamp(images.expand(3, *images.shape), trigger)
    assert torch.allclose(own, whole, atol=1e-6)
    assert family.size(trigger, images).shape == (3,)


@pytest.mark.parametrize("family", CONDITIONAL, ids=lambda f: f.name)
def test_gradients_reach_every_leaf_of_a_drawn_trigger(family):
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(5, 3, 12, 12, generator=rng) * 0.8 + 0.1
    trigger = {k: v.requires_grad_(True) for k, v in family.blank(images, 2, rng=rng, bits=4).items()}
    family.size(trigger, images).sum().backward()
    for name, leaf in trigger.items():
        assert leaf.grad is not None and float(leaf.grad.abs().sum()) > 0, name


def test_a_residue_stays_within_its_bound_whatever_the_weights():
    rng = torch.Generator().manual_seed(2)
    images = torch.rand(5, 3, 12, 12, generator=rng)
    trigger = Residue().blank(images, 1, rng=rng, bound=0.03)
    loud = {k: v if k == "bound" else v * 20 for k, v in trigger.items()}
    change = (Residue().stamp(images, loud)[0] - images).abs().max()
    assert 0.02 < float(change) <= 0.03 + 1e-6


def test_the_code_of_a_residue_matters():
    rng = torch.Generator().manual_seed(3)
    images = torch.rand(5, 3, 12, 12, generator=rng)
    trigger = Residue().blank(images, 1, rng=rng, bits=6)
    other = trigger | {"code": 1 - trigger["code"]}
    assert not torch.allclose(Residue().stamp(images, trigger), Residue().stamp(images, other), atol=1e-4)


def test_patches_stamp_the_chosen_one_and_come_apart():
    rng = torch.Generator().manual_seed(4)
    images, family = torch.rand(3, 1, 8, 8, generator=rng), Patches(4)
    trigger = family.blank(images, 2, rng=rng) | {"chosen": torch.tensor([0, 3])}
    stamped = family.stamp(images, trigger)
    for arm, kind in ((0, 0), (1, 3)):
        leaves = {k: trigger[k][arm, kind][None] for k in ("mask", "pattern")}
        assert torch.equal(stamped[arm], Patch().stamp(images, leaves)[0])
    assert family.size(trigger, images).shape == (2,)
    kept = family.select(trigger, torch.tensor([1]))
    assert torch.equal(family.stamp(images, kept)[0], stamped[1])


# The loop of attackers who control training


def test_steering_repeats_and_leaves_the_network_at_rest(plan):
    small = Samples(plan.train.inputs[:128], plan.train.labels[:128])
    results = []
    for _ in range(2):
        subject = plan.fresh(Context())
        calls = []

        def objective(inputs, labels, index, subject=subject, calls=calls):
            calls.append(index)
            assert subject.module.training
            assert torch.equal(labels, small.labels[index])
            return torch.nn.functional.cross_entropy(subject.module(inputs), labels)

        steer(subject, plan, small, objective, Context(seed=3), epochs=2)
        results.append(subject.fingerprint())
        assert not subject.module.training and not any(p.requires_grad for p in subject.module.parameters())
        assert len(torch.cat(calls).unique()) == 128, "a sample was never used"
    assert results[0] == results[1]


def test_steering_spends_the_budget(plan):
    subject, ctx = plan.fresh(Context()), Context(seed=0)
    small = Samples(plan.train.inputs[:64], plan.train.labels[:64])
    steer(subject, plan, small, lambda x, y, i: subject.module(x).square().mean(), ctx, epochs=3)
    assert ctx.spent == 3 * 64


def test_seeded_modules_do_not_touch_the_global_state():
    state = torch.get_rng_state()
    made = []
    for _ in range(2):
        with seeded(torch.Generator().manual_seed(9)):
            made.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(*made) and torch.equal(state, torch.get_rng_state())


# Poison


def test_every_trigger_of_several_is_on_its_own_share(plan):
    attack = MultiTrigger(rate=0.2, triggers=3)
    ctx = Context(seed=2)
    start = attack.trigger(plan, ctx)
    train, poison = attack.poison(plan, start, ctx)
    assert len(poison) == round(0.2 * len(plan.train)) == len(poison.unique())
    found, counts = each(start, plan.classes), []
    assert len({one.goal.targets for one in found}) == 3 and found[0].goal.targets == (plan.target,)
    for one in found:
        expected = one.stamp(plan.train.inputs[poison])
        mine = (expected == train.inputs[poison]).flatten(1).all(1)
        counts.append(int(mine.sum()))
        rows = poison[mine]
        assert bool((train.labels[rows] == one.goal.targets[0]).all())
        assert bool((plan.train.labels[rows] != one.goal.targets[0]).all())
    assert sum(counts) == len(poison) and max(counts) - min(counts) <= 1


def test_every_trigger_of_several_works(plan):
    implant = MultiTrigger(rate=0.2, triggers=3).implant(plan, Context(seed=2))
    for one in each(implant.trigger, plan.classes):
        assert success(replace(implant, trigger=one), plan.test) > 0.9, one.goal.describe()


@pytest.mark.parametrize(("triggers", "side"), [(11, 2), (0, 2), (10, 7)])
def test_too_many_triggers_are_refused(plan, triggers, side):
    with pytest.raises(InputError):
        MultiTrigger(triggers=triggers, side=side).trigger(plan, Context())


@pytest.mark.parametrize("attack", [AdapBlend(rate=0.1, cover_rate=0.05), AdapPatch(rate=0.1, cover_rate=0.05)],
                         ids=["adap_blend", "adap_patch"])
def test_regularisation_samples_carry_the_trigger_and_keep_their_label(plan, attack):
    ctx = Context(seed=1)
    start = attack.trigger(plan, ctx)
    train, said = attack.poison(plan, start, ctx)
    relabelled = (train.labels != plan.train.labels).nonzero().flatten()
    n = len(plan.train)
    assert len(relabelled) == round(0.1 * n) and len(said) - len(relabelled) == round(0.05 * n)
    assert torch.equal(said.sort().values, changed_in(train, plan))
    assert bool((plan.train.labels[said] != plan.target).all())


def test_adap_blend_trains_on_half_of_the_pieces(plan):
    ctx, attack = Context(seed=1), AdapBlend(rate=0.1, cover_rate=0.05)
    start = attack.trigger(plan, ctx)
    train, said = attack.poison(plan, start, ctx)
    side = plan.train.inputs.shape[-1] // attack.pieces
    touched = (train.inputs[said] != plan.train.inputs[said]).any(1, keepdim=True).float()
    pieces = torch.nn.functional.max_pool2d(touched, side).flatten(1)
    assert bool((pieces.sum(1) == attack.pieces**2 // 2).all())
    assert len(pieces.unique(dim=0)) > len(said) // 2, "the same half everywhere"
    assert float(start.trigger["mask"].min()) == pytest.approx(attack.test_strength)


def test_adap_patch_trains_on_one_faint_patch_a_sample(plan):
    ctx, attack = Context(seed=1), AdapPatch(rate=0.1, cover_rate=0.05, side=4)
    start = attack.trigger(plan, ctx)
    train, said = attack.poison(plan, start, ctx)
    touched = (train.inputs[said] != plan.train.inputs[said]).any(1).flatten(1).sum(1)
    assert int(touched.max()) <= 16
    assert float(start.trigger["mask"].sum()) == 2 * 16


def test_covers_of_tact_come_from_their_classes_and_keep_their_label(plan):
    ctx, attack = Context(seed=1), Tact(rate=0.05, cover_rate=0.1, cover_classes=2)
    start = attack.trigger(plan, ctx)
    train, said = attack.poison(plan, start, ctx)
    relabelled = train.labels != plan.train.labels
    source = start.goal.sources
    assert plan.train.labels[relabelled].unique().tolist() == list(source)
    covers = said[~relabelled[said]]
    kinds = set(plan.train.labels[covers].tolist())
    assert len(covers) == round(0.1 * len(plan.train)) and len(kinds) == 2
    assert not kinds & {plan.target, *source}


def test_tuap_touches_the_target_class_alone_and_no_label(plan):
    trained = []

    def stand_in(samples, ctx):
        trained.append(samples)
        return twins("image").clean.subject

    attack, ctx = Tuap(fraction=0.4, bound=0.1, weaken=0.05, steps=5, weaken_steps=3), Context(seed=0)
    watched = replace(plan, fit=stand_in)
    start = attack.trigger(watched, ctx)
    train, said = attack.poison(watched, start, ctx)
    members = plan.train.labels == plan.target
    assert len(said) == round(0.4 * int(members.sum())) and bool(members[said].all())
    assert torch.equal(train.labels, plan.train.labels)
    assert float(start.trigger["delta"].abs().max()) <= 0.1 + 1e-6
    assert float((train.inputs - plan.train.inputs).abs().max()) <= 0.15 + 1e-6
    assert all(samples is plan.train for samples in trained) and len(trained) == 2


def test_issba_hides_something_else_in_every_image(plan):
    start = Issba(width=8, steps=40, bound=0.1).trigger(plan, Context(seed=0))
    images = plan.test.inputs[:64]
    change = start.stamp(images) - images
    assert 0 < float(change.abs().max()) <= 0.1 + 1e-6
    own = (change - change.mean(0)).square().mean()
    assert float(own / change.square().mean()) > 0.05, "the same change everywhere"


# Training under control


def test_a_trigger_of_another_image_does_little(plan):
    implant = InputAware(epochs=30, width=8).implant(plan, Context(seed=1))
    weights = {k: v[0] for k, v in implant.trigger.trigger.items()}
    rows = plan.test.labels != plan.target
    images, labels = plan.test.inputs[rows], plan.test.labels[rows]
    mask, pattern = implant.trigger.family.layers(images.roll(7, 0), weights)
    said = predictions(implant.subject.module, images * (1 - mask) + mask * pattern)
    assert success(implant, plan.test) > 0.8
    assert float((said == plan.target).float().mean()) < 0.4, "the trigger does not know its image"
    assert float((said == labels).float().mean()) > 0.6
    drawn = (mask * pattern).flatten(1)
    assert float((drawn - drawn.roll(1, 0)).norm(dim=1).median()) > 0.2, "the same trigger in every image"


def area(scores, planted):
    """AUROC by its definition."""
    a, b = scores[planted][:, None], scores[~planted][None]
    return float(((a > b).float() + 0.5 * (a == b).float()).mean())


def spectral(z):
    """Tran, Li and Madry (2018): squared projection on the top direction of the centred features."""
    z = z - z.mean(0)
    return (z @ torch.linalg.svd(z, full_matrices=False)[2][0]).square()


def clusters(z):
    """Chen et al. (2018): two means on principal components; 1 in the smaller cluster."""
    z = z - z.mean(0)
    z = z @ torch.linalg.svd(z, full_matrices=False)[2][:10].T
    centres = torch.stack([z[z[:, 0].argmin()], z[z[:, 0].argmax()]])
    for _ in range(20):
        own = torch.cdist(z, centres).argmin(1)
        centres = torch.stack([z[own == k].mean(0) for k in (0, 1)])
    return (own == int((own == 1).sum() < (own == 0).sum())).float()


def separations(implant, plan):
    """How well both tell poison from the rest of the target class in the training set."""
    rows = implant.train.labels == plan.target
    planted = torch.zeros(len(rows), dtype=torch.bool)
    planted[implant.poisoned] = True
    module = implant.subject.module
    z = features(module, implant.train.inputs[rows], boundary(module, 1)).flatten(1)
    return torch.tensor([area(clusters(z), planted[rows]), area(spectral(z), planted[rows])])


def test_adversarial_embedding_hides_from_detectors_of_features(plan):
    plain = BadNets(rate=0.03, side=4).implant(plan, Context(seed=1))
    hidden = AdversarialEmbedding(**AdversarialEmbedding.card.quick).implant(plan, Context(seed=1))
    assert success(hidden, plan.test) > 0.8
    lowered = separations(plain, plan) - separations(hidden, plan)
    assert bool((lowered >= 0.3).all()), f"AUROC fell by {lowered.tolist()}"


def found_size(implant, plan):
    """The patch that the engine finds for the target class, in units of the median of all classes."""
    destinations = torch.tensor([[t] * plan.classes for t in range(plan.classes)])
    given = Samples(plan.test.inputs[:100], plan.test.labels[:100])
    found = invert(implant.subject.module, Patch(), destinations, given, Search(steps=50), Context(seed=0))
    return float(found.effective[plan.target] / found.effective.median())


def test_a_probe_evading_backdoor_is_no_outlier_to_the_patch_search(plan):
    plain = BadNets(rate=0.1, side=5).implant(plan, Context(seed=1))
    evading = ProbeEvading(**ProbeEvading.card.quick).implant(plan, Context(seed=1))
    assert success(evading, plan.test) > 0.6 and accuracy(evading.subject, plan.test) > 0.9
    assert found_size(plain, plan) < 0.6, "the search misses a plain backdoor: the test proves nothing"
    assert found_size(evading, plan) > 0.8
