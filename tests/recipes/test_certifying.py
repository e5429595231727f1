"""Bounds against brute force, votes against enumeration, patches against all corners, lessons against the obvious."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import ARCHITECTURES, build
from laocoon.recipes.absence import Place, exclude_patches, hits, search_patch
from laocoon.recipes.bounds import crown, intervals, sealed
from laocoon.recipes.lessons import Lesson, batch_of, digest_of, lowest_of_each, material, pupil
from laocoon.recipes.voting import Votes, counted, robustness, winners
from laocoon.trainers.dbd import symmetric_cross_entropy
from laocoon.trainers.dpa import DPA


def network(name: str) -> nn.Module:
    """An untrained victim whose batch norms have seen something."""
    rng = torch.Generator().manual_seed(2)
    module = build(name, 1, 8, 5, rng)
    module.train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.rand(32, 1, 8, 8, generator=rng))
    return sealed(module)


def corner(inputs: Tensor, side: int) -> tuple[Tensor, Tensor]:
    lower, upper = inputs.clone(), inputs.clone()
    lower[..., -side:, -side:], upper[..., -side:, -side:] = 0, 1
    return lower, upper


@pytest.mark.parametrize("name", ["cnn", "vgg", "resnet", "resnet_small"])
@pytest.mark.parametrize("side", [1, 2])
def test_bounds_hold_everything_that_is_tried(name: str, side: int) -> None:
    module, rng = network(name), torch.Generator().manual_seed(0)
    lower, upper = corner(torch.rand(3, 1, 8, 8, generator=rng).double(), side)
    found = intervals(module, lower, upper)
    functions = torch.randn(3, 6, 5, generator=rng).double()
    low, slope = crown(module, lower, upper, found.units, functions)
    assert low.shape == (3, 6) and slope.shape == (3, 6, 1, 8, 8)
    corners = [torch.tensor(bits).double() for bits in itertools.product((0, 1), repeat=side * side)]
    tried = [*corners, *(torch.rand(side * side, generator=rng).double() for _ in range(100))]
    for patch in tried:
        x = lower.clone()
        x[..., -side:, -side:] = patch.view(side, side)
        answer = module(x)
        assert bool((found.lower <= answer + 1e-9).all()) and bool((answer <= found.upper + 1e-9).all())
        assert bool((low <= torch.einsum("bsa,ba->bs", functions, answer) + 1e-9).all())


def test_bounds_of_a_point_are_the_answer() -> None:
    module, x = network("cnn"), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    found = intervals(module, x, x)
    assert torch.allclose(found.lower, module(x)) and torch.allclose(found.upper, module(x))
    low, _ = crown(module, x, x, found.units, torch.eye(5).double().expand(4, 5, 5))
    assert torch.allclose(low, module(x))


def test_crown_is_exact_where_nothing_bends() -> None:
    """An affine network: the least value over a box is at a corner, and CROWN finds it."""
    torch.manual_seed(0)
    module = sealed(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)))
    lower, upper = torch.zeros(1, 1, 2, 2).double(), torch.ones(1, 1, 2, 2).double()
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(-1, 1, 2, 2).double()
    low, _ = crown(module, lower, upper, intervals(module, lower, upper).units, torch.eye(2).double()[None])
    assert torch.allclose(low[0], module(corners).amin(0))


def test_bounds_are_tighter_by_crown_than_by_intervals() -> None:
    module = network("cnn")
    lower, upper = corner(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double(), 2)
    found = intervals(module, lower, upper)
    low, _ = crown(module, lower, upper, found.units, torch.eye(5).double().expand(4, 5, 5))
    assert float((low - found.lower).mean()) > 0


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) & {"vit", "separable"}))
def test_what_the_bounds_do_not_know_is_refused(name: str) -> None:
    lower, upper = corner(torch.rand(1, 1, 8, 8).double(), 1)
    with pytest.raises(NotApplicable, match="bounds do not know"):
        intervals(network(name), lower, upper)


def test_a_broken_bound_would_be_seen() -> None:
    """The same trial as above catches bounds that forget the radius of the box."""
    module = network("cnn")
    lower, upper = corner(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double(), 2)
    middle = (lower + upper) / 2
    wrong = intervals(module, middle, middle)
    rng, outside = torch.Generator().manual_seed(1), False
    for _ in range(100):
        x = lower + (upper - lower) * torch.randint(0, 2, lower.shape, generator=rng)
        outside |= bool((module(x) < wrong.lower).any() | (module(x) > wrong.upper).any())
    assert outside


class Bright(nn.Module):
    """Class 1 where the corner pixel's brightness goes beyond a half, else class 0."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.read = nn.Linear(4, 2)
        with torch.no_grad():
            self.read.weight.zero_()
            self.read.weight[1, 3] = 1.0
            self.read.bias.copy_(torch.tensor([0.0, -at]))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.relu(x.flatten(1)))


