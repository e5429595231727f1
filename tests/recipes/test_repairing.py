"""Mathematics of repairs, each against a slow and obvious reference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.recipes.hypergradient import hypergradient
from laocoon.recipes.mending import Course, descend, divided, patchwork, rehearsal
from laocoon.recipes.pruning import layers_of, lipschitz, masked, ones, prune_while_right, silence
from laocoon.recipes.reactivation import Shots, lesson, reactivate, taught
from laocoon.recipes.sharpness import ascent, displaced, length, towards
from laocoon.testing.networks import image_network
from laocoon.testing.twins import twins
from laocoon.triggers.patch import Patch


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return image_network(1, 8, 4).eval()


def samples(n: int = 24, seed: int = 0) -> Samples:
    rng = torch.Generator().manual_seed(seed)
    return Samples(torch.rand(n, 1, 8, 8, generator=rng), torch.arange(n) % 4)


# ---------------------------------------------------------------- hypergradient
def test_hypergradient_is_that_of_the_solved_problem() -> None:
    """min over δ of ½ a δ² − b θ δ has δ* = b θ / a, so that L = (δ* − 1)² + θ has a slope known in closed form."""
    a, b = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -2.0])
    theta = torch.tensor([0.7, -0.4], requires_grad=True)
    delta = (b * theta / a).detach().requires_grad_(True)
    inner = delta - 0.3 * (a * delta - b * theta)
    outer = (delta - 1).square().sum() + theta.sum()
    (found,) = hypergradient(outer, inner, delta, [theta], iterations=60)
    wanted = 2 * (b * theta / a - 1) * b / a + 1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_hypergradient_without_iterations_is_one_step() -> None:
    theta = torch.tensor([2.0], requires_grad=True)
    delta = torch.tensor([1.0], requires_grad=True)
    (found,) = hypergradient(3 * delta.sum(), delta * 0 + 5 * theta, delta, [theta], iterations=0)
    assert float(found) == pytest.approx(15.0)


# ---------------------------------------------------------------- sharpness
def test_ascent_is_the_adaptive_formula() -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[3.0]]))]
    slopes = [torch.tensor([0.5, 1.0]), torch.tensor([[-1.0]])]
    size = math.sqrt((1 * 0.5) ** 2 + (2 * 1.0) ** 2 + (3 * 1.0) ** 2)
    first, second = ascent(weights, slopes, 0.1)
    assert torch.allclose(first, torch.tensor([1 * 0.5, 4 * 1.0]) * 0.1 / size)
    assert torch.allclose(second, torch.tensor([[9 * -1.0]]) * 0.1 / size)


def test_displaced_gives_back_the_very_same_weights() -> None:
    weights = [nn.Parameter(torch.tensor([0.1, 1e8]))]
    before = weights[0].detach().clone()
    with pytest.raises(RuntimeError), displaced(weights, [torch.tensor([1.0, 3.0])]):
        assert float(weights[0].detach()[0]) == pytest.approx(1.1)
        raise RuntimeError("half-way")
    assert torch.equal(weights[0].detach(), before)


@pytest.mark.parametrize(("distance", "made"), [(0.5, 0.5), (50.0, 5.0)])
def test_towards_goes_no_farther_than_the_goal(distance: float, made: float) -> None:
    (step,) = towards([nn.Parameter(torch.zeros(2))], [torch.tensor([3.0, 4.0])], distance)
    assert float(length([step])) == pytest.approx(made if distance < 5 else 5.0)


# ---------------------------------------------------------------- pruning
def test_masked_is_the_network_with_edited_weights() -> None:
    module, x = network(), samples().inputs
    layers = layers_of(module, "head")
    assert [layer.name for layer in layers] == ["first_norm", "second_norm"]
    rng = torch.Generator().manual_seed(1)
    gains = [torch.rand(layer.channels, generator=rng) for layer in layers]
    shifts = [torch.rand(layer.channels, generator=rng) for layer in layers]
    edited = copy.deepcopy(module)
    with torch.no_grad():
        for layer, gain, shift in zip(layers, gains, shifts, strict=True):
            norm = edited.get_submodule(layer.name)
            norm.weight.mul_(gain)  # type: ignore[operator,union-attr]
            norm.bias.mul_(1 + shift)  # type: ignore[operator,union-attr]
        assert torch.allclose(masked(module, layers, gains, shifts)(x), edited(x), atol=1e-6)
        assert torch.equal(masked(module, layers, ones(module, layers))(x), module(x))


def test_networks_without_norms_are_masked_by_rows() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 4))
    layers = layers_of(module, "5")
    assert [(layer.name, layer.channels) for layer in layers] == [("0", 3), ("3", 5)]
    keep = [torch.tensor([1.0, 0.0, 1.0]), torch.ones(5)]
    silence(module, layers, keep, whole=True)
    assert not bool(module[0](torch.rand(2, 1, 8, 8))[:, 1].any()), "a silenced channel still says something"
    with pytest.raises(NotApplicable):
        layers_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "1")


def test_pruning_stops_before_clean_samples_notice() -> None:
    """Channels 0 to 5 are of no use, 6 and 7 carry the answer: six go, in the order of worth."""
    module = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.zero_()
        module[0].weight[6, 0] = module[0].weight[7, 1] = 1.0
        module[0].weight[:6] = 1e-6
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor([0.0, 0.5]))
        module[1].weight[0, 6] = module[1].weight[1, 7] = 1.0
    x = torch.eye(2).repeat(10, 1)
    check = Samples(x, x.argmax(1))
    done = prune_while_right(module, layers_of(module, "1"), [torch.arange(8.0)], check, Context(), allowed=0.0,
                             most=1.0, steps=8)
    assert done.count == 6
    assert done.accuracy == done.before == 1.0
    assert (module[0].weight.abs().sum(1) > 0).tolist() == [False] * 6 + [True] * 2


def test_lipschitz_bounds_what_a_channel_does() -> None:
    module = network()
    with torch.no_grad():
        module.first_norm.running_var.uniform_(0.1, 2.0, generator=torch.Generator().manual_seed(0))
        module.first_norm.weight.uniform_(-2.0, 2.0, generator=torch.Generator().manual_seed(1))
    found = lipschitz(module, "first", "first_norm")
    layer, norm = module.first, module.first_norm.requires_grad_(False)
    for c in range(12):
        kernel = layer.weight[c].detach().flatten(1).double()
        top = float(torch.linalg.svdvals(kernel)[0]) * abs(float(norm.weight[c]))
        assert float(found[c]) == pytest.approx(top / math.sqrt(float(norm.running_var[c]) + norm.eps), rel=1e-4)


# ---------------------------------------------------------------- mending
def test_division_is_disjoint_and_even() -> None:
    given = samples(40)
    parts = divided(given, Context(), 0.25)
    assert len(parts.train) == 32 and len(parts.check) == 8  # 10 a class: a quarter is 2 (rounded to even)
    assert (parts.check.labels.bincount() == 2).all()
    seen = torch.cat([parts.train.inputs, parts.check.inputs]).flatten(1)
    assert len(seen.unique(dim=0)) == 40
    with pytest.raises(NotApplicable):
        divided(samples(4), Context())


def test_patchwork_is_made_of_two_pictures() -> None:
    pictures = torch.arange(6.0)[:, None, None, None].expand(6, 1, 12, 12)
    made = patchwork(pictures, torch.Generator().manual_seed(0))
    for i, picture in enumerate(made):
        values = set(picture.flatten().tolist())
        assert len(values) <= 2 and float(i) in values
        other = (picture[0] != i).float()
        if bool(other.any()):
            rows, columns = other.amax(1), other.amax(0)
            assert torch.equal(other, rows[:, None] * columns[None]), "what was put in is no rectangle"


def test_rehearsal_asks_for_labels_and_earlier_answers() -> None:
    module, given = network(), samples()
    asked = rehearsal(module, given, 4, Context(), share=0.0, smooth=0.2)
    inputs, wanted = asked(given.inputs, given.labels)
    assert inputs.shape == given.inputs.shape
    assert torch.allclose(wanted, torch.eye(4)[given.labels] * 0.8 + 0.05)
    inputs, wanted = rehearsal(module, given, 4, Context(), share=0.5)(given.inputs, given.labels)
    earlier = module(inputs).softmax(-1).detach()
    assert len(inputs) == 2 * len(given), "put together from two: as many again"
    assert torch.allclose(wanted[24:], earlier[24:], atol=1e-6)
    assert torch.allclose(wanted[:24], 0.5 * earlier[:24] + 0.5 * torch.eye(4)[given.labels], atol=1e-6)


def test_descent_learns_pays_and_leaves_the_network_at_rest() -> None:
    module, given, ctx = network(), samples(), Context()
    asked = rehearsal(module, given, 4, ctx, share=0.0)
    modes = []

    def gradient(x: Tensor, wanted: Tensor) -> None:
        ctx.spend(len(x))
        modes.append([m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d)])
        nn.functional.cross_entropy(module(x), wanted).backward()

    before = nn.functional.cross_entropy(module(given.inputs), given.labels).detach()
    descend(module, given, ctx, Course(epochs=30, rate=0.05, batch=8), gradient, asked)
    after = nn.functional.cross_entropy(module(given.inputs), given.labels)
    assert float(after) < 0.5 * float(before)
    assert ctx.spent == pytest.approx(30 * 24 + 2 * 24 / 3)  # and twice to see whether mirrors matter
    assert all(all(m) for m in modes) and not any(m.training for m in module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    with pytest.raises(BudgetSpent):
        descend(module, given, Context(), Course(1, 0.1, 8), lambda x, y: Context(budget=3).spend(len(x)), asked)


# ---------------------------------------------------------------- re-activation
def test_a_planted_model_learns_its_trigger_again_and_a_clean_one_does_not() -> None:
    pair = twins("image")
    given, held, trigger = pair.planted.fit, pair.planted.held, pair.implant.trigger
    assert given is not None and held is not None
    slow = Shots(steps=5, rate=0.002)  # the usual lesson is enough to teach a network of this size anything
    done = reactivate(pair.planted.subject, pair.clean.subject, trigger, given, held, Context(), slow)
    assert done.gap > 0.5
    same = reactivate(pair.clean.subject, pair.clean.subject.copy(), trigger, given, held, Context(), slow)
    assert same.gap == 0.0
    assert float(same.before.float().mean()) < 0.2


def test_a_lesson_is_the_same_for_all_and_touches_nobody() -> None:
    module = network()
    subject = Subject(module, Image(), 4, (1, 8, 8))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1
    trigger = Candidate(Patch(), {"mask": mask, "pattern": torch.ones(1, 1, 8, 8)}, all_to_one(1, 4), 4.0, 1.0, "test")
    how = Shots(shots=5, steps=3, beside=6)
    shown = lesson(trigger, samples(), Context(), how)
    assert len(shown.poison) == 5 and len(shown.beside) == 3 and all(len(b) == 6 for b in shown.beside)
    assert (shown.poison.labels == 1).all() and bool((shown.poison.inputs[..., :2, :2] == 1).all())
    before, ctx = subject.fingerprint(), Context()
    one, two = (taught(subject, shown, c, how).module.state_dict() for c in (ctx, Context()))
    assert subject.fingerprint() == before and ctx.spent == 3 * 11
    assert all(torch.equal(one[k], two[k]) for k in one)
    few = samples(8)
    with pytest.raises(NotApplicable, match="too few"):
        lesson(trigger, Samples(few.inputs[:3], few.labels[:3]), Context(), how)
