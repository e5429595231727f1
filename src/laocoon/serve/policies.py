"""What becomes of flagged samples. Nothing is answered that has no decision beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from laocoon.files.protocol import Parameter
from laocoon.files.tensors import Named, withheld
from laocoon.serve.engine import Judged
from laocoon.serve.refusal import Refused

PASSED, LOGGED, BLOCKED, ABSTAINED, PURIFIED = "passed", "logged", "blocked", "abstained", "purified"


@dataclass(frozen=True, eq=False)
class Decided:
    """One decision a sample, and why where it is not `passed`."""

    judged: Judged  # of the inputs as they came
    decisions: tuple[str, ...]
    disagrees: tuple[bool, ...]  # the upstream's class is not the model's own: it is another model, or was changed

    def abstained(self) -> np.ndarray:
        return np.asarray([d == ABSTAINED for d in self.decisions])


def refuse_flagged(policy: str, judged: Judged) -> None:
    """Under `block` a request with a flagged sample gets nothing; the indices say which to leave out."""
    rows = tuple(judged.flagged.nonzero().flatten().tolist())
    if policy == "block" and rows:
        which = ", ".join(map(str, rows))
        raise Refused(403, f"blocked: samples {which} of the request look as if they carry a trigger.",
                      "Send the others again without them.", blocked=rows)


def decide(policy: str, judged: Judged, cleared: torch.Tensor, disagrees: Sequence[bool]) -> Decided:
    """`cleared`: flagged samples whose purified version is not flagged, [batch] bool."""
    decisions = []
    for flagged, clear, other in zip(judged.flagged.tolist(), cleared.tolist(), disagrees, strict=True):
        if other:
            decisions.append(LOGGED if policy == "log" else ABSTAINED)
        elif not flagged:
            decisions.append(PASSED)
        elif policy == "log":
            decisions.append(LOGGED)
        else:
            decisions.append(PURIFIED if policy == "purify" and clear else ABSTAINED)
    if policy == "block" and any(disagrees):
        rows = tuple(i for i, other in enumerate(disagrees) if other)
        which = ", ".join(map(str, rows))
        raise Refused(502, f"blocked: for samples {which} the upstream gives another class than the model known "
                      "to the guard.", "Check that both hold the same model.", blocked=rows)
    return Decided(judged, tuple(decisions), tuple(disagrees))


def apply(decided: Decided, outputs: Sequence[Named]) -> tuple[Named, ...]:
    """The outputs without the rows that are abstained from."""
    rows = decided.abstained()
    return tuple(withheld(o, rows) for o in outputs) if rows.any() else tuple(outputs)


def parameters(decided: Decided, policy: str, request: str) -> dict[str, Parameter]:
    """For the answer. The protocol allows no lists there: one value a sample, separated by commas."""
    said = decided.judged
    return {
        "laocoon_request": request, "laocoon_policy": policy, "laocoon_decision": ",".join(decided.decisions),
        "laocoon_p_value": ",".join(f"{p:.6g}" for p in said.p_values.tolist()),
        "laocoon_tier": ",".join(map(str, said.tier.tolist())),
    }
