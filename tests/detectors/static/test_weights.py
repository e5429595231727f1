"""Detectors that read weights: what is broken or inserted is found, ordinary networks pass, heads are found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Report
from laocoon.core.subject import Subject
from laocoon.detectors.model.head_probes import HeadProbes
from laocoon.detectors.model.head_statistics import HeadStatistics
from laocoon.detectors.model.potrojan import PoTrojan
from laocoon.detectors.model.weight_sanity import WeightSanity
from laocoon.modalities.image import Image
from laocoon.recipes.heads import linear_head
from laocoon.recipes.outliers import skewness, standing_out

CLASSES = 10
WIDTH = 32


def network(seed: int = 0, *, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), act(), nn.Conv2d(16, WIDTH, 3), act(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, WIDTH), act(),
                             nn.Linear(WIDTH, CLASSES))


def case_of(module: nn.Module, samples: int = 60) -> ModelCase:
    rng = torch.Generator().manual_seed(5)
    clean = Samples(torch.rand(samples, 3, 12, 12, generator=rng), torch.arange(samples) % CLASSES) if samples else None
    return ModelCase(Subject(module, Image(), CLASSES, (3, 12, 12)), clean)


def examined(method: Detector, module: nn.Module, samples: int = 60) -> Report:
    return method.examine(case_of(module, samples), Context())


@torch.no_grad()
def insert(module: nn.Sequential, *, strength: float = 30.0, target: int = 4) -> nn.Sequential:
    """A neuron before the head that no clean sample wakes and that then drives one class."""
    module = copy.deepcopy(module)
    module[7].weight[5] = 0.5
    module[7].bias[5] = -40.0
    module[9].weight[:, 5] = 0.0
    module[9].weight[target, 5] = strength
    return module


# ---------------------------------------------------------------- potrojan
def test_an_inserted_neuron_is_found() -> None:
    report = examined(PoTrojan(), insert(network()))
    (finding,) = report.findings
    assert finding.rule == "potrojan.silent_neuron"
    assert finding.conclusive and finding.numbers["neurons"] == 1
    assert finding.target_classes == (4,) and finding.where.startswith("input 5 of layer")


def test_an_inserted_channel_is_found_in_a_hidden_layer() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight[3], module[0].bias[3] = 0.2, -30.0
        module[1].bias[3] = -1.0
        module[3].weight[:, 3] = 8.0
    (finding,) = examined(PoTrojan(), module).findings
    assert finding.where == "input 3 of layer '3'" and finding.score > 2


def test_a_few_samples_prove_nothing() -> None:
    (finding,) = examined(PoTrojan(), insert(network()), samples=10).findings
    assert not finding.conclusive


def test_without_samples_the_head_gives_a_hint() -> None:
    (finding,) = examined(PoTrojan(), insert(network()), samples=0).findings
    assert finding.rule == "potrojan.outgoing" and finding.target_classes == (4,) and not finding.conclusive


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Hardswish, nn.Sigmoid])
@pytest.mark.parametrize("seed", range(5))
def test_dead_neurons_of_ordinary_networks_pass(act: type[nn.Module], seed: int) -> None:
    """A third of the neurons dead, as in badly trained ReLU networks, with outgoing weights left at their start."""
    module = network(seed, act=act)
    with torch.no_grad():
        dead = torch.rand(WIDTH, generator=torch.Generator().manual_seed(seed)) < 0.3
        module[7].bias[dead] = -50.0
        module[9].weight[:, ~dead] *= 1.5  # what was trained has grown
    report = examined(PoTrojan(), module)
    assert report.complete and not report.findings, report.findings


def test_it_pays_for_its_passes() -> None:
    report = examined(PoTrojan(), network())
    assert report.spent == pytest.approx(63 / 3)


# ---------------------------------------------------------------- weight_sanity
def sane(change: str) -> nn.Sequential:
    module = network()
    with torch.no_grad():
        if change == "not_finite":
            module[3].weight[0, 0, 0, 0] = float("nan")
        elif change == "extreme":
            module[3].weight[2, 1, 0, 0] = 300.0
        elif change == "constant":
            module[3].weight.fill_(0.25)
        elif change == "negative_variance":
            module[1].running_var[2] = -0.1
        elif change == "norm_gain":
            module[1].weight[2] = 1e6
        elif change == "steps":
            extra = nn.BatchNorm2d(16)
            extra.num_batches_tracked += 7
            module[1].num_batches_tracked += 400
            return nn.Sequential(module[0], extra, *module[1:])
        elif change == "copy":
            return nn.Sequential(*module[:8], copy.deepcopy(module[7]), *module[8:])
    return module


@pytest.mark.parametrize("change", ["not_finite", "extreme", "constant", "negative_variance", "norm_gain", "steps",
                                    "copy"])
def test_odd_weights_are_found(change: str) -> None:
    report = examined(WeightSanity(), sane(change))
    assert {f.rule for f in report.findings} == {f"weight_sanity.{change}"}
    assert all(0 < f.score <= 1 and not f.conclusive for f in report.findings)


def heavy_tailed(module: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        weight = module[7].weight
        weight.copy_(torch.distributions.StudentT(4.0).sample(weight.shape) * 0.05)
    return module


def pruned(module: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        weight = module[3].weight
        weight[weight.abs() < weight.abs().quantile(0.9)] = 0.0
    return module


def quantised(module: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for p in module.parameters():
            step = p.abs().amax() / 127
            p.copy_((p / step.clamp_min(1e-12)).round() * step)
    return module


def tied(module: nn.Sequential) -> nn.Sequential:
    again = nn.Linear(WIDTH, WIDTH)
    again.weight = module[7].weight
    return nn.Sequential(*module[:8], nn.ReLU(), again, *module[8:])


def dead_channel(module: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        module[1].running_var[4] = 1e-14
    return module


@pytest.mark.parametrize("habit", [lambda m: m, heavy_tailed, pruned, quantised, tied, dead_channel])
@pytest.mark.parametrize("seed", range(3))
def test_ordinary_weights_pass(habit: object, seed: int) -> None:
    torch.manual_seed(seed)
    report = examined(WeightSanity(), habit(network(seed)))  # type: ignore[operator]
    assert report.complete and not report.findings, report.findings


# ---------------------------------------------------------------- finding the head
class Shuffled(nn.Module):
    """The head is defined first; a layer of the same shape that is used before it is defined last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)
        self.body = nn.Linear(3 * 144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


class Product(nn.Module):
    """A head that is a bare matrix, [features, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3 * 144, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


class Wrapped(nn.Module):
    """A one-by-one convolution as the head, and an adapter around everything."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x).mean((2, 3))


@pytest.mark.parametrize(("module", "layer", "features"), [
    (Shuffled(), "head", CLASSES), (Product(), "", 3 * 144), (Wrapped(), "inside.2", 16), (network(), "9", WIDTH)])
def test_the_head_is_found(module: nn.Module, layer: str, features: int) -> None:
    subject = case_of(module).subject
    before = subject.fingerprint()
    head = linear_head(subject, Context())
    assert (head.layer, tuple(head.weight.shape)) == (layer, (CLASSES, features))
    assert subject.fingerprint() == before


def test_no_head_is_said_so() -> None:
    subject = Subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), Image(), CLASSES, (3, 12, 12))
    with pytest.raises(NotApplicable, match="one row of weights per class"):
        linear_head(subject, Context())


