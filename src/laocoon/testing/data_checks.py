"""What every data detector promises, as checks that anyone can run on theirs.

    for check in CHECKS:
        check(MyDataDetector(), twins("image"))

The case is the training set of a planted twin, poison included, with the twin itself, an untrained network and a few
trusted samples. A check returns when the promise holds, raises AssertionError naming what broke it, or NotTested where
the promise says nothing about this method.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from laocoon.core.card import Capability
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import DataDetector, Scored, offered_by_data
from laocoon.core.report import Report
from laocoon.core.subject import Subject
from laocoon.recipes.ranking import auroc
from laocoon.testing.card_checks import NotTested, card_is_complete
from laocoon.testing.probes import Meter, PlannedFailure, breaking, metered, stirred, surroundings, traces
from laocoon.testing.twins import Twins

FLOOR = 0.7  # area under the ROC curve of poison against the rest
ALIKE = 0.9  # rank correlation of scores that should be the same


@lru_cache(maxsize=16)
def case_of(twins: Twins) -> DataCase:
    """What a defender sees of the planted twin's training set. The truth is `twins.implant.poisoned`."""
    train, given = twins.implant.train, [s for s in (twins.planted.fit, twins.planted.held) if s is not None]
    if train is None:
        raise NotTested("nobody poisoned data for these twins.")
    trusted = Samples(torch.cat([s.inputs for s in given]), torch.cat([s.labels for s in given]))
    return DataCase(train, twins.plan.classes, twins.implant.subject, trusted, twins.plan.untrained,
                    twins.corpus.modality.name)


