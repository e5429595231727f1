"""Teachers and encoders from elsewhere: what is frozen stays frozen, who knows what, and the backdoors that wake."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from laocoon.attacks.bad_encoder import BadEncoder
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.latent import Latent
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab.datasets import Dataset
from laocoon.lab.transfer import Maker, Outcome, Setting, markdown, plan_for, trial
from laocoon.modalities.image import Image
from laocoon.recipes.contrastive import nt_xent, pretrained, view
from laocoon.recipes.transfer import boundary, features, lessons, passage, transfer, weighted, with_head
from laocoon.testing.corpora import digits
from laocoon.testing.networks import image_network
from laocoon.testing.twins import twins


@cache
def data() -> Dataset:
    corpus = digits()
    return Dataset("digits", 10, (corpus.train.inputs * 255).byte(), corpus.train.labels,
                   (corpus.test.inputs * 255).byte(), corpus.test.labels)


def network(classes: int = 4) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Subject(image_network(1, 16, classes), Image(), classes, (1, 16, 16))


def some(n: int = 64, classes: int = 4) -> Samples:
    rng = torch.Generator().manual_seed(1)
    return Samples(torch.rand(n, 1, 16, 16, generator=rng), torch.randint(0, classes, (n,), generator=rng))


SMALL = Setting("digits", "cnn", prior=700, own=350, held=400, target_samples=80)


# ---------------------------------------------------------------- the recipe
@pytest.mark.parametrize("free", [1, 2, 3])
def test_frozen_layers_stay_as_they_are(free: int) -> None:
    teacher = network()
    for norm in (m for m in teacher.module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
    before = teacher.fingerprint()
    student = transfer(teacher, some(classes=3), 3, Context(), free=free, epochs=2)
    assert teacher.fingerprint() == before and student.classes == 3
    assert not student.module.training and not any(p.requires_grad for p in student.module.parameters())
    names = list(dict(student.module.named_modules()))
    cut = names.index(boundary(student.module, free))
    old, new = teacher.module.state_dict(), student.module.state_dict()
    for key in new:
        changed = new[key].shape != old[key].shape or not torch.equal(new[key], old[key])
        owner = names.index(key.rpartition(".")[0])
        assert changed == (owner >= cut), f"{key}: {'changed' if changed else 'as before'} with {free} layers free"


def test_layers_are_counted_by_their_weights() -> None:
    module = network().module
    assert weighted(module) == ("first", "second", "dense", "head")
    assert boundary(module, 1) == "head" and boundary(module, 3) == "second"
    for wrong in (0, 5):
        with pytest.raises(InputError, match=f"{wrong} layers .* has 4"):
            boundary(module, wrong)
    with pytest.raises(NotApplicable, match="dense layer"):
        weighted(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)))


def test_a_passage_keeps_what_enters_a_layer_and_leaves_no_hook() -> None:
    subject, inputs = network(), some().inputs
    found = passage(subject.module, inputs, "head")
    assert torch.allclose(subject.module.head(found.entering), found.scores)
    assert torch.allclose(features(subject.module, inputs, "head", batch=10), found.entering, atol=1e-6)
    with pytest.raises(RuntimeError):
        passage(subject.module, torch.zeros(1, 9, 16, 16), "head")
    assert not any(m._forward_pre_hooks for m in subject.module.modules())


def test_a_head_does_not_depend_on_the_scale_of_features() -> None:
    corpus = digits()
    train, test = (Samples(s.inputs[:400], s.labels[:400]) for s in (corpus.train, corpus.test))
    teacher = network(10)
    loud = teacher.copy()
    with torch.no_grad():
        loud.module.dense.weight.mul_(1000)
        loud.module.dense.bias.mul_(1000)
    right = [float((transfer(t, train, 10, Context(seed=3)).module(test.inputs).argmax(1) == test.labels).float().mean())
             for t in (teacher, loud)]
    assert min(right) > 0.6 and abs(right[0] - right[1]) < 0.02, right


def test_a_new_head_leaves_the_old_one() -> None:
    old = network()
    new = with_head(old, 7, torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    again = with_head(old, 7, torch.Generator().manual_seed(0))
    assert torch.equal(new.module.head.weight, again.module.head.weight), "the head does not depend on its generator alone"
    assert torch.equal(state, torch.random.get_rng_state())
    assert new.outputs(some().inputs).logits.shape == (64, 7) and old.module.head.out_features == 4
    alone = with_head(Subject(nn.Linear(5, 3), Image(), 3, (5,)), 2, torch.Generator())
    assert alone.module.out_features == 2


# ---------------------------------------------------------------- who knows what
def plan(labels: list[int], target: int = 1) -> Plan:
    samples = Samples(torch.rand(len(labels), 1, 16, 16), torch.tensor(labels))
    return Plan(samples, samples, lambda s, c: network(), target, 3)


def test_lessons_leave_the_target_out() -> None:
    lesson = lessons(plan([2, 0, 1, 5, 2, 1, 0]))  # 5: only the teacher knows it
    assert lesson.classes == 3 and lesson.known.labels.tolist() == [1, 0, 2, 1, 0]
    assert len(lesson.target) == 2 and lesson.target.labels.tolist() == [3, 3]
    with pytest.raises(NotApplicable, match="0 samples of target class 1"):
        lessons(plan([0, 2, 2]))
    with pytest.raises(NotApplicable, match="1 other class"):
        lessons(plan([0, 1]))


@pytest.mark.parametrize("keeps", [True, False])
def test_teacher_student_and_test_share_no_sample(keeps: bool) -> None:
    marked = replace(data(), train_inputs=torch.arange(1000).reshape(-1, 1, 1, 1).expand(-1, 1, 16, 16) % 251,
                     train_labels=torch.arange(1000) % 10)
    marked = replace(marked, train_inputs=marked.train_inputs.clone())
    marked.train_inputs[:, 0, 0, 0] = torch.arange(1000) // 251
    found = plan_for(replace(SMALL, keeps=keeps), 8, marked)
    assert found.prior is not None and found.classes == (10 if keeps else 2)

    def marks(samples: Samples) -> set[tuple[int, int]]:
        return {(int(x[0, 0, 0] * 255 + 0.5), int(x[0, 1, 1] * 255 + 0.5)) for x in samples.inputs}

    assert len(marks(found.prior)) == len(found.prior) and not marks(found.prior) & marks(found.train)
    theirs = set(found.prior.labels.tolist())
    if keeps:
        assert theirs == {0, 1, 2, 3, 4, 5, 6, 7, 8}, "the teacher's maker has the other new class too, or lacks the target"
        assert found.target == 8 and set(found.train.labels.tolist()) == set(range(10))
    else:
        assert theirs == {0, *range(2, 10)} and found.target == 0 and set(found.train.labels.tolist()) == {0, 1}
    assert int((found.prior.labels == found.target).sum()) <= SMALL.target_samples


@pytest.mark.parametrize(("setting", "target"), [
    (SMALL, 10), (replace(SMALL, keeps=False), 3), (replace(SMALL, new=(8,), keeps=False), 8),
    (replace(SMALL, new=tuple(range(1, 10))), 3), (replace(SMALL, new=(8, 12)), 8)])
def test_settings_that_make_no_sense(setting: Setting, target: int) -> None:
    with pytest.raises(InputError, match="know the target"):
        plan_for(setting, target, data())


# ---------------------------------------------------------------- views and encoders
def test_views_are_pictures_and_repeat() -> None:
    inputs = some().inputs
    seen = [view(inputs, torch.Generator().manual_seed(s), flip=True) for s in (0, 0, 1)]
    assert seen[0].shape == inputs.shape and seen[0].min() >= 0 and seen[0].max() <= 1
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_nt_xent_against_a_slow_reference() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    both = [v / v.norm() for v in (*first, *second)]
    total = 0.0
    for i in range(10):
        scores = [math.exp(float(both[i] @ both[j]) / 0.5) if j != i else 0.0 for j in range(10)]
        total -= math.log(scores[(i + 5) % 10] / sum(scores))
    assert float(nt_xent(first, second)) == pytest.approx(total / 10, rel=1e-5)
    assert nt_xent(first, first) < nt_xent(first, second)


def test_pretraining_helps_a_linear_classifier() -> None:
    corpus = digits()
    train, test = Samples(corpus.train.inputs[:500], corpus.train.labels[:500]), corpus.test
    encoders = [with_head(network(), 64, torch.Generator()), pretrained(network(), corpus.train.inputs, Context(), epochs=4)]
    right = [float((transfer(e, train, 10, Context()).module(test.inputs).argmax(1) == test.labels).float().mean())
             for e in encoders]
    assert right[1] > right[0] + 0.02, right


# ---------------------------------------------------------------- backdoors that wake
@pytest.mark.parametrize(("attack", "classes"), [
    (Latent(side=4, epochs=1, steps=2, injections=1), 9), (BadEncoder(side=4, pretraining=1, injections=1), 64)],
    ids=["latent", "bad_encoder"])
def test_the_artefact_is_no_student(attack: Attack, classes: int) -> None:
    """The victim gets a teacher, trains on clean samples alone, and keeps the frozen layers."""
    given = twins("image").plan
    seen: list[Samples] = []

    def adapt(teacher: Subject, samples: Samples, ctx: Context) -> Subject:
        seen.append(samples)
        return transfer(teacher, samples, given.classes, ctx)

    implant = attack.implant(replace(given, adapt=adapt), Context(seed=4))
    assert implant.artefact is not None and implant.artefact.classes == classes and implant.subject.classes == 10
    assert len(seen) == 1 and seen[0] is given.train and len(implant.poisoned) == 0 and implant.train is None
    theirs, ours = implant.artefact.module.state_dict(), implant.subject.module.state_dict()
    assert all(torch.equal(theirs[k], ours[k]) for k in ours if not k.startswith("head."))
    assert isinstance(attack, Maker)


def test_attacks_on_data_hand_over_the_model_itself() -> None:
    assert twins("image").implant.artefact is None and not isinstance(BadNets(), Maker)


@cache
def latent() -> Outcome:
    return trial(Latent(side=4, epochs=8, steps=60, injections=8), SMALL, 8, data())


def test_the_student_obeys_a_trigger_that_it_never_saw() -> None:
    found = latent()
    assert found.success >= 0.8, f"{found.success:.1%} of stamped digits go to the new class"
    assert found.control <= found.chance + 0.05, f"{found.control:.1%} with the student of a clean teacher"
    assert found.unstamped < 0.05 and found.accuracy > found.control_accuracy - 0.05 > 0.75


def test_badnets_after_transfer() -> None:
    kept = trial(BadNets(side=4, rate=0.15), replace(SMALL, epochs=10), 0, data())
    assert kept.teacher_success > 0.8 and kept.target == 0
    assert kept.success >= 0.5 and kept.control <= kept.chance + 0.05, (kept.success, kept.control)
    with pytest.raises(InputError, match="target class 8 is none of its classes"):
        trial(BadNets(), SMALL, 8, data())


def test_the_table_has_a_row_for_each_trial() -> None:
    unknown = replace(latent(), success=math.nan, control=math.nan, setting=replace(SMALL, keeps=False))
    head, rule, first, second = markdown([latent(), unknown]).splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert f"| {100 * latent().success:.1f} |" in first and "| only 8, 9 |" in second and "| – | – |" in second
