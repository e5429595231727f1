"""The mathematics of the judge against slow, obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.compression import affine_weights, prune_smallest, quantise
from laocoon.recipes.distortions import journeys, jpeg, printed, resized, shifted
from laocoon.recipes.intervals import auroc_interval, mean_interval, median_interval, paired_difference
from laocoon.recipes.latent_statistics import (
    activation_clustering,
    discriminant,
    linear_probe,
    silhouette,
    spectral_signatures,
    spectrum,
    strip,
    two_means,
)
from laocoon.recipes.likeness import CEILING, feature_distance, norms, psnr, ssim
from laocoon.recipes.ranking import auroc
from laocoon.recipes.tuning import renew, tune
from laocoon.testing.networks import image_network


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def subject(seed: int = 0) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Subject(image_network(3, 16, 4), Image(), 4, (3, 16, 16))


# Likeness of pictures.


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 16), (3, 8)])
def test_psnr_and_ssim_agree_with_scikit_image(channels: int, side: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = random(4, channels, side, side)
    b = (a + 0.1 * normal(4, channels, side, side, seed=1)).clamp(0, 1)
    window = min(11, side - 1 + side % 2)
    for i, (found, ratio) in enumerate(zip(ssim(a, b).tolist(), psnr(a, b).tolist(), strict=True)):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        assert ratio == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)
        if window == 11:
            wanted = metrics.structural_similarity(x, y, channel_axis=0, data_range=1, gaussian_weights=True,
                                                   sigma=1.5, use_sample_covariance=False)
            assert found == pytest.approx(wanted, abs=1e-5)
    assert float(ssim(a, a).min()) == pytest.approx(1) and float(psnr(a, a).max()) == CEILING


def test_norms_count_pixels_not_channels() -> None:
    a = torch.zeros(1, 3, 4, 4)
    b = a.clone()
    b[0, 0, 1, 1], b[0, 1, 1, 1], b[0, 2, 3, 0] = 0.3, 0.4, 1.0
    found = norms(a, b)
    assert found.changed.item() == pytest.approx(2 / 16)
    assert found.root_square.item() == pytest.approx(math.sqrt(0.09 + 0.16 + 1))
    assert found.largest.item() == pytest.approx(1)


def test_feature_distance_is_the_mean_over_places_and_layers() -> None:
    net, a, b = subject(), random(5, 3, 16, 16), random(5, 3, 16, 16, seed=1)
    found = feature_distance(net, a, b, Context(batch=2))
    assert torch.equal(feature_distance(net, a, a, Context()), torch.zeros(5))
    wanted = []
    for i in range(5):
        layers = []
        for layer in ("first", "second"):  # the affine layers with places
            x, y = (net.features(v[i:i + 1], layer)[0] for v in (a, b))
            places = [float((x[:, r, c] / x[:, r, c].norm() - y[:, r, c] / y[:, r, c].norm()).square().sum())
                      for r in range(x.shape[1]) for c in range(x.shape[2])]
            layers.append(sum(places) / len(places))
        wanted.append(sum(layers) / 2)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


# Intervals.


def test_paired_difference_counts_disagreements() -> None:
    first, second = [True] * 60 + [False] * 40, [True] * 50 + [False] * 50
    low, high = paired_difference(first, second)
    p, q = 11 / 102, 1 / 102
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / 102)
    assert (low, high) == pytest.approx((p - q - half, p - q + half), abs=1e-5)
    low, high = paired_difference(first, first)
    assert low < 0 < high, "no disagreement in 100 is no proof of none"
    assert paired_difference([], []) == (-1, 1)


@pytest.mark.parametrize("n", [6, 20, 101])
def test_median_interval_has_its_level(n: int) -> None:
    low, high = median_interval(list(range(n)))
    below, above = int(low), int(n - 1 - high)
    assert below == above
    # P(X_(below) ≤ median ≤ X_(n-1-below)), by the number of values under the median.
    assert binom.cdf(n - 1 - below, n, 0.5) - binom.cdf(below, n, 0.5) >= 0.95 - 1e-9
    assert below == 0 or binom.cdf(n - 2 - below, n, 0.5) - binom.cdf(below + 1, n, 0.5) < 0.95, "wider than needed"


def test_mean_interval_of_one_value_is_everything() -> None:
    assert mean_interval([0.3]) == (-math.inf, math.inf)
    low, high = mean_interval([0.0, 1.0])
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(12.706, abs=1e-2)


def test_auroc_interval_has_a_width_at_the_ends_and_covers() -> None:
    low, high = auroc_interval(1.0, 50, 50)
    assert 0.85 < low < 1 and high == 1
    assert auroc_interval(0.0, 50, 50) == pytest.approx((0, 1 - low), abs=1e-4)
    assert auroc_interval(0.7, 0, 5) == (0, 1)
    rng, truth, covered = np.random.default_rng(0), 0.8550, 0  # Φ(1.5 / √2)
    for _ in range(200):
        area = auroc(list(rng.normal(1.5, 1, 25)), list(rng.normal(0, 1, 25)))
        low, high = auroc_interval(area, 25, 25)
        covered += low <= truth <= high
    assert covered >= 180


# Latent statistics.


def blobs(planted: int = 15, clean: int = 85, apart: float = 6.0) -> tuple[Tensor, Tensor]:
    kind = torch.arange(planted + clean) < planted
    points = normal(planted + clean, 12)
    points[kind, 0] += apart
    return points, kind


def test_silhouette_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import silhouette_samples

    points, kind = blobs(apart=2.0)
    assert silhouette(points, kind).tolist() == pytest.approx(silhouette_samples(points.numpy(), kind.numpy()).tolist(),
                                                              abs=1e-4)
    assert silhouette(points[:4], torch.tensor([True, False, False, False]))[0] == 0, "a cluster of one"


def test_two_means_finds_the_blobs() -> None:
    points, kind = blobs(apart=12.0)
    found = two_means(points)
    assert torch.equal(found, kind) or torch.equal(found, ~kind)


@pytest.mark.parametrize("method", [activation_clustering, spectral_signatures])
def test_a_poisoned_class_shows_and_a_clean_one_does_not(method: object) -> None:
    points, kind = blobs()
    features = torch.cat([points, normal(100, 12, seed=5)])
    labels = torch.arange(200) // 100
    scores = method(features, labels)  # type: ignore[operator]
    planted = torch.cat([kind, torch.zeros(100, dtype=torch.bool)])
    assert auroc(scores[planted].tolist(), scores[~planted].tolist()) > 0.99
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    again = method(features[order], labels[order])  # type: ignore[operator]
    assert torch.allclose(again, scores[order], atol=1e-3), "depends on the order of the samples"


def test_spectral_signature_is_the_leading_eigenvector() -> None:
    points, _ = blobs()
    centred = (points - points.mean(0)).double().numpy()
    _, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = (centred @ vectors[:, -1]) ** 2
    assert spectral_signatures(points, torch.zeros(100).long()).tolist() == pytest.approx(wanted.tolist(), rel=1e-3)


def test_strip_scores_what_outlives_an_overlay() -> None:
    def answer(x: Tensor) -> Tensor:  # sure of class 0 where the corner is lit, unsure elsewhere
        return torch.stack([20.0 * (x[:, 0, 0, 0] > 0.9), torch.zeros(len(x))], 1)

    clean = random(20, 1, 4, 4) * 0.4
    planted = clean.clone()
    planted[:, :, 0, 0] = 1
    rng = torch.Generator().manual_seed(0)
    high, low = (strip(answer, x, clean, rng) for x in (planted, clean))
    assert high.min() == pytest.approx(0, abs=1e-4) and low.tolist() == pytest.approx([-math.log(2)] * 20, abs=1e-4)


def test_discriminant_is_weighted_ridge_regression() -> None:
    x, kind = blobs(planted=10, clean=30, apart=2.0)
    asked = normal(7, 12, seed=9)
    mean, spread = x.double().mean(0), x.double().std(0, unbiased=False)
    ones = torch.ones(40, 1).double()
    rows = torch.cat([(x.double() - mean) / spread, ones], 1)
    weights = torch.where(kind, 0.5 / 0.25, 0.5 / 0.75).double()
    ridge = 0.1 * float((rows.square().sum(1) * weights).mean())
    wanted = torch.where(kind, 1.0, -1.0).double()
    normal_matrix = rows.T @ (weights[:, None] * rows) + ridge * torch.eye(13).double()
    solution = torch.linalg.solve(normal_matrix, rows.T @ (weights * wanted))
    reference = torch.cat([(asked.double() - mean) / spread, torch.ones(7, 1).double()], 1) @ solution
    assert torch.allclose(discriminant(x, kind, asked), reference, atol=1e-8)


def test_linear_probe_is_at_chance_where_nothing_differs() -> None:
    points, kind = normal(400, 30), torch.arange(400) < 150
    scores = linear_probe(points, kind)
    assert abs(auroc(scores[kind].tolist(), scores[~kind].tolist()) - 0.5) < 0.1
    points[kind] += 1
    scores = linear_probe(points, kind)
    assert auroc(scores[kind].tolist(), scores[~kind].tolist()) > 0.99


def test_spectrum_is_a_cosine_transform() -> None:
    rows = torch.arange(8).float()
    wave = 0.5 + 0.5 * torch.cos(math.pi * (rows + 0.5) * 3 / 8)  # exactly the third frequency
    found = spectrum(wave.expand(1, 1, 8, 8)).view(8, 8)
    assert sorted(found.flatten().argsort()[-2:].tolist()) == [0, 3], "the mean and the third frequency across"
    assert spectrum(random(2, 3, 64, 64)).shape == (2, 3 * 32 * 32)


# Distortions.


def test_shift_repeats_the_edge() -> None:
    x = random(2, 1, 5, 5)
    found = shifted(x, 1, -2)
    for r in range(5):
        for c in range(5):
            assert torch.equal(found[..., r, c], x[..., max(0, r - 1), min(4, c + 2)])


def test_distortions_stay_in_range_and_repeat() -> None:
    x = random(6, 3, 16, 16)
    for name, distort in journeys(16).items():
        a, b = (distort(x, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(a, b) and a.shape == x.shape and a.min() >= 0 and a.max() <= 1, name
        assert not torch.equal(a, x), name
    flat = torch.full((1, 1, 16, 16), 0.5)
    assert torch.allclose(resized(flat, 0.5), flat) and torch.allclose(jpeg(flat, 50), flat, atol=2 / 255)
    assert (printed(flat.expand(8, 1, 16, 16), torch.Generator().manual_seed(0)) - 0.5).abs().max() < 0.4
    with pytest.raises(NotApplicable, match="4"):
        jpeg(random(1, 4, 8, 8), 75)


# What deployment and training do.


def test_pruning_takes_exactly_the_smallest() -> None:
    module = subject().module
    before = torch.cat([w.detach().flatten() for w in affine_weights(module)]).clone()
    prune_smallest(module, 0.5)
    after = torch.cat([w.detach().flatten() for w in affine_weights(module)])
    gone = after == 0
    assert int(gone.sum()) == round(0.5 * len(before))
    assert before[gone].abs().max() <= before[~gone].abs().min() and torch.equal(after[~gone], before[~gone])
    ties = nn.Linear(4, 2, bias=False)
    nn.init.ones_(ties.weight)
    prune_smallest(ties, 0.25)
    assert int((ties.weight == 0).sum()) == 2


def test_quantisation_leaves_few_levels_and_the_answer() -> None:
    net, x = subject(), random(32, 3, 16, 16)
    before = net.module(x)
    copy = net.copy()
    quantise(copy.module, x)
    for weight in affine_weights(copy.module):
        assert all(len(row.unique()) <= 255 for row in weight.flatten(1))
    assert len(copy.features(x, "first").unique()) <= 256
    error = (copy.module(x) - before).abs().mean() / before.std()
    assert 0 < error < 0.05
    assert torch.equal(net.module(x), before), "the original was touched"


def test_tuning_a_head_leaves_the_rest() -> None:
    net, x = subject(), random(40, 3, 16, 16)
    copy = net.copy()
    head = copy.module.head
    tune(copy.module, x, torch.arange(40) % 4, Context(), epochs=2, rate=0.1, only=list(head.parameters()))
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, copy.module.state_dict()[name]) is not name.startswith("head"), name
    assert not copy.module.training and not any(p.requires_grad for p in copy.module.parameters())


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    teacher, x = nn.Linear(12, 4), normal(200, 12)
    with torch.no_grad():
        teacher.weight.copy_(normal(4, 12, seed=1))
        taught = teacher(x)
    student, ctx = nn.Linear(12, 4), Context()
    renew(student, torch.Generator().manual_seed(3))

    @torch.no_grad()
    def apart() -> float:
        return float((student(x).softmax(-1) - taught.softmax(-1)).abs().mean())

    before = apart()
    tune(student, x, taught, ctx, epochs=40, rate=5e-2, method="adam", temperature=2.0)
    assert apart() < before / 5 and ctx.spent == 40 * 3 * 64


def test_renewal_draws_every_weight_but_those_to_keep() -> None:
    net = subject()
    copy = net.copy()
    renew(copy.module, torch.Generator().manual_seed(1))
    assert all(not torch.equal(new, old) for new, old in zip(
        copy.module.parameters(), net.module.parameters(), strict=True) if old.std() > 0)
    again = net.copy()
    renew(again.module, torch.Generator().manual_seed(1), keep=[again.module.first.weight])
    assert torch.equal(again.module.first.weight, net.module.first.weight)
    assert torch.equal(again.module.first.bias, copy.module.first.bias), "what is kept shifts no draw"
    odd = nn.Sequential(nn.Linear(2, 2))
    odd.register_parameter("loose", nn.Parameter(torch.linspace(3, 5, 400)))
    renew(odd, torch.Generator())
    assert not torch.equal(odd.loose, torch.linspace(3, 5, 400))
    drawn = odd.loose.detach()
    assert abs(float(drawn.mean()) - 4) < 0.15 and abs(float(drawn.std()) - 0.58) < 0.1
