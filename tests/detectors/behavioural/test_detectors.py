"""The behavioural detectors beyond the contract suite: other triggers, other architectures, few and many classes."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from laocoon.attacks.blended import Blended
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector, Implant
from laocoon.core.report import Report
from laocoon.core.subject import Subject
from laocoon.detectors.model.all_to_all_inversion import crowding
from laocoon.detectors.model.ban import BAN
from laocoon.detectors.model.feature_decoupling import FeatureDecoupling
from laocoon.detectors.model.mm_bd import MMBD
from laocoon.detectors.model.neuron_stimulation import NeuronStimulation
from laocoon.detectors.model.trodo import TRODO
from laocoon.modalities.image import Image
from laocoon.testing.corpora import digits
from laocoon.testing.twins import few, plan_for, success, twins

METHODS: tuple[type[Detector], ...] = (MMBD, TRODO, BAN, NeuronStimulation, FeatureDecoupling)


def quick(method: type[Detector]) -> Detector:
    return method(**method.card.quick)


def ids(method: type[Detector]) -> str:
    return method.card.name


@cache
def blended() -> Implant:
    plan = plan_for(digits(), epochs=8, target=6)
    implant = Blended().implant(plan, Context(seed=2))
    assert success(implant, plan.test) > 0.9
    return implant


@cache
def examined(method: type[Detector], planted: bool) -> Report:
    pair = twins("image")
    given, held = few(pair.plan.test, 10, 8)
    subject = blended().subject if planted else pair.clean.subject
    return quick(method).examine(ModelCase(subject, given, held), Context())


class Transformer(nn.Module):
    """Tokens, layer norms and no batch norm anywhere."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 4, 4)
        self.norm, self.mix, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(self.last(x).mean(1))


def strange(module: nn.Module, classes: int, samples: int = 40) -> ModelCase:
    """An untrained network of any kind, with samples that it labels itself."""
    inputs = torch.rand(samples, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    subject = Subject(module, Image(), classes, (1, 16, 16))
    with torch.no_grad():
        labels = subject.outputs(inputs).logits.argmax(1)
    return ModelCase(subject, Samples(inputs, labels, False), Samples(inputs, labels, False))


def finite(report: Report) -> None:
    assert report.complete and report.findings, report.reason
    for finding in report.findings:
        assert math.isfinite(finding.score) and all(math.isfinite(v) for v in finding.numbers.values()), finding


@pytest.mark.parametrize("method", [MMBD, BAN], ids=ids)  # neuron stimulation misses this one, and its card says so
def test_a_blended_trigger_scores_above_clean(method: type[Detector]) -> None:
    planted, clean = examined(method, True).statistics(), examined(method, False).statistics()
    assert any(planted[rule] > clean[rule] for rule in planted), (planted, clean)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_every_class_has_its_finding(method: type[Detector]) -> None:
    findings = examined(method, True).findings
    finite(examined(method, True))
    rules = {f.rule for f in findings}
    assert all(rule.startswith(f"{method.card.name}.") for rule in rules)
    if method is not TRODO:
        for rule in rules:
            assert sorted(f.target_classes for f in findings if f.rule == rule) == [(t,) for t in range(10)]


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_transformer_is_examined(method: type[Detector]) -> None:
    torch.manual_seed(0)
    case = strange(Transformer(5), 5)
    before = case.subject.fingerprint()
    finite(quick(method).examine(case, Context()))
    assert case.subject.fingerprint() == before


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_two_classes_are_enough(method: type[Detector]) -> None:
    torch.manual_seed(1)
    finite(quick(method).examine(strange(Transformer(2), 2), Context()))


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_the_scale_of_the_logits_does_not_matter(method: type[Detector]) -> None:
    class Loud(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.gain = nn.Parameter(torch.tensor(25.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.gain

    pair = twins("image")
    loud = ModelCase(Subject(Loud(pair.planted.subject.module), Image(), 10, pair.planted.subject.input_shape),
                     pair.planted.fit, pair.planted.held)
    before = quick(method).examine(pair.planted, Context()).statistics()
    after = quick(method).examine(loud, Context()).statistics()
    for rule in before:
        assert after[rule] == pytest.approx(before[rule], rel=0.1, abs=0.05), rule


@pytest.mark.parametrize("classes", [43, 1000])
def test_many_classes_cost_a_bounded_number_of_passes(classes: int) -> None:
    torch.manual_seed(0)
    case = strange(nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, classes)), classes, 60)
    sizes = []
    handle = case.subject.module[0].register_forward_hook(lambda _, __, out: sizes.append(len(out)))  # type: ignore
    try:
        report = MMBD().examine(case, Context(batch=256))
    finally:
        handle.remove()
    finite(report)
    assert max(sizes) <= 256, "more samples in one pass than the context allows"
    assert report.spent <= 60_000
    for method in (BAN, NeuronStimulation):
        report = method().examine(case, Context(batch=256))
        finite(report)
        assert report.spent <= 10_000


def test_margins_need_no_samples() -> None:
    torch.manual_seed(0)
    case = ModelCase(Subject(Transformer(4), Image(), 4, (1, 16, 16)))
    report = quick(MMBD).examine(case, Context())
    finite(report)
    assert {f.rule for f in report.findings} == {"mm_bd.margin"}


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_broken_network_is_not_scored(method: type[Detector]) -> None:
    module = Transformer(4)
    case = strange(module, 4)
    module.head.weight.data.fill_(float("nan"))
    report = quick(method).examine(case, Context())
    for finding in report.findings:
        assert math.isfinite(finding.score)
    if method is not MMBD:
        assert report.skipped and "not finite" in report.reason


def test_more_pixels_than_the_references_had_count_against_an_absolute_size() -> None:
    assert crowding(8 * 8) == crowding(28 * 28) == crowding(32 * 32) == 0.0
    assert crowding(64 * 64) == pytest.approx(math.log(2)) and crowding(224 * 224) == pytest.approx(math.log(7))