# ---------------------------------------------------------------- statistics of the head
@torch.no_grad()
def loud(module: nn.Sequential, target: int = 6) -> nn.Sequential:
    """A head whose row of one class is stronger and positive, as after training on a backdoor."""
    module = copy.deepcopy(module)
    module[9].weight[target] = module[9].weight[target].abs() * 3
    return module


HEADS: list[Detector] = [HeadStatistics(), HeadProbes()]


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.card.name)
def test_a_loud_class_is_named(method: Detector) -> None:
    clean, planted = examined(method, network(), 0), examined(method, loud(network()), 0)
    assert planted.score > clean.score
    first = max(planted.findings, key=lambda f: f.score)
    assert first.target_classes == (6,)
    assert not any(f.conclusive for f in planted.findings)
    assert len(planted.statistics()) == len(planted.findings), "one finding for each statistic"


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.card.name)
@pytest.mark.parametrize("scale", [0.01, 50.0])
def test_the_scale_of_the_logits_does_not_matter(method: Detector, scale: float) -> None:
    module = loud(network())
    before = examined(method, module, 0)
    with torch.no_grad():
        module[9].weight *= scale
        module[9].bias *= scale
    after = examined(method, module, 0)
    assert [f.rule for f in after.findings] == [f.rule for f in before.findings]
    assert [f.score for f in after.findings] == pytest.approx([f.score for f in before.findings], abs=5e-3)
    assert [f.target_classes for f in after.findings] == [f.target_classes for f in before.findings]


@pytest.mark.parametrize("method", [*HEADS, PoTrojan()], ids=lambda m: m.card.name)
def test_the_order_of_classes_does_not_matter(method: Detector) -> None:
    module = insert(loud(network()))
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    turned = copy.deepcopy(module)
    with torch.no_grad():
        turned[9].weight.copy_(module[9].weight[order])
        turned[9].bias.copy_(module[9].bias[order])
    before, after = examined(method, module), examined(method, turned)
    assert [f.score for f in after.findings] == pytest.approx([f.score for f in before.findings], abs=1e-4)
    for one, other in zip(before.findings, after.findings, strict=True):
        if one.score - one.numbers.get("runner_up", -1e9) < 1e-3:
            continue  # two classes stand out alike: either may be named
        assert [int(order[t]) for t in other.target_classes] == list(one.target_classes)


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.card.name)
def test_heads_cost_nothing(method: Detector) -> None:
    report = examined(method, network(), 0)
    assert report.spent == 0 and report.seconds < 2


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.card.name)
def test_two_classes_are_too_few(method: Detector) -> None:
    subject = Subject(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)), Image(), 2, (3, 12, 12))
    report = method.examine(ModelCase(subject), Context())
    assert report.skipped and "classes" in report.reason


def test_equal_classes_do_not_stand_out() -> None:
    assert standing_out(torch.ones(10)).abs().max() == 0


def test_standing_out_ignores_shift_and_scale() -> None:
    values = torch.randn(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(standing_out(values), standing_out(values * 7 + 3), atol=1e-4)
    assert int(standing_out(torch.tensor([0.0, 1, 2, 3, 30])).argmax()) == 4


def test_skewness_agrees_with_scipy() -> None:
    from scipy.stats import skew

    rows = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)).exp()
    assert skewness(rows).tolist() == pytest.approx(skew(rows.numpy(), axis=1).tolist(), rel=1e-4)
