"""Sites: found by running, edited only within a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.noise import channels_of, noisy
from laocoon.recipes.sites import editing, head_of, noise_sites, penultimate, reading, survey, tail_of

SHAPE = (3, 8, 8)


class Shared(nn.Module):
    """One ReLU, used twice, and a head on pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.second_norm = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.head = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first_norm(self.first(x)))
        return self.head(self.act(self.second_norm(self.second(x))).mean((2, 3)))


class After(nn.Module):
    """A network whose answers are changed on the way out."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.how == "renumbered":
            return out.flip(1)
        if self.how == "normalised":
            return out.log_softmax(1)
        if self.how == "one score":
            return torch.cat([torch.zeros_like(out[:, :1]), out[:, :1]], 1)
        return out * out.abs()  # more than an affine map


def network() -> Shared:
    torch.manual_seed(0)
    net = Shared().eval()
    for norm in (net.first_norm, net.second_norm):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.running_mean.data.normal_()
        norm.running_var.data.uniform_(0.5, 2)
    return net


def subject_of(module: nn.Module, classes: int = 5) -> Subject:
    return Subject(module, Image(), classes, SHAPE)


def inputs(n: int = 40) -> Tensor:
    """Noise on a different shade in each sample: plain noise would be much the same to a pooling network."""
    rng = torch.Generator().manual_seed(1)
    return 3 * torch.randn(n, 3, 1, 1, generator=rng) + torch.rand(n, *SHAPE, generator=rng)


def test_shared_layers_have_one_site_a_call() -> None:
    sites = survey(subject_of(network()), inputs(), Context())
    assert [(s.layer, s.call) for s in sites if s.layer == "act"] == [("act", 0), ("act", 1)]
    assert [s.kind for s in sites if s.layer.endswith("norm")] == ["norm", "norm"]
    assert [s.channels for s in noise_sites(sites)] == [6, 8]


def test_editing_changes_one_call_and_leaves_no_hook() -> None:
    net = network()
    subject, x = subject_of(net), inputs(4)
    before = subject.fingerprint()
    second = next(s for s in survey(subject, x, Context()) if s.layer == "act" and s.call == 1)
    for _ in range(2):  # calls are counted afresh in each pass
        with editing(subject, {second: torch.zeros_like}):
            subject.outputs(x)
            assert torch.allclose(subject.outputs(x).logits, net.head.bias.expand(4, -1))
    with pytest.raises(ZeroDivisionError), editing(subject, {second: lambda _: 1 / 0}):  # type: ignore[dict-item]
        subject.outputs(x)
    assert subject.fingerprint() == before


def test_the_head_is_what_makes_the_scores() -> None:
    subject, x, ctx = subject_of(network()), inputs(), Context()
    head = head_of(subject, survey(subject, x, ctx), x, ctx)
    assert (head.layer, head.side, head.shape) == ("head", "input", (8,))
    known = penultimate(subject, head, x, ctx)
    assert torch.allclose(tail_of(subject, head, known)(known.features), known.logits)


def test_a_convolution_can_be_the_head() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.score = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.score(self.body(x).relu().mean((2, 3), keepdim=True)).flatten(1)

    subject, x, ctx = subject_of(Full()), inputs(), Context()
    head = head_of(subject, survey(subject, x, ctx), x, ctx)
    assert (head.layer, head.channels, head.axis) == ("score", 7, 1)
    known = penultimate(subject, head, x, ctx)
    assert torch.allclose(tail_of(subject, head, known)(known.features), known.logits, atol=1e-6)


@pytest.mark.parametrize("how", ["renumbered", "normalised"])
def test_what_follows_the_head_is_learned_if_affine(how: str) -> None:
    subject, x, ctx = subject_of(After(network(), how)), inputs(), Context()
    head = head_of(subject, survey(subject, x, ctx), x, ctx)
    known = penultimate(subject, head, x, ctx)
    found = tail_of(subject, head, known)(known.features)
    assert torch.allclose(found.log_softmax(1), known.logits.log_softmax(1), atol=1e-3)


def test_one_score_is_a_head_of_two_classes() -> None:
    net = network()
    net.head = nn.Linear(8, 1)
    subject, x, ctx = subject_of(After(net, "one score"), 2), inputs(), Context()
    head = head_of(subject, survey(subject, x, ctx), x, ctx)
    known = penultimate(subject, head, x, ctx)
    found = tail_of(subject, head, known)(known.features)
    assert torch.allclose(found[:, 1] - found[:, 0], known.logits[:, 1] - known.logits[:, 0], atol=1e-3)


def test_what_is_more_than_affine_is_refused() -> None:
    subject, x, ctx = subject_of(After(network(), "squared")), inputs(), Context()
    head = head_of(subject, survey(subject, x, ctx), x, ctx)
    with pytest.raises(NotApplicable, match="more than an affine map"):
        tail_of(subject, head, penultimate(subject, head, x, ctx))


def test_channel_noise_is_noise_on_scale_and_shift() -> None:
    """With the shift as the mean, a disturbed batch norm is one whose γ and β were changed."""
    net, other = network(), network()
    subject, x, ctx = subject_of(net), inputs(6), Context()
    sites = noise_sites(survey(subject, x, ctx))
    noise = torch.randn(1, 2, 14, generator=torch.Generator().manual_seed(3)) * 0.3
    means = (net.first_norm.bias, net.second_norm.bias)
    channels = type(channels_of(subject, sites, x, ctx))(sites, means)
    for norm, part in ((other.first_norm, noise[0, :, :6]), (other.second_norm, noise[0, :, 6:])):
        norm.weight.data *= 1 + part[0]
        norm.bias.data *= 1 + part[1]
    with editing(subject, noisy(channels, noise, len(x))), torch.no_grad():
        found = subject.outputs(x).logits
    assert torch.allclose(found, other(x), atol=1e-5)


def test_noise_is_one_arm_each() -> None:
    subject, x, ctx = subject_of(network()), inputs(4), Context()
    sites = noise_sites(survey(subject, x, ctx))
    channels = channels_of(subject, sites, x, ctx)
    noise = torch.stack([torch.zeros(2, 14), torch.full((2, 14), 0.5)])
    with editing(subject, noisy(channels, noise, len(x))), torch.no_grad():
        quiet, loud = subject.outputs(x.repeat(2, 1, 1, 1)).logits.split(len(x))
    assert torch.allclose(quiet, subject.outputs(x).logits, atol=1e-6)
    assert not torch.allclose(loud, quiet, atol=1e-2)


def test_reading_sees_what_was_there() -> None:
    net = network()
    subject, x = subject_of(net), inputs(4)
    sites = survey(subject, x, Context())
    with reading(subject, sites[0]) as seen:
        subject.outputs(x)
    assert torch.allclose(seen[sites[0]], net.first(x))
