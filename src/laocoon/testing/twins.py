"""Tiny planted and clean models of each modality, trained in seconds, for the contract checks.

A planted twin and its clean twin share data, architecture and seed: all that differs is the backdoor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from laocoon.attacks.bad_encoder import BadEncoder
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.attacks.text_badnets import TextBadNets
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.core.subject import Subject
from laocoon.modalities.encoder import cut_before
from laocoon.recipes.fit import fit, predictions
from laocoon.recipes.transfer import adapted
from laocoon.testing.corpora import Corpus, digits, reviews, tumours
from laocoon.testing.networks import TextNetwork, image_network, tabular_network


@dataclass(frozen=True, eq=False)
class Twins:
    """What a check needs. `planted` and `clean` are what a defender sees; `implant` is the truth."""

    corpus: Corpus
    planted: ModelCase
    clean: ModelCase
    implant: Implant
    plan: Plan
    success: float  # attack success rate of the planted twin on test samples
    accuracy: float  # clean accuracy of the clean twin
    planted_accuracy: float


def network(corpus: Corpus) -> nn.Module:
    """An untrained network for a corpus; the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = corpus.train.inputs
        if corpus.modality.name == "image":
            return image_network(inputs.shape[1], inputs.shape[2], corpus.classes)
        if corpus.modality.name == "text":
            return TextNetwork(len(corpus.modality.vocabulary), corpus.classes)  # type: ignore[attr-defined]
        return tabular_network(inputs.shape[1], corpus.classes, inputs.mean(0), inputs.std(0))


def recipe(corpus: Corpus, epochs: int) -> Callable[[Samples, Context], Subject]:
    """The victim's training: deterministic in the samples and the context's randomness."""
    start = network(corpus)

    def train(samples: Samples, ctx: Context) -> Subject:
        module = copy.deepcopy(start)
        rng = torch.Generator().manual_seed(1)  # the twins' own, so that only the data differs between them
        fit(module, samples.inputs, samples.labels, epochs=epochs, rng=rng, batch=64, rate=5e-3)
        return Subject(module, corpus.modality, corpus.classes, tuple(samples.inputs.shape[1:]))

    return train


def plan_for(corpus: Corpus, epochs: int, target: int) -> Plan:
    def untrained(ctx: Context) -> Subject:
        return Subject(network(corpus), corpus.modality, corpus.classes, tuple(corpus.train.inputs.shape[1:]))

    return Plan(corpus.train, corpus.test, recipe(corpus, epochs), target, corpus.classes, untrained,
                modality=corpus.modality)


def accuracy(subject: Subject, samples: Samples) -> float:
    """Share of samples predicted as labelled."""
    return float((predictions(subject.module, samples.inputs) == samples.labels).float().mean())


@torch.no_grad()
def success(implant: Implant, samples: Samples) -> float:
    """Attack success rate: share of the samples that the goal speaks of, stamped, that go where it says."""
    goal = implant.trigger.goal
    rows = goal.applies(samples.labels)
    stamped = torch.cat([implant.trigger.stamp(part) for part in samples.inputs[rows].split(256)])
    return float(goal.success(implant.subject.outputs(stamped), samples.labels[rows]).float().mean())


def few(samples: Samples, classes: int, each: int) -> tuple[Samples, Samples]:
    """What a defender has: `each` samples a class to fit on and as many to judge on."""
    rows = [(samples.labels == c).nonzero().flatten() for c in range(classes)]
    given, held = (torch.cat([r[a:b] for r in rows]) for a, b in ((0, each), (each, 2 * each)))
    return Samples(samples.inputs[given], samples.labels[given]), Samples(samples.inputs[held], samples.labels[held])


def make_twins(corpus: Corpus, attack: Attack, epochs: int, target: int, each: int, seed: int) -> Twins:
    """Twins of a corpus of one's own, trained now."""
    plan = plan_for(corpus, epochs, target)
    implant = attack.implant(plan, Context(seed=seed))
    clean = plan.fit(plan.train, Context(seed=seed))
    given, held = few(plan.test, plan.classes, each)
    planted = ModelCase(implant.subject, given, held)
    return Twins(corpus, planted, replace(planted, subject=clean), implant, plan, success(implant, plan.test),
                 accuracy(clean, plan.test), accuracy(implant.subject, plan.test))


@cache
def twins(modality: str, goal: str = "all-to-one") -> Twins:
    """The twins of a modality, with a backdoor of one kind of goal; trained once a process."""
    if modality == "image":
        attacks = {"all-to-one": BadNets(rate=0.1, side=4),
                   "whole-image": Blended(rate=0.15, strength=0.25, pattern="smooth"),
                   "source-to-target": BadNets(rate=0.05, side=4, mode="source", cover_rate=0.15),
                   "all-to-all": BadNets(rate=0.4, side=4, mode="all-to-all")}
        return make_twins(digits(), attacks[goal], epochs=8, target=3, each=8, seed=3)
    if modality == "text" and goal == "all-to-one":
        return make_twins(reviews(), TextBadNets(), epochs=20, target=1, each=20, seed=1)
    if modality == "tabular" and goal == "all-to-one":
        return make_twins(tumours(), TabularBadNets(rate=0.15), epochs=40, target=1, each=20, seed=3)
    if modality == "image_encoder" and goal == "all-to-one":
        return _encoders(digits(), BadEncoder(side=4, pretraining=6, injections=5), target=3, each=8, seed=3)
    if modality == "text_encoder" and goal == "all-to-one":
        pair = twins("text")
        return _cut(pair, pair.planted.subject, pair.clean.subject, pair.implant)
    raise KeyError(f"there are no {goal!r} twins for {modality!r}.")


def _encoders(corpus: Corpus, attack: BadEncoder, target: int, each: int, seed: int) -> Twins:
    """Self-supervised encoders without their last layer; success and accuracy are those of students."""
    plan = plan_for(corpus, 0, target)
    implant = attack.implant(plan, Context(seed=seed))
    honest = attack.honest(plan, Context(seed=seed))
    assert implant.artefact is not None
    student = adapted(plan, honest, Context(seed=seed))
    case = ModelCase(honest, *few(plan.test, plan.classes, each))
    pair = Twins(corpus, case, case, implant, plan, success(implant, plan.test), accuracy(student, plan.test),
                 accuracy(implant.subject, plan.test))
    return _cut(pair, implant.artefact, honest, implant)


def _cut(pair: Twins, planted: Subject, clean: Subject, implant: Implant) -> Twins:
    """The encoders before the last layers of two networks."""
    first, second = (cut_before(subject) for subject in (planted, clean))
    return replace(pair, corpus=replace(pair.corpus, modality=first.modality, classes=first.classes),
                   planted=replace(pair.planted, subject=first), clean=replace(pair.clean, subject=second),
                   implant=replace(implant, artefact=first))