def check_card_is_complete(method: DataDetector, twins: Twins) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults."""
    card_is_complete(method, CHECKS)


def check_scores_poison_above_clean(method: DataDetector, twins: Twins) -> None:
    """Poisoned samples rank above the others: higher is more suspicious, always."""
    scores = _scores(method, case_of(twins))
    poisoned = torch.zeros(len(scores), dtype=torch.bool)
    poisoned[twins.implant.poisoned] = True
    found = auroc(scores[poisoned].tolist(), scores[~poisoned].tolist())
    assert found > FLOOR, f"poison ranks above clean samples with an area of {found:.3f} under the ROC curve only."


def check_scores_are_finite_and_shaped(method: DataDetector, twins: Twins) -> None:
    """One finite number a sample, on the processor, also where a class is tiny or a label is foreign to the model."""
    case = case_of(twins)
    _scores(method, case)
    rows = torch.arange(min(300, len(case.suspects)))
    inputs, labels = case.suspects.inputs[rows], case.suspects.labels[rows].clone()
    first = int(labels[0])
    keep = (labels != first) | (torch.arange(len(rows)) == 0)  # a class of one
    thin = replace(case, suspects=Samples(inputs[keep], labels[keep]))
    scored = method.examine(thin, Context())
    if scored.scores is None:
        assert scored.report.skipped, f"with a class of one sample: {scored.report.reason}"
        return
    assert scored.scores.shape == (int(keep.sum()),), f"{tuple(scored.scores.shape)} scores for {int(keep.sum())}."
    assert bool(torch.isfinite(scored.scores).all()), "with a class of one sample some scores are not finite."


def check_leaves_everything_as_found(method: DataDetector, twins: Twins) -> None:
    """Model, samples and surroundings are untouched after success, a spent budget and an exception."""
    whole = _cached(method, case_of(twins))

    def broken(case: DataCase) -> None:
        with _breaking(case, max(1, whole.calls // 2)) as other, suppress(PlannedFailure):
            method.examine(other, Context())

    for ending, examine in (
        ("success", lambda case: method.examine(case, Context())),
        ("a spent budget", lambda case: method.examine(case, Context(budget=whole.scored.report.spent * 0.4))),
        ("an exception", broken),
    ):
        case = _fresh(case_of(twins))
        assert case.subject is not None
        with stirred(77):
            before, around, samples = traces(case.subject), surroundings(), _digest(case)
            examine(case)
            after, left, later = traces(case.subject), surroundings(), _digest(case)
        assert samples == later, f"after {ending}: the samples changed."
        for what in before:
            assert before[what] == after[what], f"after {ending}: {what} changed."
        for what in around:
            assert around[what] == left[what], f"after {ending}: {what} changed."


def check_does_not_hide_failures(method: DataDetector, twins: Twins) -> None:
    """An exception of a network comes out, or there are no scores and the report says why."""
    calls = _cached(method, case_of(twins)).calls
    if not calls:
        raise NotTested("it never runs the given networks.")
    with _breaking(_fresh(case_of(twins)), max(1, calls // 2)) as case:
        try:
            scored = method.examine(case, Context())
        except PlannedFailure:
            return
    assert scored.scores is None and scored.report.reason, "the network failed half-way, and there are scores."


def check_repeats(method: DataDetector, twins: Twins) -> None:
    """Same seed, same scores and report, whatever the state of the global generators and whatever ran before."""
    first = _examined(method, case_of(twins))
    with stirred(1234):
        method.examine(_fresh(case_of(twins)), Context(seed=5))
        again = method.examine(_fresh(case_of(twins)), Context())
    assert first.report.canonical() == again.report.canonical(), "two runs with one seed gave different reports."
    assert first.scores is not None and again.scores is not None
    assert torch.equal(first.scores, again.scores), "two runs with one seed gave different scores."


def check_obeys_budget(method: DataDetector, twins: Twins) -> None:
    """What it spends it accounts for; when the budget ends it stops, says so, and gives no scores."""
    whole = _cached(method, case_of(twins))
    spent = whole.scored.report.spent
    _scores(method, case_of(twins))
    _within(whole.passes, spent, "of a full run are accounted for")
    for share in (0.5, 0.1):
        run = _measure(method, case_of(twins), Context(budget=spent * share))
        _within(run.scored.report.spent, spent * share, "of the budget are allowed")
        _within(run.passes, spent * share, "of the budget are allowed")
        complete = run.scored.report.complete
        assert complete == (run.scored.scores is not None), "scores and a complete report come together."
        assert complete or run.scored.report.reason, "it stopped early without saying why."
    if spent:
        run = _measure(method, case_of(twins), Context(budget=0.0))
        assert run.scored.scores is None, "with a budget of zero there are still scores."


def check_says_what_is_missing(method: DataDetector, twins: Twins) -> None:
    """Without one of its needs it is skipped, names the need, and gives no scores."""
    card, case = type(method).card, _fresh(case_of(twins))
    _scores(method, case_of(twins))  # not skipped as it stands
    assert card.needs <= offered_by_data(case), "the twins do not offer what it needs."
    for need in sorted(card.needs, key=lambda n: n.value):
        scored = method.examine(_without(case, need), Context())
        assert scored.report.skipped == (card.name,), f"without {need.value!r} it was not skipped."
        assert need.value in scored.report.reason, f"without {need.value!r} the reason is {scored.report.reason!r}."
        assert scored.scores is None and not scored.report.complete, f"without {need.value!r} it still has scores."
    scored = method.examine(replace(case, modality="smell"), Context())
    assert scored.report.skipped and scored.report.reason, "it examined a modality that its card does not name."


def check_manages_without_extras(method: DataDetector, twins: Twins) -> None:
    """With its declared needs and nothing more it gives scores, or is skipped with a reason in words."""
    case, needs = _fresh(case_of(twins)), type(method).card.needs
    if Capability.CLEAN not in needs:
        case = _without(case, Capability.CLEAN)
    if Capability.ARCHITECTURE not in needs:
        case = _without(case, Capability.ARCHITECTURE)
    if not needs - {Capability.CLEAN, Capability.ARCHITECTURE}:
        case = replace(case, subject=None)
    scored = method.examine(case, Context())
    assert scored.scores is not None or scored.report.skipped, f"it broke off: {scored.report.reason}"


def check_indifferent_to_sample_order(method: DataDetector, twins: Twins) -> None:
    """Shuffled samples get the scores that they had: the same ranks, but for what chance moves."""
    case = _fresh(case_of(twins))
    order = torch.randperm(len(case.suspects), generator=torch.Generator().manual_seed(11))
    shuffled = Samples(case.suspects.inputs[order], case.suspects.labels[order])
    _alike(method, twins, replace(case, suspects=shuffled), order, Context(), "sample order")


def check_indifferent_to_batch_size(method: DataDetector, twins: Twins) -> None:
    """Smaller passes through the model change nothing that matters."""
    case = _fresh(case_of(twins))
    _alike(method, twins, case, torch.arange(len(case.suspects)), Context(batch=96), "batch size")


Check = Callable[[DataDetector, Twins], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_scores_poison_above_clean,
    check_scores_are_finite_and_shaped,
    check_leaves_everything_as_found,
    check_does_not_hide_failures,
    check_repeats,
    check_obeys_budget,
    check_says_what_is_missing,
    check_manages_without_extras,
    check_indifferent_to_sample_order,
    check_indifferent_to_batch_size,
)


@dataclass(frozen=True)
class _Run:
    scored: Scored
    passes: float
    calls: int


def _fresh(case: DataCase) -> DataCase:
    """Copies of all that a method could write to."""
    def own(samples: Samples | None) -> Samples | None:
        return samples and Samples(samples.inputs.clone(), samples.labels.clone())

    suspects = own(case.suspects)
    assert suspects is not None
    return replace(case, suspects=suspects, trusted=own(case.trusted), subject=case.subject and case.subject.copy())


def _without(case: DataCase, need: Capability) -> DataCase:
    if need is Capability.CLEAN:
        return replace(case, trusted=None)
    if need is Capability.ARCHITECTURE:
        return replace(case, untrained=None)
    assert case.subject is not None
    return replace(case, subject=replace(case.subject, capabilities=case.subject.capabilities - {need}))


@contextmanager
def _watched(case: DataCase, watch: Callable[[Subject], object]) -> Iterator[DataCase]:
    """The case with its model, and every new network that it makes, under watch within the block."""
    with ExitStack() as stack:
        if case.subject is not None:
            stack.enter_context(watch(case.subject))  # type: ignore[arg-type]
        make = case.untrained

        def new(ctx: Context) -> Subject:
            assert make is not None
            made = make(ctx)
            stack.enter_context(watch(made))  # type: ignore[arg-type]
            return made

        yield replace(case, untrained=new if make is not None else None)


@contextmanager
def _breaking(case: DataCase, at: int) -> Iterator[DataCase]:
    with _watched(case, lambda subject: breaking(subject, at)) as watched:
        yield watched


def _measure(method: DataDetector, case: DataCase, ctx: Context) -> _Run:
    meters: list[Meter] = []

    @contextmanager
    def meter(subject: Subject) -> Iterator[None]:
        with metered(subject) as found:
            meters.append(found)
            yield

    with stirred(5), _watched(_fresh(case), meter) as watched:
        scored = method.examine(watched, ctx)
    return _Run(scored, sum(m.passes for m in meters), sum(m.calls for m in meters))


@lru_cache(maxsize=256)
def _cached(method: DataDetector, case: DataCase) -> _Run:
    return _measure(method, case, Context())


def _examined(method: DataDetector, case: DataCase) -> Scored:
    """The measured examination with everything the twins have; NotTested where that is not enough for the method."""
    scored = _cached(method, case).scored
    if scored.report.skipped:
        raise NotTested(scored.report.reason)
    assert scored.report.complete, f"with an unlimited budget it is incomplete: {scored.report.reason}"
    text = json.dumps(scored.report.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)).to_dict() == json.loads(text), "the report does not come back equal."
    return scored


def _scores(method: DataDetector, case: DataCase) -> Tensor:
    scores = _examined(method, case).scores
    assert scores is not None and scores.shape == (len(case.suspects),)
    assert scores.device.type == "cpu" and bool(torch.isfinite(scores).all())
    return scores


def _within(passes: float, allowed: float, what: str) -> None:
    assert passes <= allowed * 1.02 + 16, f"{passes:.0f} passes were made; {allowed:.0f} {what}."


def _digest(case: DataCase) -> str:
    digest = hashlib.sha256()
    for samples in (case.suspects, case.trusted):
        if samples is not None:
            for tensor in (samples.inputs, samples.labels):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _ranks(scores: Tensor) -> Tensor:
    """Mean ranks, [n]: equal scores share theirs."""
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[place]


def _alike(method: DataDetector, twins: Twins, case: DataCase, order: Tensor, ctx: Context, what: str) -> None:
    """Spearman's correlation with the scores of the case as it was; and poison is told apart about as well."""
    before = _scores(method, case_of(twins))
    after = method.examine(case, ctx).scores
    assert after is not None, f"with another {what} there are no scores."
    back = torch.empty_like(after)
    back[order] = after
    poisoned = torch.zeros(len(back), dtype=torch.bool)
    poisoned[twins.implant.poisoned] = True
    first, second = (auroc(s[poisoned].tolist(), s[~poisoned].tolist()) for s in (before, back))
    assert abs(first - second) <= 0.1, f"with another {what} the area is {second:.3f} instead of {first:.3f}."
    if float(before.std()) > 0 or float(back.std()) > 0:
        ranks = torch.stack([_ranks(before), _ranks(back)])
        alike = float(torch.corrcoef(ranks)[0, 1])
        assert alike >= ALIKE, f"with another {what} the ranks of the scores correlate by {alike:.2f} only."


def quick(method: type[DataDetector]) -> DataDetector:
    """The method under the parameters that make it run in seconds."""
    return method(**method.card.quick)


__all__ = ["CHECKS", "Check", "NotTested", "case_of", "quick"]
