"""Mislabelled samples are told from poison; triggers are lifted out of the samples that share them."""

from __future__ import annotations

import torch

from laocoon.recipes.shared_trigger import additive, bearing, other_content, patch
from laocoon.recipes.wrong_labels import labelling, nearest_rows


def test_neighbours_are_those_of_a_slow_search():
    rng = torch.Generator().manual_seed(0)
    points, pool = torch.randn(30, 5, generator=rng), torch.randn(40, 5, generator=rng)
    found = nearest_rows(points, pool, 3)
    for i in range(30):
        likeness = [float(torch.dot(points[i] / points[i].norm(), q / q.norm())) for q in pool]
        assert found[i].tolist() == sorted(range(40), key=lambda k: -likeness[k])[:3]
    assert not (nearest_rows(pool, pool, 2, torch.arange(40)) == torch.arange(40)[:, None]).any()


def test_wrong_labels_are_found_and_poison_is_not_among_them():
    """Three clusters of three labels; wrong labels lie in another one; poison lies apart and is fitted."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(600) % 3
    centres = 6 * torch.eye(4)[:3]
    features = centres[labels] + torch.randn(600, 4, generator=rng)
    logits = 3 * torch.eye(3)[labels] + 0.1 * torch.randn(600, 3, generator=rng)
    wrong, poison = torch.arange(600) < 30, (torch.arange(600) >= 570) & (labels == 0)
    told = torch.where(wrong, (labels + 1) % 3, labels)  # the model still sees what they show
    features[poison] += torch.tensor([0.0, 0.0, 0.0, 12.0])
    found = labelling(features, logits, told, rng)
    assert float(found.wrong[wrong].float().mean()) > 0.95
    assert not bool(found.wrong[~wrong].any()) and not bool(found.wrong[poison].any())
    assert float((found.nearest[wrong] == labels[wrong]).float().mean()) > 0.95


def pictures(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_a_patch_is_lifted_though_a_third_of_the_suspects_are_clean():
    suspects, others = pictures(60, 0), pictures(200, 1)
    value = torch.tensor([1.0, 0.0, 1.0])[None, :, None, None]
    suspects[:40, :, 10:14, 2:6] = value
    found = patch(suspects, others)
    assert found is not None
    wanted = torch.zeros(16, 16)
    wanted[10:14, 2:6] = 1
    assert torch.equal(found["mask"][0, 0], wanted)
    assert float((found["pattern"][0][:, 10:14, 2:6] - value[0]).abs().max()) < 0.1
    clear = bearing(suspects, found, others)
    assert float(clear[:40].min()) > float(clear[40:].max())


def test_clean_pictures_share_no_patch():
    assert patch(pictures(60, 2), pictures(200, 3)) is None
    assert patch(torch.zeros(20, 1, 8, 8), torch.zeros(50, 1, 8, 8)) is None  # a black margin is nobody's


def test_an_added_pattern_is_lifted():
    base, others = 0.3 + 0.2 * pictures(40, 4), 0.3 + 0.2 * pictures(400, 5)
    pattern = 0.2 * torch.sign(torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(6)))
    found = additive(base + pattern, others)
    likeness = torch.nn.functional.cosine_similarity(found["delta"].flatten(), pattern.flatten(), dim=0)
    assert float(likeness) > 0.95
    assert float(bearing(base + pattern, found, others).min()) > float(bearing(others, found, others).max())
    control = other_content(found, others)["delta"]
    assert float(control.norm()) == float(found["delta"].norm())
