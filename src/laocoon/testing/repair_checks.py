"""What every repair promises, as checks that anyone can run on theirs.

    for check in CHECKS:
        check(MyRepair(), twins("image"))

A check returns when the promise holds, and raises AssertionError naming what broke it. Success is that of the true
trigger, which no repair sees; candidates, where a repair wants some, are what a trigger search recovers from the twin.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Mended, Repair
from laocoon.core.subject import Subject
from laocoon.detectors.model.tabular_inversion import TabularInversion
from laocoon.detectors.model.text_inversion import TextInversion
from laocoon.detectors.model.trigger_inversion import TriggerInversion
from laocoon.testing.card_checks import card_is_complete
from laocoon.testing.probes import PlannedFailure, breaking, metered, stirred, surroundings, traces
from laocoon.testing.twins import Twins, accuracy

REMOVED = 0.5  # of the attack success before: what must be gone
HARMLESS = 0.02  # clean accuracy that a repair may cost


def check_card_is_complete(method: Repair, twins: Twins) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults."""
    card_is_complete(method, CHECKS)


def check_success_falls(method: Repair, twins: Twins) -> None:
    """The true trigger, never shown, succeeds at most half as often as before."""
    after = success_of(_mended(method, twins.planted), twins)
    assert after <= twins.success * REMOVED, f"attack success {twins.success:.0%} only fell to {after:.0%}."


def check_accuracy_stays(method: Repair, twins: Twins) -> None:
    """The planted twin loses no more than five points of clean accuracy: a backdoor must not die with the model."""
    after = accuracy(_mended(method, twins.planted), twins.plan.test)
    assert after >= twins.planted_accuracy - 0.05, f"accuracy fell from {twins.planted_accuracy:.1%} to {after:.1%}."


def check_harmless_on_clean(method: Repair, twins: Twins) -> None:
    """A model without a backdoor keeps its accuracy, to two points."""
    after = accuracy(_mended(method, twins.clean), twins.plan.test)
    assert after >= twins.accuracy - HARMLESS, f"clean accuracy fell from {twins.accuracy:.1%} to {after:.1%}."


def check_leaves_inputs_as_found(method: Repair, twins: Twins) -> None:
    """The subject, the samples, the candidates and the surroundings are untouched after success, a spent budget and an
    exception."""
    whole = _run(method, twins.planted)

    def broken(case: ModelCase) -> None:
        with breaking(case.subject, max(1, whole.calls // 2)), suppress(PlannedFailure):
            method.mend(case, Context())

    for ending, mend in (
        ("success", lambda case: method.mend(case, Context())),
        ("a spent budget", lambda case: method.mend(case, Context(budget=whole.mended.report.spent * 0.4))),
        ("an exception", broken),
    ):
        case = _fresh(twins.planted)
        with stirred(77):
            before, around, lent = traces(case.subject), surroundings(), _lent(case)
            mend(case)
            after, left = traces(case.subject), surroundings()
        for what in before:
            assert before[what] == after[what], f"after {ending}: {what} changed."
        for what in around:
            assert around[what] == left[what], f"after {ending}: {what} changed."
        for old, new in zip(lent, _lent(case), strict=True):
            assert torch.equal(old, new), f"after {ending}: samples or candidates changed."


def check_repeats(method: Repair, twins: Twins) -> None:
    """Same seed, same weights and report, whatever the global generators say and whatever ran before."""
    first = _run(method, twins.planted).mended
    with stirred(1234):
        again = method.mend(_fresh(twins.planted), Context())
    assert first.report.canonical() == again.report.canonical(), "two runs with one seed gave different reports."
    assert first.subject is not None and again.subject is not None
    one, other = first.subject.module.state_dict(), again.subject.module.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one), "two runs with one seed gave different weights."


def check_obeys_budget(method: Repair, twins: Twins) -> None:
    """What it spends it accounts for; a budget that is too small gives no model, and the reason."""
    whole = _run(method, twins.planted)
    spent = whole.mended.report.spent
    _within(whole.passes, spent, "of a full run are accounted for")
    for share in (0.5, 0.1):
        run = _measure(method, twins.planted, Context(budget=spent * share))
        assert run.mended.report.spent <= spent * share * (1 + 1e-6), "more was spent than there was."
        _within(run.passes, spent * share, "of the budget are allowed")
        if run.mended.subject is None:
            assert run.mended.report.reason and not run.mended.report.complete, "it stopped without saying why."
        else:
            assert run.mended.report.complete, "a model is handed over, and the report is incomplete."
    if spent:
        run = _measure(method, twins.planted, Context(budget=0.0))
        assert run.mended.subject is None and not run.mended.report.complete, "a budget of zero still gives a model."


def check_says_what_is_missing(method: Repair, twins: Twins) -> None:
    """Without one of its needs it is skipped, names the need, and hands over no model."""
    card, case = type(method).card, _fresh(twins.planted)
    for need in sorted(card.needs, key=lambda n: n.value):
        if need is Capability.CLEAN:
            poorer = replace(case, fit=None, held=None)
        elif need is Capability.CANDIDATES:
            poorer = replace(case, candidates=())
        else:
            poorer = replace(case, subject=replace(case.subject, capabilities=case.subject.capabilities - {need}))
        mended = method.mend(poorer, Context())
        assert mended.subject is None, f"without {need.value!r} it still hands over a model."
        assert mended.report.skipped == (card.name,), f"without {need.value!r} it was not skipped."
        assert need.value in mended.report.reason, f"without {need.value!r} the reason is {mended.report.reason!r}."


def check_hands_over_a_model_of_the_same_make(method: Repair, twins: Twins) -> None:
    """Finite weights of the same names and shapes, at rest, frozen, without hooks: it can be saved as it came."""
    before, after = _fresh(twins.planted).subject.module, _mended(method, twins.planted).module
    old, new = before.state_dict(), after.state_dict()
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}, "its weights changed shape."
    assert all(bool(torch.isfinite(v).all()) for v in new.values()), "its weights are not finite."
    assert not any(m.training for m in after.modules()), "it is not at rest."
    assert not any(p.requires_grad or p.grad is not None for p in after.parameters()), "it is not frozen."
    for module in after.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks, "hooks are left on it."
    assert [type(m) for m in before.modules()] == [type(m) for m in after.modules()], "its layers are of other kinds."


