"""What every searched family promises, by properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laocoon.triggers.additive import Additive
from laocoon.triggers.faithful_tone import FaithfulTone
from laocoon.triggers.generator import Generator
from laocoon.triggers.patch import Patch
from laocoon.triggers.smooth import Smooth
from laocoon.triggers.spectral import Spectral
from laocoon.triggers.tone import Tone
from laocoon.triggers.warp import Warp
from laocoon.triggers.wave import Wave

FAMILIES = [Patch(), Additive(), Warp(), Tone(), Smooth(), Spectral(), Wave(), FaithfulTone(), Generator()]
ids = [f.name for f in FAMILIES]


def setting(family, seed, channels=3, arms=3):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(4, channels, 12, 12, generator=rng)
    trigger = family.blank(images, arms, rng=rng)
    noisy = {k: v + 0.3 * torch.randn(v.shape, generator=rng) for k, v in trigger.items()}
    family.project(noisy)
    return images, noisy


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_stamped_images_are_images_of_the_same_shape(family, seed, channels):
    images, trigger = setting(family, seed, channels)
    stamped = family.stamp(images, trigger)
    assert stamped.shape == (3, *images.shape)
    assert float(stamped.min()) >= -1e-6 and float(stamped.max()) <= 1 + 1e-6


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_arms_are_independent_and_selectable(family):
    images, trigger = setting(family, 0)
    whole = family.stamp(images, trigger)
    one = family.stamp(images, family.select(trigger, torch.tensor([1])))
    assert torch.allclose(whole[1], one[0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_a_batch_of_its_own_per_arm_is_stamped_alike(family):
    images, trigger = setting(family, 1)
    own = family.stamp(images.unsqueeze(0).expand(3, *images.shape).contiguous(), trigger)
    assert torch.allclose(own, family.stamp(images, trigger), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_gradients_reach_every_leaf_and_size_counts(family):
    images, trigger = setting(family, 2)
    leaves = {k: v.clone().requires_grad_(True) for k, v in trigger.items()}
    (family.stamp(images, leaves).pow(2).sum() + family.size(leaves, images).sum()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and float(leaf.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_shrinking_to_nothing_leaves_the_image_alone(family):
    images, trigger = setting(family, 3)
    gone = family.shrink(trigger, torch.zeros(3))
    assert torch.allclose(family.stamp(images, gone), images.expand(3, *images.shape), atol=2e-3)
    half = family.size(family.shrink(trigger, torch.full((3,), 0.5)), images)
    assert bool((half <= family.size(trigger, images) + 1e-4).all())
