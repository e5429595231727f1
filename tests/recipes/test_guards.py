"""The mathematics of guards, each against a slow and obvious reference."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.class_distances import class_gaussian, nearest_own, neighbours, stacked
from laocoon.recipes.consistency import in_class_units, outlying, profile, profile_of
from laocoon.recipes.corruptions import blurred, displacement, families, turned
from laocoon.recipes.purify import Purifier
from laocoon.recipes.requests import acceptable
from laocoon.recipes.saliency import largest_places, saliency
from laocoon.recipes.shadow import shadow
from laocoon.recipes.taps import assembled, moments, tap


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1),
                             nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def subject(module: nn.Module, classes: int = 3) -> Subject:
    return Subject(module, Image(), classes, (1, 8, 8))


def test_a_shadow_shares_its_tensors_and_nothing_else() -> None:
    model = network().train().requires_grad_(True)
    twin = shadow(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not twin.training and not any(p.requires_grad for p in twin.parameters())
    assert [p.data_ptr() for p in model.parameters()] == [p.data_ptr() for p in twin.parameters()]
    twin[0].register_forward_hook(lambda *_: 1 / 0)
    model.eval()(torch.rand(2, 1, 8, 8))
    with torch.no_grad():
        model[8].bias.add_(1)
    assert torch.equal(twin[8].bias, model[8].bias)


def test_a_shadow_owns_what_it_is_told_to() -> None:
    model = network()
    twin = shadow(model, own=lambda layer: isinstance(layer, nn.BatchNorm2d))
    before = model[1].weight.clone()
    twin[1].weight.mul_(3)
    assert torch.equal(model[1].weight, before) and not torch.equal(twin[1].weight, before)
    assert twin[0].weight.data_ptr() == model[0].weight.data_ptr()


def test_a_module_that_cannot_be_copied_is_not_applicable() -> None:
    model = network()
    model.lock = threading.Lock()
    with pytest.raises(NotApplicable, match="copied"):
        shadow(model)


def pooled(x: torch.Tensor, last: bool = False) -> torch.Tensor:
    """Slowly: mean and standard deviation of each channel."""
    flat = x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)
    return torch.cat([flat.mean(1), flat.std(1, unbiased=False)], 1)


def test_states_are_means_and_deviations_side_by_side() -> None:
    wide, tokens, dense = torch.rand(3, 5, 4, 6), torch.rand(3, 7, 2), torch.rand(3, 9)
    logits = torch.rand(3, 4)
    found = assembled([moments(wide, False), moments(dense, True), moments(tokens, True)], logits)
    flat = tokens.unsqueeze(1)
    for state, wanted in zip(found.states, (pooled(wide), dense, pooled(flat, True), logits), strict=True):
        assert torch.allclose(state, wanted, atol=1e-4)
    assert found.whole.shape == (3, 10 + 9 + 4 + 4)
    assert torch.allclose(found.rows(torch.tensor([2])).states[1], dense[2:])


def test_large_maps_are_read_at_evenly_spread_places() -> None:
    x = torch.rand(2, 3, 80, 80)
    mean, _ = moments(x, False)
    assert torch.allclose(mean, x[:, :, ::2, ::2].mean((2, 3)))


def test_a_tap_reads_what_the_layers_see() -> None:
    model = network()
    x = torch.rand(5, 1, 8, 8, generator=rng())
    made = tap(subject(model), x, Context(), most=9)
    reading = made.read(x)
    with torch.no_grad():
        assert torch.allclose(reading.logits, model(x))
        first = model[:3](x)
        assert torch.allclose(reading.states[0], pooled(first), atol=1e-6)
        assert torch.allclose(reading.states[2], model[:8](x), atol=1e-6)
    assert len(reading.states) == 4 and torch.equal(reading.states[3], reading.logits)
    assert not any(len(m._forward_pre_hooks) for m in model.modules())


def test_a_tap_keeps_to_its_number_of_layers_and_to_the_last() -> None:
    made = tap(subject(network()), torch.rand(4, 1, 8, 8), Context(), most=2)
    assert [place.layer for place in made.places] == ["3", "8"]


def test_distances_are_those_of_mahalanobis() -> None:
    x = torch.randn(60, 7, generator=rng()).double() @ torch.randn(7, 7, generator=rng(1)).double()
    labels = torch.arange(60) % 3
    found = class_gaussian(x, labels, 4, shrink=0.2, rank=99)
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    means = torch.stack([z[labels == c].sum(0) / (int((labels == c).sum()) + 1) for c in range(4)])
    away = z - means[labels]
    covariance = away.T @ away / len(x)
    covariance = 0.8 * covariance + 0.2 * covariance.diagonal().mean() * torch.eye(7).double()
    asked, said = torch.randn(9, 7, generator=rng(2)).double(), torch.arange(9) % 4
    for row in range(9):
        gap = (asked[row] - x.mean(0)) / x.std(0, unbiased=False) - means[said[row]]
        wanted = float(gap @ torch.linalg.inv(covariance) @ gap)
        assert float(found.distance(asked, said)[row]) == pytest.approx(wanted, rel=1e-6)


def test_stacked_distances_are_those_of_each_layer() -> None:
    parts = [torch.randn(50, width, generator=rng(width)) for width in (4, 9)]
    labels = torch.arange(50) % 3
    layers = [class_gaussian(part, labels, 3, shrink=0.3, rank=5) for part in parts]
    columns = (torch.tensor([0, 1, 10, 11]), torch.tensor([2, 3, 4, 5, 6, 7, 8, 9, 12]))
    whole = torch.zeros(50, 13)
    for part, index in zip(parts, columns, strict=True):
        whole[:, index] = part
    found = stacked(layers, columns).distances(whole, labels)
    for number, layer in enumerate(layers):
        assert torch.allclose(found[:, number], layer.distance(parts[number], labels), rtol=1e-3, atol=1e-3)


def test_neighbours_are_the_nearest_of_the_class() -> None:
    x, labels = torch.randn(40, 5, generator=rng()), torch.arange(40) % 4
    layer = neighbours(x, labels, 6)
    asked, said = torch.randn(8, 5, generator=rng(1)), torch.tensor([0, 1, 2, 3, 5, 0, 1, 2])
    distances = layer.distances(asked)
    found = nearest_own(distances, layer.others(said))
    spread = x.std(0, unbiased=False)
    for row in range(8):
        gaps = ((asked[row] - x) / spread).norm(dim=1)
        own = gaps[labels == said[row]]
        wanted = own.min() if len(own) else gaps.min()  # class 5 has no clean sample: all stand in
        assert float(found[row]) == pytest.approx(float(wanted), rel=1e-4)


def test_profiles_are_what_the_model_says_of_copies() -> None:
    model = network()
    x = torch.rand(12, 1, 8, 8, generator=rng())
    copies = (lambda v: v * 0.5, (shadow(model), lambda v: v.flip(-1)))
    found = profile(model, x, copies)
    with torch.no_grad():
        for row in range(12):
            said = int(model(x[row:row + 1]).argmax())
            for column, change in enumerate((lambda v: v * 0.5, lambda v: v.flip(-1))):
                shares = model(change(x[row:row + 1])).softmax(1)[0]
                assert float(found.shares[row, column]) == pytest.approx(float(shares[said]), abs=1e-5)
                assert bool(found.kept[row, column]) == (int(shares.argmax()) == said)
                wanted = -sum(float(p) * math.log(float(p)) for p in shares)
                assert float(found.entropies[row, column]) == pytest.approx(wanted, abs=1e-4)


def test_profiles_are_paid_for() -> None:
    ctx = Context()
    profile_of(network(), Samples(torch.rand(10, 1, 8, 8), torch.zeros(10)), (lambda v: v, lambda v: v), ctx)
    assert ctx.spent == pytest.approx(10)
    with pytest.raises(NotApplicable, match="8 clean samples"):
        profile_of(network(), Samples(torch.rand(3, 1, 8, 8), torch.zeros(3)), (lambda v: v,), ctx)


def test_outlying_profiles_lie_far_from_clean_ones() -> None:
    x = torch.rand(30, 1, 8, 8, generator=rng())
    clean = profile(network(), x, (lambda v: v * 0.5, lambda v: v.flip(-1)))
    rows = torch.cat([clean.shares, clean.confidence[:, None]], 1)
    covariance = torch.cov(rows.T)
    covariance = 0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(3)
    wanted = [(row - rows.mean(0)) @ torch.linalg.inv(covariance) @ (row - rows.mean(0)) for row in rows]
    assert torch.allclose(outlying(clean)(clean).exp(), torch.stack(wanted), rtol=1e-2)


def test_units_of_a_class_are_drawn_to_all() -> None:
    scores, labels = torch.tensor([1.0, 3.0, 8.0, 8.0]), torch.tensor([0, 0, 1, 1])
    units = in_class_units(scores, labels, 3)
    spread = float(scores.std(unbiased=False))
    wanted = [(6 - (4 + 2 * 5) / 4) / spread, (6 - (16 + 2 * 5) / 4) / spread, (6 - 5) / spread]
    assert units(torch.full((3,), 6.0), torch.arange(3)).tolist() == pytest.approx(wanted)


def test_corruptions_keep_shape_and_range_and_change_nothing_when_asked_again() -> None:
    x = torch.rand(4, 3, 20, 24, generator=rng())
    for name, group in families((3, 20, 24), rng(5)).items():
        for corrupt in group:
            once = corrupt(x)
            assert once.shape == x.shape, name
            assert float(once.min()) >= -1e-5 and float(once.max()) <= 1 + 1e-5, name
            assert torch.allclose(once[:1], corrupt(x[:1]), atol=1e-5), f"{name} depends on the batch"
            assert float((once - x).abs().mean()) > 1e-4, f"{name} changes nothing"
    assert "jpeg" not in families((4, 20, 24), rng())


def test_blur_is_a_weighted_mean() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    found = blurred(x, 1.0)
    line = torch.exp(-torch.arange(-3, 4).float() ** 2 / 2)
    line = line / line.sum()
    assert torch.allclose(found[0, 0, 1:8, 1:8], line[:, None] * line, atol=1e-6)
    with pytest.raises(InputError, match="sigma"):
        blurred(x, 0.0)


def test_turning_by_nothing_and_a_still_field_keep_the_picture() -> None:
    x = torch.rand(2, 3, 16, 16, generator=rng())
    assert torch.allclose(turned(x, 0.0), x, atol=1e-5)
    still = displacement(16, 16, 0.0, rng())
    assert torch.allclose(nn.functional.grid_sample(x, still.expand(2, -1, -1, -1), align_corners=False), x, atol=1e-4)


@pytest.mark.parametrize(("batch", "says"), [
    (torch.full((2, 1, 4, 4), float("nan")), "finite"), (torch.full((2, 1, 4, 4), 2.0), "from 2 to 2"),
    (torch.full((2, 1, 4, 4), -0.5), "normalisation"), (torch.zeros(2, 4, 4), "shape"),
    (torch.zeros(2, 1, 4, 5), r"\[2, 1, 4, 5\]"), (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "255"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.complex64), "complex64"), ([[1.0]], "list")])
def test_bad_batches_are_named(batch: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        acceptable(batch, (1, 4, 4))


def test_good_batches_pass() -> None:
    assert acceptable(torch.full((2, 1, 4, 4), 1.0005), (1, 4, 4)).max() == 1
    assert acceptable(torch.rand(2, 1, 4, 4).double(), (1, 4, 4)).dtype == torch.float32
    assert len(acceptable(torch.zeros(0, 1, 4, 4), (1, 4, 4))) == 0


def test_grad_cam_is_the_weighted_sum_of_activations() -> None:
    model = network()
    x = torch.rand(3, 1, 8, 8, generator=rng())
    maps = saliency(subject(model), x, Context()).maps(x)
    for row in range(3):
        activation = model[:3](x[row:row + 1]).detach().requires_grad_(True)
        logits = model[3:](activation)
        (slope,) = torch.autograd.grad(logits[0, logits.argmax()], activation)
        wanted = (slope.mean((2, 3), keepdim=True) * activation).sum(1).relu()[0].detach()
        assert torch.allclose(maps[row], wanted / wanted.max().clamp_min(1e-12), atol=1e-4)


def test_saliency_without_a_grid_looks_at_the_picture() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, 9] = 5.0  # only the pixel in row 1, column 1 matters, and only to class 1
        model[1].bias.copy_(torch.tensor([-9.0, 0.0, -9.0]))
    maps = saliency(subject(model), torch.rand(2, 1, 8, 8), Context()).maps(torch.full((2, 1, 8, 8), 0.5))
    assert maps.shape == (2, 8, 8) and float(maps[0, 1, 1]) == 1.0 and float(maps[0, 4:, 4:].sum()) == 0.0


def test_largest_places_are_as_many_as_asked() -> None:
    maps = torch.rand(3, 10, 10, generator=rng())
    chosen = largest_places(maps, 0.15)
    assert chosen.sum((1, 2)).tolist() == [15, 15, 15]
    assert float(maps[0][chosen[0]].min()) >= float(maps[0][~chosen[0]].max())


def test_a_purifier_takes_a_foreign_mark_off_and_keeps_the_picture() -> None:
    across = torch.linspace(0, 1, 16)
    clean = torch.stack([(across * a + (1 - across) * b).expand(16, 16) for a, b in torch.rand(80, 2, generator=rng())])
    clean = clean.unsqueeze(1)
    clean_up = Purifier.fit(clean[:64], Context(seed=1))
    marked = clean[64:].clone()
    marked[..., ::2, ::2] = 1 - marked[..., ::2, ::2].round()
    before = (marked - clean[64:]).square().mean()
    after = (clean_up(marked) - clean[64:]).square().mean()
    assert after < before / 3
    assert (clean_up(clean[64:]) - clean[64:]).abs().mean() < 0.1
    assert torch.equal(Purifier(None, 0.7, 0.0)(marked), blurred(marked, 0.7).clamp(0, 1))
    assert clean_up(torch.rand(0, 1, 16, 16)).shape == (0, 1, 16, 16)
