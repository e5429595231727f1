"""What every trainer promises, as checks that anyone can run on theirs.

    for check in CHECKS:
        check(MyTrainer(), bench())

Trainers are given the planted twin's training data, poison included; the truth about it stays with the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from laocoon.attacks.badnets import BadNets
from laocoon.attacks.tabular_badnets import TabularBadNets
from laocoon.attacks.text_badnets import TextBadNets
from laocoon.core.card import Capability
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.methods import Trained, Trainer
from laocoon.core.subject import Subject
from laocoon.testing.card_checks import card_is_complete
from laocoon.testing.corpora import digits, reviews, tumours
from laocoon.testing.networks import entry
from laocoon.testing.probes import Meter, stirred, surroundings
from laocoon.testing.twins import Twins, accuracy, make_twins, success

SAMPLES = 700  # in the training data, of 8 x 8 pixels: trainers train often here
ACCURACY = 0.75  # on test samples, poison in the training data
WEAKENED = 0.5  # attack success at most, where plain training reaches over 0.9


@cache
def bench(modality: str = "image") -> Twins:
    """Small twins that plain training learns, trigger and all; trained once a process."""
    if modality == "image":
        whole, rows = digits(8), slice(0, SAMPLES)
        corpus = replace(whole, train=Samples(whole.train.inputs[rows], whole.train.labels[rows]))
        found = make_twins(corpus, BadNets(rate=0.1, side=2), epochs=12, target=3, each=4, seed=3)
    elif modality == "text":
        found = make_twins(reviews(), TextBadNets(), epochs=16, target=1, each=4, seed=1)
    else:
        found = make_twins(tumours(), TabularBadNets(rate=0.15), epochs=40, target=1, each=4, seed=3)
    assert found.success > 0.9 and found.accuracy > 0.9, "the small twins did not take"
    return found


def check_card_is_complete(method: Trainer, twins: Twins) -> None:
    """The card says what documentation and skips need, and parameters are plain fields with defaults."""
    card_is_complete(method, CHECKS)


def check_learns(method: Trainer, twins: Twins) -> None:
    """The model is worth having: it classifies clean test samples."""
    found = accuracy(_subject(_run(method, twins)), twins.plan.test)
    assert found >= ACCURACY, f"clean accuracy is {found:.1%}."


def check_weakens_a_backdoor(method: Trainer, twins: Twins) -> None:
    """The trigger, which plain training on these data learns, succeeds on fewer than half of the test samples."""
    found = success(replace(twins.implant, subject=_subject(_run(method, twins))), twins.plan.test)
    assert found <= WEAKENED, f"attack success is {found:.1%}."


def check_hands_over_a_sound_model(method: Trainer, twins: Twins) -> None:
    """At rest, frozen, finite, without hooks, of the classes and the shape that were asked for."""
    subject = _subject(_run(method, twins))
    assert subject.classes == twins.corpus.classes and subject.input_shape == tuple(twins.plan.train.inputs.shape[1:])
    first = type(entry(subject.module))  # which the check itself has hooked
    for name, module in subject.module.named_modules():
        assert not module.training, f"layer {name!r} is left in training mode."
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        assert hooks <= (1 if isinstance(module, first) else 0), f"layer {name!r} is left with a hook."
    for name, tensor in subject.module.state_dict(keep_vars=True).items():
        assert not tensor.requires_grad, f"{name} is left with requires_grad."
        assert bool(torch.isfinite(tensor).all()), f"{name} is not finite."
    assert subject.provenance.metadata.get("trainer"), "the model does not say how it was trained."


def check_names_what_it_kept(method: Trainer, twins: Twins) -> None:
    """Indices of samples that it trusted are indices, each once, in order, and not all of them; or there are none."""
    kept = _run(method, twins).trained.kept
    if kept is None:
        return
    assert kept.dtype == torch.long and kept.dim() == 1, f"kept is {kept.dtype} of shape {list(kept.shape)}."
    assert torch.equal(kept, kept.unique()), "kept is not sorted, or names a sample twice."
    assert 0 < len(kept) < len(_data(twins).suspects) and int(kept[0]) >= 0 and int(kept[-1]) < len(
        _data(twins).suspects), f"{len(kept)} samples are kept, up to number {int(kept[-1])}."


def check_leaves_data_as_found(method: Trainer, twins: Twins) -> None:
    """Samples and surroundings are untouched after success and after a spent budget."""
    whole = _run(method, twins)
    assert whole.untouched, "the training samples were changed in place."
    assert whole.surroundings == "", f"{whole.surroundings} changed."
    short = _measure(method, twins, Context(budget=whole.trained.report.spent * 0.4))
    assert short.untouched and not short.surroundings, f"spent budget: {short.surroundings or 'samples'} changed."


def check_repeats(method: Trainer, twins: Twins) -> None:
    """Same seed, same weights and same samples kept, whatever the state of the global generators."""
    first = _run(method, twins)
    again = _measure(method, twins, Context(), stir=1234)
    assert first.trained.report.canonical() == again.trained.report.canonical(), "two runs gave different reports."
    one, two = (_subject(r).module.state_dict() for r in (first, again))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one), "two runs, two sets of weights."
    kept = first.trained.kept, again.trained.kept
    assert (kept[0] is None) == (kept[1] is None) and (kept[0] is None or torch.equal(*kept)), (  # type: ignore[arg-type]
        "two runs kept different samples.")


def check_obeys_budget(method: Trainer, twins: Twins) -> None:
    """What it spends it accounts for; where the budget ends there is no model, and the report says why."""
    whole = _run(method, twins)
    spent = whole.trained.report.spent
    assert whole.passes <= spent * 1.02 + 16, f"{whole.passes:.0f} passes were made, {spent:.0f} accounted for."
    short = _measure(method, twins, Context(budget=spent * 0.4))
    assert short.passes <= spent * 0.4 * 1.02 + 16, f"{short.passes:.0f} passes were made of {spent * 0.4:.0f} allowed."
    assert short.trained.subject is None and short.trained.report.reason and not short.trained.report.complete, (
        "with 40 % of its budget it still hands over a model.")


def check_says_what_is_missing(method: Trainer, twins: Twins) -> None:
    """Without one of its needs, or on another modality, it is skipped and names the reason."""
    card, case = type(method).card, _data(twins)
    assert Capability.ARCHITECTURE in card.needs, f"{card.name} does not ask for an architecture."
    for poorer, word in ((replace(case, untrained=None), Capability.ARCHITECTURE.value),
                         (replace(case, modality="smell"), "smell")):
        trained = method.train(poorer, Context())
        assert trained.subject is None and trained.report.skipped == (card.name,), "it trained all the same."
        assert word in trained.report.reason, f"the reason is {trained.report.reason!r}."


Check = Callable[[Trainer, Twins], None]

CHECKS: tuple[Check, ...] = (
    check_card_is_complete,
    check_learns,
    check_weakens_a_backdoor,
    check_hands_over_a_sound_model,
    check_names_what_it_kept,
    check_leaves_data_as_found,
    check_repeats,
    check_obeys_budget,
    check_says_what_is_missing,
)


@dataclass(frozen=True, eq=False)
class _Run:
    trained: Trained
    passes: float
    untouched: bool
    surroundings: str


def _data(twins: Twins) -> DataCase:
    assert twins.implant.train is not None
    return DataCase(twins.implant.train, twins.corpus.classes, untrained=twins.plan.untrained,
                    modality=twins.corpus.modality.name)


def _measure(method: Trainer, twins: Twins, ctx: Context, stir: int = 5) -> _Run:
    meter, case = Meter(), _data(twins)

    def forward(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        meter.passes += len(output) / 3
        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    def backward(gradient: torch.Tensor) -> None:
        meter.passes += len(gradient) * 2 / 3

    def untrained(inner: Context) -> Subject:
        fresh = twins.plan.fresh(inner)
        entry(fresh.module).register_forward_hook(forward)  # copies of the network keep the hook
        return fresh

    before = case.suspects.inputs.clone(), case.suspects.labels.clone()
    with stirred(stir):
        around = surroundings()
        trained = method.train(replace(case, untrained=untrained), ctx)
        left = surroundings()
    passes = meter.passes
    untouched = torch.equal(before[0], case.suspects.inputs) and torch.equal(before[1], case.suspects.labels)
    return _Run(trained, passes, untouched, ", ".join(k for k in around if around[k] != left[k]))


@lru_cache(maxsize=64)
def _cached(method: Trainer, twins: Twins) -> _Run:
    return _measure(method, twins, Context())


def _run(method: Trainer, twins: Twins) -> _Run:
    """The measured training with an unlimited budget."""
    run = _cached(method, twins)
    assert run.trained.report.complete, f"with an unlimited budget there is no model: {run.trained.report.reason}"
    return run


def _subject(run: _Run) -> Subject:
    assert run.trained.subject is not None, run.trained.report.reason
    return run.trained.subject


def quick(method: type[Trainer]) -> Trainer:
    """The method under the parameters that make it run in seconds."""
    return method(**method.card.quick)


__all__ = ["CHECKS", "Check", "bench", "quick"]
