"""What every certifier promises, as checks that anyone can run on theirs; above all, that nothing contradicts it.

    for check in CHECKS:
        check(MyCertifier(), bench())

A certificate's `values["claim"]` says what is claimed in a form that can be attacked: a patch, an L2 ball, poisoned
training samples. The attacks here know nothing of how the proof was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.cases import DataCase, ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit
from laocoon.recipes.voting import Votes
from laocoon.testing.card_checks import card_is_complete
from laocoon.testing.corpora import Corpus, digits
from laocoon.testing.networks import image_network
from laocoon.testing.probes import stirred, surroundings, traces
from laocoon.testing.twins import few
from laocoon.trainers.dpa import DPA

ROUNDING = 1e-6  # of a margin


@dataclass(frozen=True, eq=False)
class Bench:
    """Subjects to certify: tiny ones that most methods decide, and an ensemble with what it was trained on."""

    cases: tuple[ModelCase, ...]
    corpus: Corpus
    untrained: Callable[[Context], Subject]
    data: Samples  # of the ensemble, which is the last case
    trainer: DPA


def _tiny() -> nn.Module:
    """Few enough ReLUs for a complete verifier, and nothing that it cannot read: a dense layer, a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


@cache
def bench() -> Bench:
    """Trained once a process, in seconds."""
    corpus = digits(8)

    def untrained(ctx: Context) -> Subject:
        return Subject(_tiny(), corpus.modality, corpus.classes, (1, 8, 8))

    def learnt(module: nn.Module, samples: Samples) -> Subject:
        rng = torch.Generator().manual_seed(1)
        fit(module, samples.inputs, samples.labels, epochs=25, rng=rng, batch=64, rate=2e-2)
        return Subject(module, corpus.modality, corpus.classes, (1, 8, 8))

    poisoned = Samples(corpus.train.inputs.clone(), corpus.train.labels.clone())
    poisoned.inputs[:250, :, -2:, -2:] = 1.0
    poisoned.labels[:250] = 0
    given, held = few(corpus.test, corpus.classes, 2)
    data = Samples(corpus.train.inputs[:300], corpus.train.labels[:300])
    trainer = DPA(parts=9, epochs=12, rate=2e-2)
    ensemble = trainer.train(DataCase(data, corpus.classes, untrained=untrained), Context()).subject
    assert ensemble is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        convolutions = image_network(1, 8, corpus.classes)
    subjects = (learnt(_tiny(), corpus.train), learnt(_tiny(), poisoned), learnt(convolutions, poisoned), ensemble)
    cases = tuple(ModelCase(s, given, held) for s in subjects)
    return Bench(cases, corpus, untrained, data, trainer)


