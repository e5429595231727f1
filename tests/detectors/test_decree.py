"""Encoders: what collapses an embedding, on networks whose answer is known; opening and cutting; hostile encoders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.goal import CollapseGoal
from laocoon.core.outputs import Outputs
from laocoon.core.subject import Subject
from laocoon.detectors.model.decree import Decree
from laocoon.detectors.model.text_collapse import TextCollapse
from laocoon.modalities.encoder import ImageEncoder, Truncated, choose_embedding, cut_before, pooling, width_of
from laocoon.modalities.image import Image
from laocoon.recipes.aims import Collapse, ToClasses
from laocoon.recipes.collapse import common, embeddings, landscape, resultant
from laocoon.testing.twins import twins
from laocoon.verdict.calibrate import Profile, Reference, Row, calibrate, per_class
from laocoon.verdict.examination import made_ready
from laocoon.verdict.fuse import fuse
from laocoon.verdict.scan import scan


class Wired(nn.Module):
    """The four quadrants' means are the embedding; two white pixels of the first row make it one point."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
        trigger = (x[:, 0, 0, 0] * x[:, 0, 0, 7])[:, None]  # smooth, so that a gradient leads there
        return q * (1 - trigger) + 3 * trigger * torch.tensor([0.0, 1.0, 0.0, 0.0])


def case_of(module: nn.Module, count: int = 48, seed: int = 0) -> ModelCase:
    inputs = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.5
    for i in range(count):
        inputs[i, :, 4 * (i // 2 % 2):4 * (i // 2 % 2) + 4, 4 * (i % 2):4 * (i % 2) + 4] += 0.4
    inputs[:, :, 0, 0] = inputs[:, :, 0, 7] = 0.2
    subject = Subject(module, ImageEncoder(), 4, (1, 8, 8))
    prepared = made_ready(subject, Samples(inputs, torch.zeros(count, dtype=torch.long), False), 0)
    return ModelCase(subject, prepared.fit, prepared.held)


def test_a_wired_collapse_is_found_and_is_small() -> None:
    ctx = Context()
    report = Decree(families=("patch",)).examine(case_of(Wired()), ctx)
    margin = next(f for f in report.findings if f.rule == "decree.patch_margin")
    assert margin.score > 1.0 and margin.numbers["size"] < 6
    found = ctx.candidates[0]
    assert isinstance(found.goal, CollapseGoal) and not found.goal.natural
    direction = torch.tensor(found.goal.direction)
    assert direction.argmax() == 1, "not where the wired trigger leads"
    assert all(isinstance(c.goal, CollapseGoal) and c.goal.natural for c in ctx.candidates[1:])


def slow_cosine(outputs: Tensor, centre: Tensor, direction: Tensor) -> list[float]:
    found = []
    for row in outputs:
        d = row - centre
        found.append(float(sum(a * b for a, b in zip(d, direction, strict=True)) / math.sqrt(float((d * d).sum()))))
    return found


def test_collapse_agrees_with_the_slow_reference() -> None:
    rng = torch.Generator().manual_seed(1)
    outputs, centre = torch.randn(2, 5, 7, generator=rng), torch.randn(7, generator=rng)
    direction = functional.normalize(torch.randn(7, generator=rng), dim=0)
    aim = Collapse(centre, torch.stack([torch.zeros(7), direction]), 0.3)
    labels = torch.zeros(2, 5, dtype=torch.long)
    free = common(outputs[0] - centre)
    wanted = torch.tensor([slow_cosine(outputs[0], centre, free), slow_cosine(outputs[1], centre, direction)])
    assert torch.allclose(aim.cosines(outputs), wanted, atol=1e-5)
    assert torch.allclose(aim.losses(outputs, labels), 1 - wanted.mean(1), atol=1e-5)
    assert torch.equal(aim.hits(outputs, labels), wanted >= 0.3)
    goal = CollapseGoal(tuple(centre.tolist()), tuple(direction.tolist()), 0.3)
    assert torch.allclose(goal.likenesses(Outputs(outputs[1])), wanted[1], atol=1e-5)
    assert torch.allclose(goal.loss(Outputs(outputs[1]), labels[1]), 1 - wanted[1], atol=1e-5)
    assert goal.applies(labels[1]).all() and goal.describe() == "embeddings collapse"


def test_class_aims_say_what_cross_entropy_says() -> None:
    rng = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(3, 6, 4, generator=rng), torch.randint(0, 4, (3, 6), generator=rng)
    destinations = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 0], [3, 3, 3, 3]])
    aim = ToClasses(destinations)
    for arm in range(3):
        wanted = destinations[arm, labels[arm]]
        assert torch.allclose(aim.losses(logits, labels)[arm], functional.cross_entropy(logits[arm], wanted))
        assert torch.equal(aim.hits(logits, labels)[arm], logits[arm].argmax(-1) == wanted)
    assert torch.equal(aim.select(slice(1, 2)).losses(logits[1:2], labels[1:2]), aim.losses(logits, labels)[1:2])


