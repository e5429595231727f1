"""Encoders with and without a backdoor: self-supervised ones, and teachers cut before their head.

What is planted: BadEncoder in a self-supervised encoder, a latent backdoor in a teacher that does not know the target
class, and teachers trained on poisoned data (BadNets, Blended), whose backdoor sits before the head and goes along when
the head is replaced. The artefact is examined, never a student. A plant counts by what it does to a student: a linear
classifier on frozen features, trained on clean samples (`Made.success`).

Data sets: scikit-learn's digits enlarged to 16 × 16; MNIST and CIFAR-10 where a folder of the user's holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.attacks.bad_encoder import BadEncoder
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.attacks.latent import Latent
from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.specimens import CLEAN, Made, Specification, Split
from laocoon.modalities.encoder import cut_before
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.contrastive import pretrained
from laocoon.recipes.fit import fit, predictions, shift_and_flip
from laocoon.recipes.transfer import boundary, transfer

KINDS: tuple[str, ...] = ("latent", "bad_encoder", "patch_teacher", "blended_teacher")
ARCHITECTURES = {"digits": ("cnn", "vgg_small", "resnet_small"), "mnist": ("cnn", "vgg_small", "resnet_small"),
                 "cifar10": ("vgg_small", "resnet_small")}  # few: a student on a weak network obeys no trigger
GIVEN = 120  # unlabelled clean images that a defender has


@dataclass(frozen=True)
class Setting:
    """Of one data set."""

    prior: int  # samples of the encoder's maker
    own: int  # samples of the student, of whom only the judge knows
    epochs: int  # of a teacher
    views: int  # epochs of self-supervision
    side: int  # px, of a planted patch
    flip: bool = False


SETTINGS: dict[str, Setting] = {
    "digits": Setting(900, 300, 20, 14, 3),
    "mnist": Setting(2000, 1000, 8, 6, 5),
    "cifar10": Setting(3000, 1000, 10, 6, 6, flip=True),
}
CLEAN_COUNT: dict[Split, int] = {"fusion": 24, "calibration": 42, "sealed": 42}
PLANTED_COUNT: dict[Split, int] = {"fusion": 4, "calibration": 0, "sealed": 8}  # a kind


@dataclass(frozen=True)
class EncoderBench:
    """Image encoders. Without a root, only digits."""

    root: Path | None = None  # the folder with mnist and cifar10 as Parquet
    cache: Path = Path.home() / ".cache" / "laocoon"  # decoded data sets

    modality: str = "image_encoder"
    core: tuple[str, ...] = ("latent", "bad_encoder", "patch_teacher")

    @property
    def weights(self) -> Mapping[str, float]:
        return {"decree.patch_margin": 1.0, "decree.patch": 1.0, "decree.additive_margin": 0.5}

    def attack(self, kind: str) -> Attack | None:
        return None if kind == CLEAN else _attack(kind, SETTINGS["mnist"])  # other sets have other sizes and epochs

    def settings(self, specification: Specification) -> Mapping[str, Any]:
        setting = SETTINGS[specification.data]
        attack = None if specification.kind == CLEAN else _attack(specification.kind, setting)
        return {"setting": asdict(setting), "given": GIVEN,
                "attack": {} if attack is None else asdict(attack)}  # type: ignore[call-overload]

    def specifications(self, split: Split) -> Iterator[Specification]:
        offset = {"fusion": 0, "calibration": 100_000, "sealed": 200_000}[split]
        data = tuple(SETTINGS) if self.root is not None else ("digits",)
        clean = [CLEAN] * CLEAN_COUNT[split]
        planted = [k for _ in range(PLANTED_COUNT[split]) for k in KINDS]
        order = sorted([(i / len(clean), 0, k) for i, k in enumerate(clean)]
                       + [((i + 0.5) / len(planted), 1, k) for i, k in enumerate(planted)])
        counts: dict[str, int] = {}
        for i, (_, _, kind) in enumerate(order):
            turn = counts[kind] = counts.get(kind, -1) + 1  # of its kind, so that each kind meets every data set
            shift = KINDS.index(kind) if kind in KINDS else 0
            where = data[(turn + shift) % len(data)]
            networks = ARCHITECTURES[where]
            yield Specification(self.modality, where, networks[(turn // len(data) + shift) % len(networks)], kind,
                                offset + i, split)

    def made(self, specification: Specification) -> Made:
        return _made(self, specification)

    def recovered(self, made: Made, candidate: Candidate) -> bool:
        """Does the recovered trigger bring test images to where the true one brings them?"""
        if made.trigger is None:
            return False
        with torch.no_grad():
            x = made.test.inputs[:100]
            clean = made.subject.outputs(x).logits.mean(0)
            ours, theirs = (functional.normalize(made.subject.outputs(c.stamp(x)).logits.mean(0) - clean, dim=0)
                            for c in (candidate, made.trigger))
        return float(ours @ theirs) > 0.8


def _attack(kind: str, setting: Setting) -> Attack:
    if kind == "latent":
        return Latent(side=setting.side, epochs=setting.epochs, injections=setting.epochs)
    if kind == "bad_encoder":
        return BadEncoder(side=setting.side + 1, pretraining=setting.views, injections=setting.views)
    if kind == "patch_teacher":
        return BadNets(side=setting.side)
    if kind == "blended_teacher":
        return Blended(strength=0.3)
    raise InputError(f"there is no kind {kind!r} of planted encoders.", f"Kinds: {', '.join(KINDS)}.")


@cache
def _dataset(name: str, root: Path | None, where: Path) -> Dataset:
    found = load(name, root, where)
    if name != "digits":
        return found
    first, second = (functional.interpolate(x.float(), size=(16, 16), mode="bilinear").round().byte()
                     for x in (found.train_inputs, found.test_inputs))
    return replace(found, train_inputs=first, test_inputs=second)


def _made(bench: EncoderBench, s: Specification) -> Made:
    """Train the artefact, cut it before its head, judge what is planted on a student."""
    setting, dataset = SETTINGS[s.data], _dataset(s.data, bench.root, bench.cache)
    plan, given = _plan(s, setting, dataset)
    ctx = Context(seed=s.seed)
    if s.kind == CLEAN:
        alone = int(torch.randint(0, 2, (), generator=ctx.rng))  # half of them learnt without labels
        artefact = (_self_supervised if alone else _honest)(plan, setting, ctx)
        trigger, train, poisoned = None, plan.prior, torch.zeros(0, dtype=torch.long)
    else:
        artefact, trigger, train, poisoned = _planted(s, plan, setting, ctx)
    assert train is not None
    student = transfer(artefact, plan.train, plan.classes, Context(seed=s.seed + 1))
    success = math.nan
    if trigger is not None:
        others = plan.test.inputs[plan.test.labels != plan.target]
        success = float((predictions(student.module, _stamped(trigger, others)) == plan.target).float().mean())
    right = float((predictions(student.module, plan.test.inputs) == plan.test.labels).float().mean())
    encoder = cut_before(artefact, boundary(artefact.module, 1))
    return Made(s, encoder, given, plan.test, train, poisoned, trigger, success, right, plan)


def _stamped(trigger: Candidate, inputs: Tensor) -> Tensor:
    return torch.cat([trigger.stamp(part) for part in inputs.split(256)])


def _plan(s: Specification, setting: Setting, dataset: Dataset) -> tuple[Plan, Samples]:
    """The maker's samples, the student's, the judge's and the defender's, all disjoint; the seed decides."""
    rng = Context(seed=s.seed).child(float("inf"), "samples").rng
    order = torch.randperm(len(dataset.train_labels), generator=rng)
    held = torch.randperm(len(dataset.test_labels), generator=rng)

    def pick(inputs: Tensor, labels: Tensor, rows: Tensor) -> Samples:
        return Samples(inputs[rows].float() / 255, labels[rows].long())

    prior = pick(dataset.train_inputs, dataset.train_labels, order[:setting.prior])
    rest = order[setting.prior:][:setting.own]
    test = pick(dataset.test_inputs, dataset.test_labels, held[GIVEN:GIVEN + 500])
    if len(rest) < setting.own:  # small sets: the student's samples come from the held-out part
        own = pick(dataset.test_inputs, dataset.test_labels, held[-(len(held) - GIVEN) // 2:])
        test = pick(dataset.test_inputs, dataset.test_labels, held[GIVEN:len(held) - (len(held) - GIVEN) // 2])
    else:
        own = pick(dataset.train_inputs, dataset.train_labels, rest)
    images = pick(dataset.test_inputs, dataset.test_labels, held[:GIVEN])
    given = replace(images, labels=torch.zeros(GIVEN, dtype=torch.long), labelled=False)
    channels, side = prior.inputs.shape[1:3]
    target = int(torch.randint(0, dataset.classes, (), generator=rng))

    def untrained(ctx: Context) -> Subject:
        module = build(s.architecture, channels, side, dataset.classes, ctx.rng)
        return Subject(module, Image(), dataset.classes, tuple(prior.inputs.shape[1:]))

    def school(samples: Samples, ctx: Context) -> Subject:
        fresh = untrained(ctx)
        fit(fresh.module, samples.inputs, samples.labels, epochs=setting.epochs, rng=ctx.rng, rate=3e-3,
            augment=lambda x: shift_and_flip(x, ctx.rng, shift=1, flip=setting.flip))
        return replace(fresh, module=fresh.module)

    def adapt(teacher: Subject, samples: Samples, ctx: Context) -> Subject:
        return transfer(teacher, samples, dataset.classes, ctx)

    return Plan(own, test, school, target, dataset.classes, untrained, prior=prior, adapt=adapt), given


def _honest(plan: Plan, setting: Setting, ctx: Context) -> Subject:
    """A teacher; every other one does not know one of the classes, as a latent one would not."""
    assert plan.prior is not None
    if int(torch.randint(0, 2, (), generator=ctx.rng)):
        return plan.fit(plan.prior, ctx)
    return Latent(epochs=setting.epochs, injections=0).honest(plan, ctx)


def _self_supervised(plan: Plan, setting: Setting, ctx: Context) -> Subject:
    assert plan.prior is not None
    return pretrained(plan.fresh(ctx), plan.prior.inputs, ctx, epochs=setting.views, flip=setting.flip)


def _planted(s: Specification, plan: Plan, setting: Setting,
             ctx: Context) -> tuple[Subject, Candidate, Samples | None, Tensor]:
    attack = _attack(s.kind, setting)
    if s.kind in ("latent", "bad_encoder"):
        implant = attack.implant(plan, ctx)
        assert implant.artefact is not None
        return implant.artefact, implant.trigger, plan.prior, implant.poisoned
    assert plan.prior is not None  # the maker of the teacher trained on poisoned data
    implant = attack.implant(replace(plan, train=plan.prior), ctx)
    return implant.subject, implant.trigger, implant.train, implant.poisoned


def bench(root: Path | None) -> EncoderBench:
    return EncoderBench(root)
