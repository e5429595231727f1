"""The guard around a model: rates, policies, what it wraps, and what it writes."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laocoon.core.cases import Samples
from laocoon.core.errors import BrokenFile, InputError
from laocoon.guards.ibd_psc import IbdPsc
from laocoon.guards.mahalanobis import Mahalanobis
from laocoon.guards.scale_up import ScaleUp
from laocoon.guards.strip import Strip
from laocoon.guards.ted import Ted
from laocoon.recipes.conformal import p_value
from laocoon.testing.twins import Twins, twins
from laocoon.verdict.guard import FlaggedRequest, Guarded, Policy, p_values
from laocoon.verdict.guard_halves import halves
from laocoon.verdict.guard_tiers import Opinion, Tiers

QUICK = Tiers(second=(Opinion(Strip(overlays=3)),))


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("image")


def some(pair: Twins, start: int, stop: int) -> Samples:
    test = pair.plan.test
    return Samples(test.inputs[start:stop], test.labels[start:stop])


@pytest.fixture(scope="module")
def clean(pair: Twins) -> Samples:
    return some(pair, 0, 200)


@pytest.fixture(scope="module")
def guarded(pair: Twins, clean: Samples) -> Guarded:
    return Guarded.fit(pair.planted.subject, clean, tiers=QUICK)


def stamped(pair: Twins, count: int = 40) -> Tensor:
    trigger, rest = pair.implant.trigger, some(pair, 200, 600)
    return trigger.stamp(rest.inputs[trigger.goal.applies(rest.labels)][:count])


def test_triggers_are_flagged_and_clean_requests_are_not(guarded: Guarded, pair: Twins) -> None:
    said, usual = guarded.check(stamped(pair)), guarded.check(some(pair, 200, 500).inputs)
    assert float(said.flagged.float().mean()) > 0.9
    assert float(usual.flagged.float().mean()) < 0.12
    assert torch.equal(said.flagged, said.p_values <= 0.05)
    assert float(said.p_values.min()) >= 1 / (len(guarded.calibration) + 1) - 1e-7
    with torch.no_grad():
        assert torch.allclose(said.logits, pair.planted.subject.module(stamped(pair)), atol=1e-4)


def test_the_rate_of_false_alarms_is_that_of_the_whole_pipeline(pair: Twins) -> None:
    """Over ten splits, both tiers in play: 10 % asked for, and the mean over splits stays near it."""
    test, rates, asked = pair.plan.test, [], 0
    for seed in range(10):
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
        given, rest = order[:160], order[160:460]
        guard = Guarded.fit(pair.planted.subject, Samples(test.inputs[given], test.labels[given]), alpha=0.1, seed=seed,
                            tiers=QUICK)
        said = guard.check(test.inputs[rest])
        rates.append(float(said.flagged.float().mean()))
        asked += int((said.tier == 2).sum())
    assert 0.03 < sum(rates) / len(rates) < 0.13, f"{rates}"
    assert asked, "tier two never looked"


def test_only_the_doubtful_are_asked_again(guarded: Guarded, pair: Twins) -> None:
    usual = guarded.check(some(pair, 200, 500).inputs)
    assert 0 < float((usual.tier == 2).float().mean()) < 0.45
    assert bool((guarded.check(stamped(pair)).tier == 2).float().mean() > 0.9)
    everyone = Guarded.fit(pair.planted.subject, some(pair, 0, 120), tiers=Tiers(second=QUICK.second, doubt=1.0))
    assert bool((everyone.check(some(pair, 200, 240).inputs).tier == 2).all())
    unasked = Guarded.fit(pair.planted.subject, some(pair, 0, 120), tiers=Tiers(second=QUICK.second, doubt=0.0))
    assert bool((unasked.check(some(pair, 200, 240).inputs).tier == 1).all())
    nobody = Guarded.fit(pair.planted.subject, some(pair, 0, 120), tiers=Tiers(second=()))
    assert bool((nobody.check(stamped(pair)).tier == 1).all()) and nobody.passes == (1.0, 1.0)


def test_p_values_are_those_of_the_recipe() -> None:
    calibration = torch.tensor([1.0, 2.0, 2.0, 5.0])
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 9.0])
    assert p_values(scores, calibration).tolist() == pytest.approx(
        [p_value(s, calibration.tolist()) for s in scores.tolist()])


def test_halves_are_disjoint_and_of_every_class() -> None:
    clean = Samples(torch.arange(31.0).reshape(31, 1, 1, 1), torch.arange(31) % 3)
    first, second = halves(clean, 4)
    assert len(first) + len(second) == 31 and not set(first.inputs.flatten().tolist()) & set(
        second.inputs.flatten().tolist())
    for half in (first, second):
        assert bool((torch.bincount(half.labels) >= 5).all())
    assert torch.equal(first.inputs, halves(clean, 4)[0].inputs) and not torch.equal(first.inputs, halves(clean, 5)[0].inputs)


def test_a_rate_too_fine_for_the_samples_names_how_many_are_needed(pair: Twins, clean: Samples) -> None:
    with pytest.raises(InputError, match=r"at least 999 samples.*1998 clean samples"):
        Guarded.fit(pair.planted.subject, clean, alpha=0.001)
    few = some(pair, 0, 38)
    with pytest.raises(InputError, match="at least 19"):
        Guarded.fit(pair.planted.subject, few, alpha=0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_is_between_none_and_all(alpha: float, pair: Twins, clean: Samples) -> None:
    with pytest.raises(InputError, match="alpha"):
        Guarded.fit(pair.planted.subject, clean, alpha=alpha)


def test_log_lets_the_answer_out_and_says_so(guarded: Guarded, pair: Twins, caplog: pytest.LogCaptureFixture) -> None:
    batch = stamped(pair, 5)
    with caplog.at_level(logging.WARNING, "laocoon.guard"):
        logits = guarded(batch)
    assert torch.equal(logits, guarded.check(batch).logits)
    assert "flagged 5 of 5" in caplog.text


def test_block_refuses_the_batch(guarded: Guarded, pair: Twins) -> None:
    strict = guarded.under(policy="block")
    quiet = next(x for x in some(pair, 200, 300).inputs.split(1) if not guarded.check(x).flagged.any())
    assert torch.equal(strict(quiet), guarded.check(quiet).logits)
    with pytest.raises(FlaggedRequest, match=r"samples \[1\]") as caught:
        strict(torch.cat([quiet, stamped(pair, 1)]))
    assert caught.value.judgement.flagged.tolist() == [False, True]


def test_abstain_answers_the_others(guarded: Guarded, pair: Twins) -> None:
    quiet = next(x for x in some(pair, 200, 300).inputs.split(1) if not guarded.check(x).flagged.any())
    told = guarded.under(policy=Policy.ABSTAIN).answer(torch.cat([quiet, stamped(pair, 2)]))
    assert told.answered.tolist() == [True, False, False] and not told.purified.any()
    assert bool(told.logits[1:].isnan().all()) and bool(torch.isfinite(told.logits[0]).all())


def test_purify_answers_what_is_left_of_the_request(guarded: Guarded, pair: Twins) -> None:
    careful = guarded.under(policy="purify")
    assert careful.purifier is not None and guarded.purifier is None
    batch = stamped(pair, 20)
    told = careful.answer(batch)
    assert torch.equal(told.answered, ~told.judgement.flagged | told.purified)
    again = careful.check(careful.purifier(batch))
    assert torch.equal(told.purified, told.judgement.flagged & ~again.flagged)
    assert bool(told.logits[~told.answered].isnan().all())
    assert torch.allclose(told.logits[told.purified], again.logits[told.purified], atol=1e-4)


def test_policies_are_named(guarded: Guarded) -> None:
    with pytest.raises(InputError, match="log, block, abstain, purify"):
        guarded.under(policy="shout")


def test_a_module_in_training_is_left_as_it_is(pair: Twins, clean: Samples) -> None:
    module = pair.planted.subject.copy().module.train().requires_grad_(True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    guard = Guarded.fit(module, clean, tiers=QUICK)
    guard.check(stamped(pair, 4))
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    same = Guarded.fit(pair.planted.subject, clean, tiers=QUICK)
    assert torch.allclose(guard.check(stamped(pair, 9)).scores, same.check(stamped(pair, 9)).scores, atol=1e-3)


@pytest.mark.parametrize("form", ["logits", "probabilities", "labels"])
def test_a_function_is_a_black_box(form: str, pair: Twins, clean: Samples) -> None:
    module = pair.planted.subject.module

    def model(batch: Tensor) -> Tensor:
        logits = module(batch)
        return {"logits": logits, "probabilities": logits.softmax(1), "labels": logits.argmax(1)}[form]

    guard = Guarded.fit(model, clean, classes=10, tiers=Tiers(first=(), second=(Opinion(Strip()),)))
    said = guard.check(stamped(pair))
    assert bool((said.tier == 2).all()) and said.logits.shape == (40, 10)
    if form != "labels":
        assert float(said.flagged.float().mean()) > 0.5
    assert Guarded.fit(model, clean, classes=10).pipeline.tap is None, "a black box has no layers to read"


def test_probabilities_of_a_module_are_taken_as_such(pair: Twins, clean: Samples) -> None:
    module = nn.Sequential(pair.planted.subject.module, nn.Softmax(1))
    guard = Guarded.fit(module, clean, tiers=QUICK)
    inputs = stamped(pair, 6)
    with torch.no_grad():
        assert torch.allclose(guard.check(inputs).logits.softmax(1), module(inputs), atol=1e-4)


@pytest.mark.parametrize(("model", "says"), [
    (lambda x: (x, x), "tuple"), (lambda x: x.argmax(1), "shape"), (lambda x: x.flatten(1).argmax(1), "labels"),
    (lambda x: x.mean((1, 2, 3)), "shape"), (lambda x: x.flatten(1) * float("nan"), "not finite"), (7, "int"),
    (nn.Sequential(nn.Flatten(), nn.Linear(256, 1)), "two classes")])
def test_models_that_cannot_be_guarded_are_named(model: object, says: str, clean: Samples) -> None:
    with pytest.raises(InputError, match=says):
        Guarded.fit(model, clean)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "says"), [
    (lambda s: Samples(s.inputs * 4, s.labels), "normalisation"), (lambda s: Samples(s.inputs[:, 0], s.labels), "images"),
    (lambda s: Samples(s.inputs, s.labels[:9]), "one label"), (lambda s: Samples(s.inputs[:0], s.labels[:0]), "images"),
    (lambda s: Samples(s.inputs[..., 1:], s.labels), "must be")])
def test_clean_samples_are_checked(change: object, says: str, pair: Twins, clean: Samples) -> None:
    with pytest.raises(InputError, match=says):
        Guarded.fit(pair.planted.subject, change(clean))  # type: ignore[operator]


def test_guards_that_do_not_suit_are_left_out_with_the_reason(pair: Twins, clean: Samples) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))
    guard = Guarded.fit(plain, clean, tiers=Tiers(second=(Opinion(IbdPsc()), Opinion(Strip(overlays=2)))))
    assert [second.name for second in guard.pipeline.seconds] == ["strip"]
    assert "batch normalisation" in guard.pipeline.notes[0]
    with pytest.raises(InputError, match="no guard suits"):
        Guarded.fit(lambda x: plain(x), clean, tiers=Tiers(first=(), second=(Opinion(IbdPsc()),)))


def test_tiers_that_make_no_sense_are_refused() -> None:
    for make in (lambda: Tiers(first=(), second=()), lambda: Tiers(doubt=1.5),
                 lambda: Tiers(first=(Mahalanobis(layers=2), Ted(layers=3)))):
        with pytest.raises(InputError):
            make()


def test_judges_of_the_first_tier_share_one_pass(pair: Twins, clean: Samples) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    subject = pair.planted.subject.copy()
    subject.module.register_forward_hook(count)
    guard = Guarded.fit(subject, clean, tiers=Tiers(first=(Mahalanobis(), Ted()), second=()))
    calls = 0
    guard.check(some(pair, 200, 230).inputs)
    assert calls == 1


def test_a_guard_comes_back_from_its_folder(guarded: Guarded, pair: Twins, tmp_path: Path) -> None:
    guarded.under(policy="abstain", alpha=0.1).save(tmp_path / "guard")
    again = Guarded.load(tmp_path / "guard", pair.planted.subject)
    batch = torch.cat([stamped(pair, 10), some(pair, 200, 240).inputs])
    assert torch.allclose(again.check(batch).scores, guarded.check(batch).scores, atol=1e-4)
    assert torch.allclose(again.check(batch).p_values, guarded.check(batch).p_values)
    assert again.policy is Policy.ABSTAIN and again.alpha == 0.1 and again.tiers == guarded.tiers
    assert again.digest == guarded.under(alpha=0.1).digest != guarded.digest
    assert {p.name for p in (tmp_path / "guard").iterdir()} == {"guard.json", "guard.safetensors"}


def test_a_guard_knows_its_model(guarded: Guarded, pair: Twins, tmp_path: Path) -> None:
    guarded.save(tmp_path)
    other = pair.planted.subject.copy()
    with torch.no_grad():
        next(other.module.parameters())[0] += 0.01
    with pytest.raises(InputError, match="another model"):
        Guarded.load(tmp_path, other)
    with pytest.raises(InputError, match="another model"):
        Guarded.load(tmp_path, pair.clean.subject)


def test_a_function_is_known_by_its_answers(pair: Twins, clean: Samples, tmp_path: Path) -> None:
    one, two = pair.planted.subject.module, pair.clean.subject.module
    tiers = Tiers(first=(), second=(Opinion(ScaleUp()),))
    Guarded.fit(lambda x: one(x), clean, tiers=tiers).save(tmp_path)
    assert len(Guarded.load(tmp_path, lambda x: one(x)).calibration)
    with pytest.raises(InputError, match="answers otherwise"):
        Guarded.load(tmp_path, lambda x: two(x))


@pytest.mark.parametrize("harm", ["nothing there", "not JSON", "another format", "other tensors", "a foreign guard",
                                  "a foreign parameter", "lacks alpha", "NaN", "truncated", "not a first guard"])
def test_damaged_guards_are_refused(harm: str, guarded: Guarded, pair: Twins, tmp_path: Path) -> None:
    guarded.save(tmp_path)
    path, tensors = tmp_path / "guard.json", tmp_path / "guard.safetensors"
    told = json.loads(path.read_text())
    if harm == "nothing there":
        path.unlink()
    elif harm == "not JSON":
        path.write_text("{" * 5000)
    elif harm == "another format":
        path.write_text(json.dumps({**told, "format": "laocoon-guard/99"}))
    elif harm == "other tensors":
        tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\0\0\1")
    elif harm == "a foreign guard":
        path.write_text(json.dumps({**told, "second": [{**told["second"][0], "name": "os.system"}]}))
    elif harm == "a foreign parameter":
        path.write_text(json.dumps({**told, "first": [{"name": "mahalanobis", "parameters": {"command": "ls"}}]}))
    elif harm == "lacks alpha":
        path.write_text(json.dumps({k: v for k, v in told.items() if k != "alpha"}))
    elif harm == "not a first guard":
        path.write_text(json.dumps({**told, "first": [{"name": "strip", "parameters": {"overlays": 3}}]}))
    else:
        import hashlib

        import safetensors.torch

        data = tensors.read_bytes()[:-40]
        if harm == "NaN":
            held = safetensors.torch.load(tensors.read_bytes())
            data = safetensors.torch.save({**held, "calibration": held["calibration"] * float("nan")})
        tensors.write_bytes(data)
        path.write_text(json.dumps({**told, "tensors": hashlib.sha256(data).hexdigest()}))
    with pytest.raises((InputError, BrokenFile)):
        Guarded.load(tmp_path, pair.planted.subject)


def test_threads_get_what_they_would_get_alone(guarded: Guarded, pair: Twins) -> None:
    batches = [part for both in zip(stamped(pair).split(5), some(pair, 200, 240).inputs.split(5), strict=True)
               for part in both]
    alone = [guarded.check(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(guarded.check, batches))
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-3) and torch.equal(one.flagged, other.flagged)


def test_none_and_many_samples(guarded: Guarded, pair: Twins) -> None:
    none = guarded.check(torch.zeros(0, *pair.planted.subject.input_shape))
    assert none.logits.shape == (0, 10) and len(none.flagged) == len(none.p_values) == len(none.tier) == 0
    many = some(pair, 0, 600).inputs
    whole = guarded.check(many)
    parts = torch.cat([guarded.check(part).scores for part in many.split(37)])
    assert torch.allclose(whole.scores, parts, atol=2e-3)