def check_indifferent_to_sample_order(method: Repair, twins: Twins) -> None:
    """Shuffling the clean samples gives much the same model: it answers 95 in 100 test samples alike."""
    case = _fresh(twins.planted)
    assert case.fit is not None
    order = torch.randperm(len(case.fit), generator=torch.Generator().manual_seed(11))
    shuffled = Samples(case.fit.inputs[order], case.fit.labels[order])
    other = method.mend(replace(case, fit=shuffled), Context())
    assert other.subject is not None, other.report.reason
    one, two = (_answers(s, twins.plan.test.inputs) for s in (_mended(method, twins.planted), other.subject))
    alike = float((one == two).float().mean())
    assert alike >= 0.95, f"with the samples in another order only {alike:.0%} of the answers are the same."


Check = Callable[[Repair, Twins], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_success_falls,
    check_accuracy_stays,
    check_harmless_on_clean,
    check_leaves_inputs_as_found,
    check_repeats,
    check_obeys_budget,
    check_says_what_is_missing,
    check_hands_over_a_model_of_the_same_make,
    check_indifferent_to_sample_order,
)


@torch.no_grad()
def success_of(subject: Subject, twins: Twins) -> float:
    """Success of the twins' true trigger on a subject, on test samples."""
    trigger, test = twins.implant.trigger, twins.plan.test
    rows = trigger.goal.applies(test.labels)
    outputs = subject.outputs(trigger.stamp(test.inputs[rows]))
    return float(trigger.goal.success(outputs, test.labels[rows]).float().mean())


@torch.no_grad()
def _answers(subject: Subject, inputs: Tensor) -> Tensor:
    return subject.outputs(inputs).logits.argmax(-1)


@dataclass(frozen=True)
class _Run:
    mended: Mended
    passes: float
    calls: int


@lru_cache(maxsize=16)
def _candidates(case: ModelCase) -> tuple[Candidate, ...]:
    """What a search of the modality's triggers recovers from a twin, the smallest and most successful first."""
    searches = {"image": TriggerInversion(families=("patch",), steps=60, batch=24), "text": TextInversion(steps=10),
                "tabular": TabularInversion()}
    ctx = Context()
    searches[case.modality].examine(replace(case, subject=case.subject.copy()), ctx)
    if case.modality == "image":
        return tuple(ctx.candidates)
    return tuple(sorted(ctx.candidates, key=lambda c: (c.size, -c.success)))


def _fresh(case: ModelCase) -> ModelCase:
    """With candidates, and everything of its own."""
    assert case.fit is not None
    found = tuple(replace(c, trigger={k: v.clone() for k, v in c.trigger.items()}) for c in _candidates(case))
    fit = Samples(case.fit.inputs.clone(), case.fit.labels.clone())
    return replace(case, subject=case.subject.copy(), fit=fit, candidates=found)


def _lent(case: ModelCase) -> list[Tensor]:
    assert case.fit is not None
    return [case.fit.inputs.clone(), case.fit.labels.clone(),
            *(v.clone() for c in case.candidates for v in c.trigger.values())]


def _measure(method: Repair, case: ModelCase, ctx: Context) -> _Run:
    case = _fresh(case)
    with stirred(5), metered(case.subject) as meter:
        mended = method.mend(case, ctx)
    if mended.subject is not None:  # the copy has the meter's hook as well
        for module in mended.subject.module.modules():
            for key in [k for k, hook in module._forward_hooks.items() if hook.__module__.endswith("probes")]:
                del module._forward_hooks[key]
    return _Run(mended, meter.passes, meter.calls)


@lru_cache(maxsize=256)
def _run(method: Repair, case: ModelCase) -> _Run:
    return _measure(method, case, Context())


def _mended(method: Repair, case: ModelCase) -> Subject:
    mended = _run(method, case).mended
    assert mended.subject is not None, f"with an unlimited budget there is no model: {mended.report.reason}"
    return mended.subject


def _within(passes: float, allowed: float, what: str) -> None:
    assert passes <= allowed * 1.02 + 16, f"{passes:.0f} passes were made; {allowed:.0f} {what}."


def quick(method: type[Repair]) -> Repair:
    """The method under the parameters that make it run in seconds."""
    return method(**method.card.quick)


__all__ = ["CHECKS", "Check", "quick", "success_of"]
