"""What every detector promises, as checks that anyone can run on theirs.

    for check in CHECKS:
        check(MyDetector(), twins("image"))

A check returns when the promise holds, raises AssertionError naming what broke it, or NotTested where the promise
says nothing about this method (a method that needs a graph cannot examine a twin that has none).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.core.report import Report
from laocoon.testing.card_checks import NotTested, card_is_complete
from laocoon.testing.networks import renamed, reordered
from laocoon.testing.probes import PlannedFailure, breaking, metered, stirred, surroundings, traces
from laocoon.testing.twins import Twins


def check_card_is_complete(method: Detector, twins: Twins) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults."""
    card_is_complete(method, CHECKS)


def check_scores_planted_above_clean(method: Detector, twins: Twins) -> None:
    """A planted twin scores above the clean one: higher is more suspicious, always."""
    planted, clean = _scores(method, twins)
    assert planted > clean, f"the planted twin scores {planted:.4g}, the clean one {clean:.4g}."


def check_leaves_subject_as_found(method: Detector, twins: Twins) -> None:
    """Weights, modes, hooks and the surroundings are untouched after success, a spent budget and an exception."""
    calls = _run(method, twins).calls

    def broken(case: ModelCase) -> None:
        with breaking(case.subject, max(1, calls // 2)), suppress(PlannedFailure):
            method.examine(case, Context())

    for ending, examine in (
        ("success", lambda case: method.examine(case, Context())),
        ("a spent budget", lambda case: method.examine(case, Context(budget=_run(method, twins).report.spent * 0.4))),
        ("an exception", broken),
    ):
        case = _fresh(twins.planted)
        with stirred(77):
            before, around = traces(case.subject), surroundings()
            examine(case)
            after, left = traces(case.subject), surroundings()
        for what in before:
            assert before[what] == after[what], f"after {ending}: {what} changed."
        for what in around:
            assert around[what] == left[what], f"after {ending}: {what} changed."


def check_does_not_hide_failures(method: Detector, twins: Twins) -> None:
    """An exception of the network comes out, or the report says that it is incomplete: never 'no findings'."""
    calls = _run(method, twins).calls
    if not calls:
        raise NotTested("it never runs the network.")
    case = _fresh(twins.planted)
    with breaking(case.subject, max(1, calls // 2)):
        try:
            report = method.examine(case, Context())
        except PlannedFailure:
            return
    assert not report.complete and report.reason, "the network failed half-way, and the report looks complete."


def check_repeats(method: Detector, twins: Twins) -> None:
    """Same seed, same canonical report, whatever the state of the global generators and whatever ran before."""
    first = _run(method, twins).report
    with stirred(1234):
        method.examine(_fresh(twins.clean), Context(seed=5))
        again = method.examine(_fresh(twins.planted), Context())
    assert first.canonical() == again.canonical(), "two runs with one seed gave different reports."


def check_obeys_budget(method: Detector, twins: Twins) -> None:
    """What it spends it accounts for, and it stops (and says so) when the budget ends."""
    whole = _run(method, twins)
    _within(whole.passes, whole.report.spent, "of a full run are accounted for")
    for share in (0.5, 0.1):
        budget = whole.report.spent * share
        run = _measure(method, twins.planted, Context(budget=budget))
        assert run.report.spent <= budget * (1 + 1e-6), f"{run.report.spent:.0f} passes spent of {budget:.0f}."
        _within(run.passes, budget, "of the budget are allowed")
        if not run.report.complete:
            assert run.report.reason, "it stopped early without saying why."
    if whole.report.spent:
        run = _measure(method, twins.planted, Context(budget=0.0))
        assert not run.report.complete, "with a budget of zero the report still looks complete."


def check_says_what_is_missing(method: Detector, twins: Twins) -> None:
    """Without one of its needs it is skipped, names the need, and finds nothing."""
    card, case = type(method).card, _fresh(twins.planted)
    _run(method, twins)  # not skipped as it stands
    for need in sorted(card.needs, key=lambda n: n.value):
        if need is Capability.CLEAN:
            poorer = replace(case, fit=None, held=None)
        else:
            poorer = replace(case, subject=replace(case.subject, capabilities=case.subject.capabilities - {need}))
        report = method.examine(poorer, Context())
        assert report.skipped == (card.name,), f"without {need.value!r} it was not skipped."
        assert need.value in report.reason, f"without {need.value!r} the reason is {report.reason!r}."
        assert not report.findings and not report.complete, f"without {need.value!r} it still reports."
    stranger = replace(case, subject=replace(case.subject, modality=_Stranger()))
    report = method.examine(stranger, Context())
    assert report.skipped == (card.name,) and report.reason, "it examined a modality that its card does not name."


def check_indifferent_to_sample_order(method: Detector, twins: Twins) -> None:
    """Shuffling the clean samples changes nothing that matters."""
    _same(method, twins, lambda case: replace(case, fit=_shuffled(case.fit), held=_shuffled(case.held)), "sample order")


def check_indifferent_to_batch_size(method: Detector, twins: Twins) -> None:
    """Smaller passes through the model change nothing that matters."""
    _same(method, twins, lambda case: case, "batch size", batch=48)


def check_indifferent_to_class_order(method: Detector, twins: Twins) -> None:
    """Renumbering the classes changes nothing that matters."""
    order = torch.randperm(twins.corpus.classes, generator=torch.Generator().manual_seed(2))
    if torch.equal(order, torch.arange(len(order))):
        order = order.flip(0)
    inverse = order.argsort()

    def relabelled(samples: Samples | None) -> Samples | None:
        return samples if samples is None else Samples(samples.inputs, inverse[samples.labels], samples.labelled)

    def renumber(case: ModelCase) -> ModelCase:
        subject = replace(case.subject, module=reordered(case.subject.module, order))
        return replace(case, subject=subject, fit=relabelled(case.fit), held=relabelled(case.held))

    _same(method, twins, renumber, "class order")


def check_indifferent_to_layer_names(method: Detector, twins: Twins) -> None:
    """Layers are told apart by what they are, not by what they are called."""
    _same(method, twins, lambda case: replace(case, subject=replace(
        case.subject, module=renamed(case.subject.module))), "layer names")


def check_report_round_trips(method: Detector, twins: Twins) -> None:
    """The report is JSON by construction, finite, and comes back equal."""
    for case in (twins.planted, twins.clean):
        report = _examined(method, case)
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert Report.from_dict(json.loads(text)).to_dict() == json.loads(text), "the report does not come back equal."
        for finding in report.findings:
            assert isinstance(finding.score, float), f"{finding.rule}: a score of {type(finding.score).__name__}"
            assert math.isfinite(finding.score), f"{finding.rule}: {finding.score}"
            assert all(0 <= t < twins.corpus.classes for t in finding.target_classes), f"{finding.target_classes}"
            assert finding.explanation.strip(), f"{finding.rule} explains nothing."


Check = Callable[[Detector, Twins], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_scores_planted_above_clean,
    check_leaves_subject_as_found,
    check_does_not_hide_failures,
    check_repeats,
    check_obeys_budget,
    check_says_what_is_missing,
    check_indifferent_to_sample_order,
    check_indifferent_to_batch_size,
    check_indifferent_to_class_order,
    check_indifferent_to_layer_names,
    check_report_round_trips,
)


@dataclass(frozen=True)
class _Stranger:
    name: str = "smell"


@dataclass(frozen=True)
class _Run:
    report: Report
    passes: float
    calls: int


def _fresh(case: ModelCase) -> ModelCase:
    return replace(case, subject=case.subject.copy())


def _measure(method: Detector, case: ModelCase, ctx: Context) -> _Run:
    case = _fresh(case)
    with stirred(5), metered(case.subject) as meter:
        report = method.examine(case, ctx)
    return _Run(report, meter.passes, meter.calls)


@lru_cache(maxsize=256)
def _cached(method: Detector, case: ModelCase) -> _Run:
    return _measure(method, case, Context())


def _run(method: Detector, twins: Twins) -> _Run:
    """The measured examination of the planted twin."""
    _examined(method, twins.planted)
    return _cached(method, twins.planted)


def _examined(method: Detector, case: ModelCase) -> Report:
    """The report on a case with everything the twins have; NotTested where that is not enough for the method."""
    report = _cached(method, case).report
    if report.skipped:
        raise NotTested(report.reason)
    assert report.complete, f"with an unlimited budget it is incomplete: {report.reason}"
    return report


def _scores(method: Detector, twins: Twins) -> tuple[float, float]:
    return _examined(method, twins.planted).score, _examined(method, twins.clean).score


def _within(passes: float, allowed: float, what: str) -> None:
    assert passes <= allowed * 1.02 + 16, f"{passes:.0f} passes were made; {allowed:.0f} {what}."


def _shuffled(samples: Samples | None) -> Samples | None:
    if samples is None:
        return None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(11))
    return Samples(samples.inputs[order], samples.labels[order], samples.labelled)


def _same(method: Detector, twins: Twins, change: Callable[[ModelCase], ModelCase], what: str,
          batch: int = 512) -> None:
    """Both twins score as before, to a tenth of the score or three tenths of what tells the twins apart."""
    planted, clean = _scores(method, twins)
    gap = planted - clean
    for name, case, before in (("planted", twins.planted, planted), ("clean", twins.clean, clean)):
        report = method.examine(change(_fresh(case)), Context(batch=batch))
        assert report.complete, f"with another {what} the {name} twin could not be examined: {report.reason}"
        after = report.score
        if after == before:
            continue
        allowed = max(0.1 * abs(before), 0.3 * abs(gap) if math.isfinite(gap) else 0.0, 0.01)
        assert abs(after - before) <= allowed, (
            f"with another {what} the {name} twin scores {after:.4g} instead of {before:.4g} (allowed {allowed:.2g}).")


def quick(method: type[Detector]) -> Detector:
    """The method under the parameters that make it run in seconds."""
    return method(**method.card.quick)


__all__ = ["CHECKS", "Check", "NotTested", "quick"]