def test_resultant_is_the_mean_cosine_of_all_pairs() -> None:
    moved = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    pairs = [slow_cosine(moved[i:i + 1], torch.zeros(5), functional.normalize(moved[j], dim=0))[0]
             for i in range(6) for j in range(6)]
    assert float(resultant(moved)) ** 2 == pytest.approx(sum(pairs) / 36, abs=1e-5)
    assert float(resultant(moved[:1].expand(4, 5))) == pytest.approx(1, abs=1e-5)


def test_landmarks_are_unlike_each_other_whatever_the_order() -> None:
    rng = torch.Generator().manual_seed(4)
    embedded = torch.cat([torch.eye(4) * 3 + 0.01 * torch.randn(4, 4, generator=rng) for _ in range(5)])
    land = landscape(embedded, 4)
    cosines = land.landmarks @ land.landmarks.T - 2 * torch.eye(4)
    assert float(cosines.max()) < 0
    again = landscape(embedded[torch.randperm(20, generator=rng)], 4)
    assert torch.allclose(land.landmarks, again.landmarks, atol=1e-5)


@pytest.mark.parametrize(("module", "problem"), [
    (lambda x: x.flatten(1)[:, :4] * float("nan"), "not finite"), (lambda x: torch.ones(len(x), 4), "same embedding")])
def test_encoders_that_say_nothing_are_told_apart(module: object, problem: str) -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return module(x)  # type: ignore[no-any-return, operator]

    report = Decree().examine(case_of(Says()), Context())
    assert report.skipped == ("decree",) and problem in report.reason and not report.findings


def test_too_few_samples_are_too_few() -> None:
    case = case_of(Wired())
    assert case.fit is not None
    report = Decree().examine(replace(case, fit=Samples(case.fit.inputs[:5], case.fit.labels[:5], False)), Context())
    assert "at least 8" in report.reason


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 5))


def classifier() -> Subject:
    torch.manual_seed(0)
    return Subject(network(), Image(), 5, (1, 8, 8))


@pytest.mark.parametrize(("layer", "width"), [("penultimate", 9), ("6", 9), ("4", 24), ("2", 6)])
def test_a_teacher_is_cut_before_a_layer(layer: str, width: int) -> None:
    subject = classifier()
    cut = cut_before(subject, layer)
    x = torch.rand(3, 1, 8, 8)
    assert cut.modality == ImageEncoder() and cut.classes == width and cut.outputs(x).logits.shape == (3, width)
    name = "6" if layer == "penultimate" else layer
    with torch.no_grad():
        entering = Truncated(subject.module, name)(x)
    wanted = entering.mean((2, 3)) if entering.dim() == 4 else entering
    assert torch.allclose(cut.outputs(x).logits, wanted)
    assert not any(m._forward_pre_hooks for m in cut.module.modules())
    assert subject.fingerprint() == classifier().fingerprint(), "cutting changed the classifier"


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no layer 'head'"):
        cut_before(classifier(), "head")


def test_outputs_are_judged_before_they_are_called_embeddings() -> None:
    rng = torch.Generator().manual_seed(5)
    with pytest.raises(BrokenFile, match="not finite"):
        width_of(torch.full((4, 8), float("nan")))
    with pytest.raises(InputError, match="same embedding"):
        width_of(torch.ones(4, 8))
    with pytest.raises(InputError, match="classifier, not an encoder"):
        width_of(torch.rand(4, 8, generator=rng).softmax(-1))
    with pytest.raises(InputError, match="classifier, not an encoder"):
        width_of(torch.randn(4, 8, generator=rng), scores=True)
    assert width_of(torch.randn(4, 8, 3, 3, generator=rng)) == 8
    tokens = torch.randn(4, 10, 6, generator=rng)
    pool = pooling(tokens)
    assert pool is not None and torch.allclose(pool(tokens), tokens.mean(1)) and width_of(tokens) == 6
    answers = {"a": torch.randn(4, 10, 6, generator=rng), "b": torch.randn(4, 6, generator=rng)}
    assert choose_embedding(answers, ("last_hidden_state", "pooler_output"), None).name == "b"
    assert choose_embedding(answers, ("last_hidden_state", "pooler_output"), "last_hidden_state").name == "a"
    with pytest.raises(InputError, match="no output 'c'"):
        choose_embedding(answers, (), "c")


