"""Models that can only be asked: whose references speak for them, how much they are asked, what silence is worth."""

from __future__ import annotations

from laocoon.core.card import Capability
from laocoon.core.cases import Samples
from laocoon.core.errors import InputError
from laocoon.core.report import Verdict
from laocoon.core.subject import Subject
from laocoon.files.endpoint import endpoint_of

KEPT_BACK = 0.1  # of the queries, for verifying what was found
LEAST_KEPT_BACK = 300


# References of their own, by the largest number of classes that they speak for.
OF_SO_MANY = {3: "image_few", 7: "image_several"}


def only_asked(subject: Subject) -> bool:
    """Whether an image model shows neither gradient nor weights: then other methods, and references, are its own."""
    hidden = {Capability.GRADIENT, Capability.WEIGHTS, Capability.FEATURES}
    return subject.modality.name == "image" and not hidden & subject.capabilities


def reference_name(subject: Subject) -> str:
    """Which reference file speaks for a subject; images of up to seven classes have two of their own."""
    if only_asked(subject):
        return "query"
    name = subject.modality.name
    own = (reference for most, reference in OF_SO_MANY.items() if subject.classes <= most)
    return next(own, name) if name == "image" else name


def allowance(subject: Subject, data: Samples | None, passes: float, power: int) -> float:
    """Passes that the methods of a scan may spend, a question being a third of one.

    InputError where the model's queries do not even cover the clean samples, or where plants are wanted.
    """
    endpoint = endpoint_of(subject)
    if endpoint is None:
        return passes
    if power > 0:
        raise InputError("--power plants backdoors into copies of a model; this one can only be asked.",
                         "Leave --power out: power is stated from reference models.")
    given = 0 if data is None else len(data)
    left = endpoint.answers.left - given  # those that were asked about before are free: an estimate on the safe side
    if left <= 0:
        raise InputError(f"{endpoint.answers.left} queries are left, and the clean samples alone are {given}.",
                         "Raise --queries, or lower --samples-per-class.")
    back = min(left / 2, max(KEPT_BACK * left, LEAST_KEPT_BACK))
    return min(passes, (left - back) / 3)


def qualified(subject: Subject, verdict: Verdict, reason: str) -> tuple[Verdict, str]:
    """The verdict with what asking alone leaves open; INCONCLUSIVE where the model changed on the way."""
    endpoint = endpoint_of(subject)
    if endpoint is not None:
        try:
            changed = endpoint.changed()
        except InputError as error:
            changed = f"the model could not be asked again at the end: {error.problem}"
        if changed:
            return Verdict.INCONCLUSIVE, f"{changed} (before: {verdict.value}, {reason})"
    if only_asked(subject) and verdict is Verdict.NO_EVIDENCE:
        reason += "; without its weights nothing but small patches is looked for"
    return verdict, reason


def facts(subject: Subject) -> dict[str, object]:
    """How much was asked."""
    endpoint = endpoint_of(subject)
    if endpoint is None:
        return {}
    return {"queries": endpoint.answers.asked, "queries_left": endpoint.answers.left}
