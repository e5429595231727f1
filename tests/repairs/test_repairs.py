"""What each repair does that the contract suite does not ask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Repair
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.repairs.candidate_unlearning import RESTART, CandidateUnlearning, Hunted, chosen
from laocoon.repairs.clp import CLP
from laocoon.repairs.distillation import Distillation
from laocoon.repairs.fst import FST
from laocoon.repairs.i_bau import IBAU
from laocoon.repairs.nad import NAD
from laocoon.testing.networks import image_network
from laocoon.triggers.additive import Additive
from laocoon.triggers.patch import Patch

REPAIRS = [r for r in classes("laocoon.repairs", Repair) if "image" in r.card.modalities]  # type: ignore[type-abstract]
SHORT = {"epochs": 1, "steps": 2, "recover_steps": 2, "unlearn_epochs": 1, "tune_epochs": 1, "first_epochs": 1}


def plain() -> nn.Module:
    """Convolutions without batch norm."""
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
                         nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4))


def dense() -> nn.Module:
    """No convolution at all."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4))


def attentive() -> nn.Module:
    """Layer norms, as in a transformer."""
    return nn.Sequential(nn.Conv2d(1, 16, 4, 4), nn.Flatten(2), nn.Linear(4, 12), nn.LayerNorm(12), nn.GELU(),
                         nn.Linear(12, 12), nn.LayerNorm(12), nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))


def case(module: nn.Module, n: int = 24) -> ModelCase:
    rng = torch.Generator().manual_seed(0)
    subject = Subject(module, Image(), 4, (1, 8, 8))
    fit = Samples(torch.rand(n, 1, 8, 8, generator=rng), torch.arange(n) % 4)
    return ModelCase(subject, fit, None, (candidate(),))


def candidate(family: str = "patch", target: int = 1) -> Candidate:
    if family == "patch":
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :2, :2] = 1
        leaves = {"mask": mask, "pattern": torch.full((1, 1, 8, 8), 0.5)}
        return Candidate(Patch(), leaves, all_to_one(target, 4), 4.0, 1.0, "test")
    return Candidate(Additive(), {"delta": torch.full((1, 1, 8, 8), 0.1)}, all_to_one(target, 4), 25.0, 1.0, "test")


@pytest.mark.parametrize("build", [plain, dense, attentive], ids=lambda b: b.__name__)
@pytest.mark.parametrize("method", REPAIRS, ids=lambda m: m.card.name)
def test_any_architecture_is_mended_or_the_reason_is_given(method: type[Repair], build: object) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()  # type: ignore[operator]
    short = {k: v for k, v in SHORT.items() if k in method.__dataclass_fields__}  # type: ignore[attr-defined]
    before = case(module)
    mended = method(**short).mend(before, Context())
    if mended.subject is None:
        assert mended.report.skipped and len(mended.report.reason) > 20, mended.report.reason
        assert (method.card.name, build.__name__) in {("nad", "dense")}  # type: ignore[attr-defined]
        return
    assert mended.report.complete
    logits = mended.subject.outputs(before.fit.inputs).logits  # type: ignore[union-attr]
    assert logits.shape == (24, 4) and bool(torch.isfinite(logits).all())


def test_nad_says_why_it_cannot_compare_attention() -> None:
    assert "map" in NAD().mend(case(dense()), Context()).report.reason


@pytest.mark.parametrize("method", REPAIRS, ids=lambda m: m.card.name)
def test_one_clean_sample_is_too_few(method: type[Repair]) -> None:
    mended = method().mend(case(plain(), 1), Context())
    if method is CLP:
        assert mended.subject is not None, "it needs no data"
    else:
        assert mended.subject is None and "sample" in mended.report.reason


def test_clp_prunes_the_channel_that_magnifies_and_no_other() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = image_network(1, 8, 4)
        module.second = nn.Conv2d(12, 24, 3, padding=1)
    with torch.no_grad():
        module.second_norm.weight[7] *= 60
        module.second_norm.bias[7] = 1.0
    given = replace(case(module), fit=None, candidates=())
    mended = CLP().mend(given, Context())
    assert mended.subject is not None and mended.report.spent < 3
    norm = mended.subject.module.second_norm
    assert [i for i, w in enumerate(norm.weight.tolist()) if w == 0] == [7]
    assert float(norm.bias[7]) == 0
    assert float(mended.subject.module.first_norm.weight.min()) > 0
    even = CLP().mend(replace(given, subject=given.subject.copy()), Context()).subject
    assert even is not None


