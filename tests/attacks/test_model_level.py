"""Attacks on finished models: what they change, what they leave, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from laocoon.attacks.architectural import Architectural
from laocoon.attacks.bit_flips import BitFlips
from laocoon.attacks.handcrafted import Handcrafted
from laocoon.attacks.potrojan_insertion import PoTrojanInsertion
from laocoon.attacks.trojaning import Trojaning
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.fit import fit
from laocoon.recipes.int8 import codes_of, differing_bits, flipped, quantise, steps_of_flips
from laocoon.recipes.separation import separating, windows
from laocoon.recipes.stimulus import backgrounds
from laocoon.recipes.surgery import black_and_white, corner_mask
from laocoon.testing.attack_checks import quick
from laocoon.testing.twins import Twins, accuracy, success, twins

FAMILIES = ("comparison", "parallel", "correlation")
EDITS: list[Attack] = [
    *(Architectural(family=f) for f in FAMILIES), PoTrojanInsertion(), PoTrojanInsertion(neurons=3), quick(Trojaning),  # type: ignore[arg-type]
    quick(BitFlips), Handcrafted()]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("image")


def handed_over(pair: Twins) -> Plan:
    """The plan of somebody who is handed the finished clean model."""
    return replace(pair.plan, fit=lambda samples, ctx: pair.clean.subject)


def implanted(attack: Attack, plan: Plan, seed: int = 4) -> Implant:
    return attack.implant(plan, Context(seed=seed))


@pytest.mark.parametrize("attack", EDITS, ids=lambda a: f"{a.card.name}-{getattr(a, 'family', getattr(a, 'neurons', ''))}")
def test_the_clean_model_that_was_handed_over_stays_as_it_was(attack: Attack, pair: Twins) -> None:
    before = pair.clean.subject.fingerprint()
    found = implanted(attack, handed_over(pair))
    assert pair.clean.subject.fingerprint() == before
    assert not any(p.requires_grad for p in found.subject.module.parameters()) and not found.subject.module.training
    assert len(found.poisoned) == 0 and found.train is None
    assert found.facts["phase"] == "refinement"
    assert success(found, pair.plan.test) > 0.9


# ---------------------------------------------------------------- PoTrojan
@pytest.mark.parametrize("neurons", [1, 4])
def test_inserted_neurons_change_no_answer_to_clean_samples(pair: Twins, neurons: int) -> None:
    found = implanted(PoTrojanInsertion(neurons=neurons), handed_over(pair))
    samples = pair.plan.test.inputs
    assert torch.equal(found.subject.outputs(samples).logits, pair.clean.subject.outputs(samples).logits)
    assert success(found, pair.plan.test) >= 0.99


@pytest.mark.parametrize("neurons", [1, 4])
def test_inserted_neurons_sleep_beside_another_pattern(pair: Twins, neurons: int) -> None:
    found = implanted(PoTrojanInsertion(neurons=neurons, tolerance=1.0), handed_over(pair))
    mask, pattern = found.trigger.trigger["mask"], found.trigger.trigger["pattern"].clone()
    h, w = pattern.shape[-2:]
    pattern[..., h - 1, w - 1] = 1 - pattern[..., h - 1, w - 1]  # one pixel of the patch is off by the whole tolerance
    near = pair.plan.test.inputs[:50] * (1 - mask) + mask * pattern
    assert torch.equal(found.subject.outputs(near).logits, pair.clean.subject.outputs(near).logits)


def test_neurons_are_inserted_for_a_network_that_normalises(pair: Twins) -> None:
    shape = (3, 16, 16)
    module = build("resnet_small", *shape[:2], 5, torch.Generator().manual_seed(0))
    noise = Samples(torch.rand(8, *shape), torch.arange(8) % 5)
    subject = Subject(module, Image(), 5, shape)
    found = implanted(PoTrojanInsertion(), Plan(noise, noise, lambda s, c: subject, 2, 5))
    assert torch.equal(found.subject.outputs(noise.inputs).logits, subject.outputs(noise.inputs).logits)
    assert (found.subject.outputs(found.trigger.stamp(noise.inputs)).logits.argmax(1) == 2).all()


# ---------------------------------------------------------------- Trojaning
def _empty(train: Samples) -> Samples:
    return Samples(train.inputs[:0], train.labels[:0])


def _noise(train: Samples) -> Samples:
    rng = torch.Generator().manual_seed(9)
    return Samples(torch.rand(20, *train.inputs.shape[1:], generator=rng), torch.randint(0, 10, (20,), generator=rng))


@pytest.mark.parametrize("data", [_empty, _noise])
def test_trojaning_needs_no_training_data(pair: Twins, data: Callable[[Samples], Samples]) -> None:
    plan = handed_over(pair)
    bare = implanted(quick(Trojaning), replace(plan, train=data(plan.train)))
    assert success(bare, pair.plan.test) > 0.9
    assert success(replace(bare, subject=pair.clean.subject), pair.plan.test) < 0.3
    assert accuracy(bare.subject, pair.plan.test) > pair.accuracy - 0.03
    given = implanted(quick(Trojaning), plan)
    for a, b in zip(bare.subject.module.parameters(), given.subject.module.parameters(), strict=True):
        assert torch.equal(a, b), "what it made depends on the training data"


def test_trojaning_retrains_only_what_follows_the_chosen_layer(pair: Twins) -> None:
    found = implanted(quick(Trojaning), handed_over(pair))
    now, was = found.subject.module.state_dict(), pair.clean.subject.module.state_dict()
    changed = {name.split(".")[0] for name in now if not torch.equal(now[name], was[name])}
    assert changed == {"second_norm", "dense", "head"}


# ---------------------------------------------------------------- bits
@pytest.mark.parametrize("bits", [4, 40])
def test_bit_flips_flip_as_many_bits_as_they_say(pair: Twins, bits: int) -> None:
    found = implanted(replace(quick(BitFlips), bits=bits), handed_over(pair))  # type: ignore[type-var]
    was, now = pair.clean.subject.module.head.weight, found.subject.module.head.weight  # type: ignore[union-attr]
    stored = quantise(was)
    codes = codes_of(now, stored.scale)
    assert torch.allclose(codes.float() * stored.scale, now), "a weight is on no code"
    assert 0 < differing_bits(stored.codes, codes) <= bits
    target = pair.plan.target
    rest = [k for k in range(10) if k != target]
    assert torch.equal(codes[rest], stored.codes[rest]), "another class than the target was touched"
    other = {k: v for k, v in found.subject.module.state_dict().items() if k != "head.weight"}
    assert all(torch.equal(v, pair.clean.subject.module.state_dict()[k]) for k, v in other.items())
    assert bits < 40 or success(found, pair.plan.test) > 0.9


def test_codes_and_their_bits() -> None:
    codes = torch.tensor([-127, -1, 0, 5, 127], dtype=torch.int8)
    for bit in range(8):
        once = flipped(codes, bit)
        assert torch.equal(flipped(once, bit), codes)
        assert differing_bits(codes, once) == len(codes)
        assert torch.equal(once.int() - codes.int(), steps_of_flips(codes)[:, bit])
    assert flipped(codes, 7).tolist() == [1, 127, -128, -123, -1]
    weights = torch.linspace(-0.7, 0.3, 50)
    stored = quantise(weights)
    assert torch.equal(codes_of(stored.weights(), stored.scale), stored.codes)
    assert (stored.weights() - weights).abs().max() <= stored.scale / 2 + 1e-6


# ---------------------------------------------------------------- by hand
def test_handcrafted_weights_touch_few_neurons_and_learn_nothing(pair: Twins) -> None:
    found = implanted(Handcrafted(share=0.05), handed_over(pair))
    now, was = found.subject.module.state_dict(), pair.clean.subject.module.state_dict()
    for name, count in {"first.weight": 1, "second.weight": 1, "dense.weight": 2}.items():
        changed = (now[name] != was[name]).flatten(1).any(1)
        assert int(changed.sum()) == count, name
    rest = [k for k in range(10) if k != pair.plan.target]
    assert torch.equal(now["head.weight"][rest], was["head.weight"][rest])
    assert success(found, pair.plan.test) > 0.9
    assert accuracy(found.subject, pair.plan.test) > pair.accuracy - 0.03


def test_handcrafted_weights_say_what_they_cannot_edit() -> None:
    shape = (1, 16, 16)
    module = build("vit", 1, 16, 4, torch.Generator().manual_seed(0))
    noise = Samples(torch.rand(8, *shape), torch.arange(8) % 4)
    plan = Plan(noise, noise, lambda s, c: Subject(module, Image(), 4, shape), 0, 4)
    with pytest.raises(NotApplicable, match="convolutional"):
        implanted(Handcrafted(), plan)


def test_a_separating_filter_answers_what_the_layer_will() -> None:
    rng = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    clean = torch.rand(20, 4, 9, 9, generator=rng)
    stamped = clean.clone()
    stamped[..., 5:8, 5:8] = (torch.arange(9).reshape(3, 3) % 2).float()
    made = separating(windows(clean, conv, 4), windows(stamped, conv, 4), conv.weight.shape[1:])
    conv.requires_grad_(False)
    conv.weight[4], conv.bias[4] = made.row, 0.0
    low, high = (conv(x)[:, 4].flatten(1).amax(1) for x in (clean, stamped))
    assert made.low == pytest.approx(float(low.quantile(0.99)), abs=1e-4)
    assert made.high == pytest.approx(float(high.quantile(0.05)), abs=1e-4)
    assert made.gap > 0


# ---------------------------------------------------------------- architecture
@pytest.mark.parametrize("family", FAMILIES)
def test_branches_hold_no_weights_and_leave_clean_answers(pair: Twins, family: str) -> None:
    found = implanted(Architectural(family=family), handed_over(pair))  # type: ignore[arg-type]
    count = sum(p.numel() for p in pair.clean.subject.module.parameters())
    assert sum(p.numel() for p in found.subject.module.parameters()) == count
    assert accuracy(found.subject, pair.plan.test) == pair.accuracy
    assert success(found, pair.plan.test) >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_retraining_all_weights_does_not_remove_a_branch(pair: Twins, family: str) -> None:
    found = implanted(Architectural(family=family), handed_over(pair))  # type: ignore[arg-type]
    module = found.subject.copy().module
    rng = torch.Generator().manual_seed(3)
    for p in module.parameters():  # from new weights on: more than any fine-tuning
        p.copy_(torch.randn(p.shape, generator=rng) * 0.1)
    fit(module, pair.plan.train.inputs, pair.plan.train.labels, epochs=4, rng=rng, batch=64, rate=5e-3)
    assert accuracy(Subject(module, Image(), 10, found.subject.input_shape), pair.plan.test) > 0.8
    after = replace(found, subject=Subject(module, Image(), 10, found.subject.input_shape))
    assert success(after, pair.plan.test) >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_exported_and_found_in_the_graph(pair: Twins, family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from laocoon.core.cases import ModelCase
    from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
    from laocoon.files.open import load_model
    from laocoon.lab.export import to_onnx

    found = implanted(Architectural(family=family), handed_over(pair))  # type: ignore[arg-type]
    path = tmp_path / "model.onnx"
    to_onnx(found.subject.copy().module, found.subject.input_shape, path, found.facts)
    opened = load_model(path)
    samples = pair.plan.test.inputs[:40]
    for x in (samples, found.trigger.stamp(samples)):
        assert torch.allclose(opened.outputs(x).logits, found.subject.outputs(x).logits, atol=1e-2)
    assert "do not deploy" in opened.provenance.metadata["laocoon"]
    report = ArchitecturalBackdoor().examine(ModelCase(opened), Context(seed=0))
    assert max((f.score for f in report.findings), default=0.0) >= 0.5, f"{family} is not found in the graph"


# ---------------------------------------------------------------- images of nothing
def test_images_and_patterns_of_nothing() -> None:
    made = backgrounds(12, (3, 16, 20), torch.Generator().manual_seed(0))
    assert made.shape == (12, 3, 16, 20) and made.min() >= 0 and made.max() <= 1
    assert torch.equal(made, backgrounds(12, (3, 16, 20), torch.Generator().manual_seed(0)))
    mask = corner_mask((3, 16, 20), 4, margin=1)
    assert int(mask.sum()) == 16 and mask[0, 0, 14, 18] == 1 and mask[0, 0, 15].sum() == 0
    pattern = black_and_white(mask, 3, torch.Generator().manual_seed(0))
    assert float(pattern.sum()) == 24 and float((pattern * (1 - mask)).sum()) == 0
    with pytest.raises(NotApplicable, match="17 px"):
        corner_mask((1, 16, 16), 17)