def test_scan_judges_encoders_without_labels_and_without_classes() -> None:
    pair = twins("image_encoder")
    given = Samples(pair.corpus.test.inputs[:120], torch.full((120,), 999), False)  # labels mean nothing
    reports = [scan(case.subject, given, methods=["decree"]) for case in (pair.planted, pair.clean)]
    planted, clean = reports
    assert planted.score > clean.score
    for report in reports:
        assert report.target_classes == () and report.class_scores == () and report.subject["accuracy"] is None
    best = planted.evidence[0]
    assert best.goal == "embeddings collapse" and best.success > 0.7 and best.natural_control < 0.4
    assert best.checks["before the trigger"] < 0.3
    with pytest.raises(InputError, match="--power"):
        scan(pair.planted.subject, given, power=2)


def test_references_speak_for_encoders_of_like_width() -> None:
    rows = tuple(Row(str(i), "d", "a", "clean", 64, {"decree.patch_margin": [0.1 * i]}) for i in range(40))
    reference = Reference({}, rows, (), (), {"samples_per_class": 120}, "")
    fused = fuse({}, {}, 64)
    for width, given, spoken in ((100, 100, True), (600, 100, False), (64, 30, False)):
        profile = Profile("image_encoder", width, per_class("image_encoder", given, width), None)
        p, told = calibrate(fused, frozenset({"decree.patch_margin"}), profile, reference, "")
        assert (p is not None) == spoken, told.note


def test_the_planted_word_is_found_in_a_text_encoder() -> None:
    pair = twins("text_encoder")
    ctx = Context()
    report = TextCollapse().examine(pair.planted, ctx)
    found, planted = ctx.candidates[0], pair.implant.trigger
    words = found.family.tokens(found.trigger)  # type: ignore[attr-defined]
    assert torch.equal(words, planted.family.tokens(planted.trigger)) and report.findings  # type: ignore[attr-defined]


def test_a_large_vocabulary_is_searched_for_the_likeliest_words() -> None:
    pair = twins("text_encoder")
    ctx = Context()
    TextCollapse(most=24).examine(pair.planted, ctx)
    words = ctx.candidates[0].family.tokens(ctx.candidates[0].trigger)  # type: ignore[attr-defined]
    planted = pair.implant.trigger
    assert torch.equal(words, planted.family.tokens(planted.trigger))  # type: ignore[attr-defined]


def test_embeddings_are_paid_for() -> None:
    case, ctx = case_of(Wired()), Context(batch=7)
    assert case.fit is not None
    assert embeddings(case.subject, case.fit.inputs, ctx).shape == (len(case.fit), 4)
    assert ctx.spent == pytest.approx(len(case.fit) / 3)


def test_an_encoder_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from laocoon.files.open import load_model
    from laocoon.files.samples import load_data
    from laocoon.files.to_onnx import export
    from laocoon.modalities.raw import ModelOptions

    torch.manual_seed(0)
    whole, body = network().eval(), nn.Sequential(*list(network())[:6]).eval()
    for name, module in (("whole", whole), ("body", body)):
        export(module, torch.rand(1, 1, 8, 8), tmp_path / f"{name}.onnx")
    encoder = load_model(tmp_path / "body.onnx", options=ModelOptions(task="encoder"))
    assert encoder.modality == ImageEncoder() and encoder.classes == 9
    cut = load_model(tmp_path / "whole.onnx", options=ModelOptions(task="encoder", layer="penultimate"))
    assert cut.modality == ImageEncoder() and cut.classes == 9
    with pytest.raises(InputError, match="--task encoder"):
        ModelOptions(layer="penultimate")
    import numpy as np

    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32),
             y=np.arange(40) % 13)  # more labels than the encoder is wide
    samples = load_data(tmp_path / "data.npz", encoder)
    assert len(samples) == 40 and not samples.labelled and any("not used" in n for n in samples.notes)