def test_fst_keeps_the_length_of_the_head_and_turns_it_away() -> None:
    given = case(plain())
    old = given.subject.module[-1].weight.detach()  # type: ignore[index]
    mended = FST(epochs=2, rate=1e-3).mend(given, Context())
    assert mended.subject is not None
    new = mended.subject.module[-1].weight.detach()  # type: ignore[index]
    assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-4)
    assert float((new * old).sum() / old.square().sum()) < 0.3


def test_hunted_triggers_move_towards_their_goal_and_stay_within_bounds() -> None:
    given = case(plain())
    for family in ("patch", "additive"):
        start = candidate(family)
        assert given.fit is not None
        hunted = Hunted(start, 1.5, given.fit.inputs)
        limit = 1.5 * float(start.family.size(start.trigger, given.fit.inputs)[0])
        for _ in range(RESTART - 1):
            stamped, leaves = hunted.stamped(given.fit.inputs)
            brightness = -stamped.mean()  # as if the goal were a bright picture
            hunted.move(torch.autograd.grad(brightness, leaves), 0.5)
        assert float(hunted.candidate.family.size(hunted.leaves, given.fit.inputs)[0]) <= limit * 1.01
        first = start.stamp(given.fit.inputs).mean()
        assert float(hunted.stamped(given.fit.inputs)[0].detach().mean()) > float(first), "it did not move"
        assert float(start.trigger[next(iter(start.trigger))].max()) in (1.0, pytest.approx(0.1)), "the lent one moved"


def test_candidates_are_taken_from_every_family_in_turn() -> None:
    many = [candidate("patch", t) for t in (0, 1, 2)] + [candidate("additive", t) for t in (0, 1)]
    names = [(c.family.name, c.goal.describe()) for c in chosen(many, 4)]
    assert names == [("patch", "class 0"), ("additive", "class 0"), ("patch", "class 1"), ("additive", "class 1")]


def test_unlearning_asks_for_candidates_that_fit() -> None:
    given = case(plain())
    mended = CandidateUnlearning(epochs=1).mend(replace(given, candidates=()), Context())
    assert mended.subject is None and "candidate triggers" in mended.report.reason


def test_the_perturbation_of_i_bau_is_bounded() -> None:
    method = IBAU(size=0.1)
    assert float(method._bounded(torch.full((1, 1, 8, 8), 3.0)).square().mean().sqrt()) == pytest.approx(0.1)
    small = torch.full((1, 1, 8, 8), 0.01)
    assert torch.equal(method._bounded(small), small)


def rows(n: int = 200) -> Samples:
    """Class 1 where the first two columns add up to more than one."""
    rng = torch.Generator().manual_seed(1)
    inputs = torch.rand(n, 6, generator=rng)
    return Samples(inputs, (inputs[:, 0] + inputs[:, 1] > 1).long(), modality=Tabular.of(list("abcdef"), inputs))


class Hooked(nn.Module):
    """The right answer, but class 1 wherever the last column is over 0.97."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        with torch.no_grad():
            for layer in (self.body[0], self.body[2]):
                layer.weight.zero_()
                layer.bias.zero_()
            self.body[0].weight[0, :2], self.body[0].bias[0] = 20.0, -20.0
            self.body[0].weight[1, :2], self.body[0].bias[1] = -20.0, 20.0
            self.body[0].weight[2, 5], self.body[0].bias[2] = 2000.0, -1940.0
            self.body[2].weight[1], self.body[2].weight[0, 1] = torch.tensor([1.0, 0, 3] + 13 * [0]), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_distillation_forgets_what_clean_rows_do_not_show() -> None:
    samples = rows()
    kept = samples.inputs[:, 5] < 0.95
    samples = replace(samples, inputs=samples.inputs[kept], labels=samples.labels[kept])
    assert isinstance(samples.modality, Tabular)
    subject = Subject(Hooked(), samples.modality, 2, (6,))
    stamped = rows(400).inputs
    stamped[:, 5] = 1.0
    with torch.no_grad():
        assert float((subject.module(stamped).argmax(1) == 1).float().mean()) == 1.0
    mended = Distillation().mend(ModelCase(subject, samples, None, ()), Context(seed=0)).subject
    assert mended is not None
    fresh = rows(400)
    with torch.no_grad():
        assert float((mended.module(fresh.inputs).argmax(1) == fresh.labels).float().mean()) > 0.93
        truth = stamped[:, 0] + stamped[:, 1] > 1
        assert float((mended.module(stamped).argmax(1)[~truth] == 1).float().mean()) < 0.2


def test_distillation_does_not_try_to_teach_a_large_network_with_few_samples() -> None:
    samples = rows()
    assert isinstance(samples.modality, Tabular)
    subject = Subject(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 2)), samples.modality, 2, (6,))
    done = Distillation(most=100).mend(ModelCase(subject, samples, None, ()), Context())
    assert done.subject is None and "too many" in done.report.reason