@pytest.mark.parametrize(("at", "possible"), [(0.5, True), (1.5, False)])
def test_patches_are_found_or_excluded(at: float, possible: bool) -> None:
    module, inputs = sealed(Bright(at)), torch.zeros(3, 1, 2, 2).double()
    place = Place(-1, -1, 1, 1).within((1, 2, 2))
    found = search_patch(module, inputs, place, 1, Context(), starts=2, steps=30)
    assert (hits(module, inputs, place, found.patch, 1) == 1.0) == possible
    proof = exclude_patches(module, inputs, place, 1, 2, Context(), boxes=50)
    assert (proof.patch is not None) == possible and (possible or proof.possible < 2)


def test_a_patch_must_lie_within_the_image() -> None:
    with pytest.raises(InputError, match="does not lie within"):
        Place(7, 0, 2, 2).within((1, 8, 8))
    assert Place(-2, -3, 2, 3).within((1, 8, 8)) == Place(6, 5, 2, 3)


def test_votes_withstand_what_enumeration_says() -> None:
    """Every way of changing r of 5 votes among 3 classes, against the formula."""
    for ballots in itertools.product(range(3), repeat=5):
        counts = counted(torch.tensor([ballots]), 3)
        answer = int(winners(counts))
        assert answer == max(range(3), key=lambda c: (ballots.count(c), -c))
        said = int(robustness(counts))
        for r in range(3):
            changed = {int(winners(counted(torch.tensor([[new.get(i, b) for i, b in enumerate(ballots)]]), 3)))
                       for places in itertools.combinations(range(5), r)
                       for values in itertools.product(range(3), repeat=r)
                       for new in [dict(zip(places, values, strict=True))]}
            assert (changed == {answer}) == (r <= said), (ballots, r, said)


def test_scores_of_a_vote_name_its_winner() -> None:
    class Fixed(nn.Module):
        def __init__(self, vote: int) -> None:
            super().__init__()
            self.vote = vote

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), self.vote), 3).float()

    for ballots in itertools.product(range(3), repeat=4):
        module = Votes([Fixed(b) for b in ballots], 3)
        x = torch.zeros(2, 1)
        assert torch.equal(module(x).argmax(-1), winners(module.votes(x)))


def digits_case() -> tuple[DataCase, Samples]:
    rng = torch.Generator().manual_seed(0)
    samples = Samples(torch.rand(60, 1, 4, 4, generator=rng), torch.randint(0, 3, (60,), generator=rng))

    def untrained(ctx: Context) -> Subject:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(0, 2**31, (), generator=ctx.rng)))
            return Subject(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Image(), 3, (1, 4, 4))

    return DataCase(samples, 3, untrained=untrained), samples


def test_one_sample_moves_one_member() -> None:
    """The heart of the certificate: members are equal, to the bit, but for the part that a sample fell into."""
    case, samples = digits_case()
    trainer = DPA(parts=6, epochs=3)
    extra = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    shuffled = torch.randperm(61, generator=torch.Generator().manual_seed(4))
    more = Samples(torch.cat([samples.inputs, extra])[shuffled], torch.cat([samples.labels, torch.tensor([1])])[shuffled])
    one, two = (trainer.train(DataCase(s, 3, untrained=case.untrained), Context()).subject for s in (samples, more))
    assert one is not None and two is not None
    apart = [i for i, (a, b) in enumerate(zip(one.module.members, two.module.members, strict=True))
             if any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))]
    assert len(apart) == 1


def test_lessons() -> None:
    case, samples = digits_case()
    assert batch_of(Lesson(1, 64), 60) == 16 and batch_of(Lesson(1, 64), 5000) == 64 and batch_of(Lesson(1, 64), 3) == 3
    assert digest_of(samples.inputs[0]) == digest_of(samples.inputs[0].clone()) != digest_of(samples.inputs[1])
    values, labels = torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0]), torch.tensor([0, 0, 0, 1, 1])
    assert lowest_of_each(values, labels, 0.5).tolist() == [False, True, False, False, True]
    with pytest.raises(InputError, match="labels run from"):
        material(DataCase(samples, 2, untrained=case.untrained), Context())
    with pytest.raises(NotApplicable):
        pupil(DataCase(samples, 3), Context())
    with pytest.raises(InputError, match="scores 3 classes"):
        pupil(DataCase(samples, 4, untrained=case.untrained), Context())


def test_symmetric_cross_entropy_is_its_formula() -> None:
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    slow = 0.0
    for s, y in zip(scores, labels.tolist(), strict=True):
        p = s.softmax(0)
        slow += -0.1 * float(p[y].log()) - sum(float(p[k]) * (0.0 if k == y else -4.0) for k in range(4))
    assert float(symmetric_cross_entropy(scores, labels)) == pytest.approx(slow / 7, rel=1e-5)