def check_card_is_complete(method: Certifier, bench: Bench) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults."""
    card_is_complete(method, CHECKS)


def check_certificates_are_complete(method: Certifier, bench: Bench) -> None:
    """Statement, assumptions, inputs, a reason where it does not hold; JSON; a claim; some subject is spoken of."""
    for _, found in _issued(method, bench):
        assert found.method == type(method).card.name, f"it names {found.method!r} as its method."
        assert found.statement.strip() and found.inputs.strip() and any(a.strip() for a in found.assumptions)
        assert found.holds is True or found.reason.strip(), "it does not hold, and no reason is given."
        text = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert text["holds"] == found.holds and "counterexample" not in text
        assert found.values["claim"]["kind"] in REFUTERS, f"nobody could attack {found.values['claim']}."
        if found.holds is False:
            assert found.counterexample, "it does not hold, and no counter-example is shown."


def check_decides_something(method: Certifier, bench: Bench) -> None:
    """It proves something about some subject: a method that never says anything is never wrong."""
    assert any(found.holds is True for _, found in _issued(method, bench)), "nothing was proven about any subject."


def check_nothing_contradicts_it(method: Certifier, bench: Bench) -> None:
    """Attacks on what is claimed find nothing where it holds, and its counter-examples are counter-examples."""
    for case, found in _issued(method, bench):
        claim = found.values["claim"]
        if found.holds is not None:
            REFUTERS[claim["kind"]](case, found, claim, bench)


def check_leaves_subject_as_found(method: Certifier, bench: Bench) -> None:
    """Weights, modes, hooks and the surroundings are untouched, after success and after a spent budget."""
    for case, _ in _issued(method, bench)[:1]:
        fresh = replace(case, subject=case.subject.copy())
        with stirred(77):
            for budget in (math.inf, 3.0):
                before, around = traces(fresh.subject), surroundings()
                method.prove(fresh, Context(budget=budget))
                after, left = traces(fresh.subject), surroundings()
                changed = [k for k in before if before[k] != after[k]] + [k for k in around if around[k] != left[k]]
                assert not changed, f"with a budget of {budget}: {', '.join(changed)} changed."


def check_repeats(method: Certifier, bench: Bench) -> None:
    """Same seed, same certificate, whatever the state of the global generators."""
    case, first = _issued(method, bench)[0]
    with stirred(1234):
        again = method.prove(case, Context())
    assert first.to_dict() == again.to_dict(), "two runs with one seed gave different certificates."


def check_is_undecided_without_means(method: Certifier, bench: Bench) -> None:
    """Without a need, or without a budget, it proves nothing and says why."""
    case, _ = _issued(method, bench)[0]
    for poorer, ctx in ((replace(case, fit=None, held=None), Context()), (case, Context(budget=0.0)),
                        (replace(case, subject=replace(case.subject, modality=_Stranger())), Context())):
        found = method.prove(poorer, ctx)
        assert found.holds is None and found.reason.strip(), f"without means it says {found.holds}: {found.statement}"


Check = Callable[[Certifier, Bench], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_certificates_are_complete,
    check_decides_something,
    check_nothing_contradicts_it,
    check_leaves_subject_as_found,
    check_repeats,
    check_is_undecided_without_means,
)


@dataclass(frozen=True)
class _Stranger:
    name: str = "smell"


@lru_cache(maxsize=64)
def _issued(method: Certifier, bench: Bench) -> list[tuple[ModelCase, Certificate]]:
    """Certificates of the subjects that the method can speak of."""
    found = []
    for case in bench.cases:
        certificate = method.prove(case, Context())
        if "claim" in certificate.values:
            found.append((case, certificate))
    assert found, "it can speak of none of the subjects."
    return found


def _patched(case: ModelCase, claim: Mapping[str, Any]) -> tuple[Tensor, Callable[[Tensor], Tensor], int]:
    """The inputs that a claim on patches speaks of, a function from patch to the share that goes to the class."""
    assert case.fit is not None
    row, column, side, target = (claim[k] for k in ("row", "column", "side", "target"))
    with torch.no_grad():
        inputs = case.fit.inputs[case.subject.outputs(case.fit.inputs).logits.argmax(-1) != target][:claim["inputs"]]

    def margins(patch: Tensor) -> Tensor:
        stamped = inputs.clone()
        stamped[:, :, row:row + side, column:column + side] = patch
        scores = case.subject.outputs(stamped).logits
        others = torch.cat([scores[:, :target], scores[:, target + 1:]], 1).amax(1)
        return scores[:, target] - others

    return inputs, margins, side


def _refute_patch(case: ModelCase, found: Certificate, claim: Mapping[str, Any], bench: Bench) -> None:
    """Corners of the box, random patches, and signed ascent from several starts."""
    inputs, margins, side = _patched(case, claim)
    rng = torch.Generator().manual_seed(9)
    shape = (inputs.shape[1], side, side)
    if found.holds is False:
        with torch.no_grad():
            # A solver's point lies on the boundary, where the last bit depends on the processor.
            share = float((margins(found.counterexample["patch"]) > -ROUNDING).float().mean())
        assert share >= claim["theta"] - 1e-6, f"the counter-example reaches {share:.0%} only."
        return
    pixels = math.prod(shape)
    corners = [torch.tensor([(k >> i) & 1 for i in range(pixels)]).float().view(shape)
               for k in (range(2**pixels) if pixels <= 6 else torch.randint(0, 2**min(pixels, 30), (64,), generator=rng)
                         .tolist())]
    tried = [*corners, *(torch.rand(shape, generator=rng) for _ in range(64))]
    for start in [*tried[-6:], *corners[:2]]:
        patch = start.clone()
        for _ in range(30):
            patch.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(margins(patch).clamp_max(0.5).mean(), patch)
            patch = (patch.detach() + 0.08 * gradient.sign()).clamp(0, 1)
            tried.append(patch)
    with torch.no_grad():
        best = max(float((margins(p) > 0).float().mean()) for p in tried)
    assert best < claim["theta"], f"it holds, it says, but a patch sends {best:.0%} of the inputs to the class."


def _refute_l2(case: ModelCase, found: Certificate, claim: Mapping[str, Any], bench: Bench) -> None:
    """Perturbations just inside each radius, uphill and at random, against the smoothed answer on fresh noise."""
    assert case.fit is not None
    rng = torch.Generator().manual_seed(9)
    radii, answers = found.values["radii"], found.values["answers"]
    strong = sorted(range(len(radii)), key=lambda i: -radii[i])[:6]
    for i in [k for k in strong if radii[k] > 0]:
        x, answer = case.fit.inputs[i], answers[i]
        noise = torch.randn(400, *x.shape, generator=rng) * claim["sigma"]
        shift = 1e-3 * torch.randn(x.shape, generator=rng)
        for _ in range(10 if Capability.GRADIENT in case.subject.capabilities else 0):
            shift.requires_grad_()
            with torch.enable_grad():
                scores = case.subject.outputs(x + shift + noise[:64]).logits.softmax(-1)[:, answer]
                (gradient,) = torch.autograd.grad(scores.mean(), shift)
            shift = (shift - radii[i] * gradient / gradient.norm().clamp_min(1e-12)).detach()
            shift = shift * min(1.0, 0.98 * radii[i] / float(shift.norm()))
        aside = torch.randn(x.shape, generator=rng)
        for moved in (shift, aside * 0.98 * radii[i] / aside.norm()):
            with torch.no_grad():
                votes = torch.bincount(case.subject.outputs(x + moved + noise).logits.argmax(-1),
                                       minlength=case.subject.classes)
            lead = int(votes[answer]) - int(votes[torch.arange(len(votes)) != answer].max())
            # On the edge of the ball the vote may be even: only a lead beyond three standard deviations speaks.
            assert lead > -3 * math.sqrt(len(noise)), (
                f"input {i}: within {radii[i]:.3f} the smoothed answer {answer} loses by {-lead} of {len(noise)}.")


def _refute_poison(case: ModelCase, found: Certificate, claim: Mapping[str, Any], bench: Bench) -> None:
    """Insert, and remove, as many samples as are withstood, train again, and look at the answers."""
    assert case.fit is not None
    module = case.subject.module
    assert isinstance(module, Votes)
    radii = torch.tensor(found.values["withstands"])
    answers = torch.tensor(found.values["answers"])
    strengths = sorted({int(r) for r in radii if r > 0})
    for r in [strengths[0], strengths[-1]] if strengths else []:
        sure = radii >= r
        victim = case.fit.inputs[sure][0]
        wrong = int((answers[sure][0] + 1) % bench.corpus.classes)
        rng = torch.Generator().manual_seed(r)
        poison = (victim + 0.02 * torch.rand(r, *victim.shape, generator=rng)).clamp(0, 1)
        inserted = Samples(torch.cat([bench.data.inputs, poison]),
                           torch.cat([bench.data.labels, torch.full((r,), wrong)]))
        removed = Samples(bench.data.inputs[r:], bench.data.labels[r:])
        for samples in (inserted, removed):
            again = bench.trainer.train(DataCase(samples, bench.corpus.classes, untrained=bench.untrained),
                                        Context()).subject
            assert again is not None
            with torch.no_grad():
                changed = (again.outputs(case.fit.inputs).logits.argmax(-1) != answers) & sure
            assert not bool(changed.any()), f"{r} samples changed {int(changed.sum())} answers said to withstand them."


REFUTERS: Mapping[str, Callable[[ModelCase, Certificate, Mapping[str, Any], Bench], None]] = {
    "patch": _refute_patch, "l2": _refute_l2, "poison": _refute_poison}


def quick(method: type[Certifier]) -> Certifier:
    """The method under the parameters that make it run in seconds."""
    return method(**method.card.quick)


__all__ = ["CHECKS", "Bench", "Check", "bench", "quick"]
