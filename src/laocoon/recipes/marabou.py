"""The complete verifier Marabou (Katz et al., CAV 2019; Wu et al., CAV 2024), asked in a process of its own.

The question is written as a file: the network as ONNX for one input, and the box of its pixels. The child reads it,
asks `maraboupy`, and answers with plain numbers, which the caller checks on its own network.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError, MissingExtra, NotApplicable
from laocoon.files.sandbox import Limits, confined
from laocoon.files.wording import first_line

GRACE = 30.0  # seconds beyond Marabou's own limit: starting, reading the network


@dataclass(frozen=True, eq=False)
class Answer:
    """"unsat": no input of the box reaches the class; "sat": `found` does, as Marabou sees it; else undecided."""

    result: str
    found: Tensor | None = None
    reason: str = ""


def installed() -> None:
    """MissingExtra where maraboupy is not there."""
    from importlib.util import find_spec

    if find_spec("maraboupy") is None:
        raise MissingExtra("marabou_absence needs maraboupy.", "pip install 'laocoon[verify]'")


def ask(module: nn.Module, lower: Tensor, upper: Tensor, target: int, *, seconds: float) -> Answer:
    """Is there an x, lower ≤ x ≤ upper [channels, height, width], whose largest score is the target's (ties count)?

    module: on the processor, in float32. What the verifier cannot read or finish is no fault of the user's: the answer
    is then undecided.
    """
    installed()
    with tempfile.TemporaryDirectory(prefix="laocoon-") as made:
        folder = Path(made).resolve()
        _write(module, lower, folder / "network.onnx")
        box = {"lower": lower.flatten().tolist(), "upper": upper.flatten().tolist()}
        (folder / "box.json").write_text(json.dumps(box))
        arguments = {"folder": str(folder), "target": target, "seconds": seconds}
        try:
            with confined("laocoon.recipes.marabou_child:solve", arguments, what="the verifier", readable=(folder,),
                          limits=Limits(seconds=seconds + GRACE)) as reply:
                said = dict(reply.answer)
        except InputError as error:
            return Answer("unknown", reason=error.problem)
    found = said.get("found")
    if said.get("result") == "sat" and isinstance(found, list) and len(found) == lower.numel():
        x = torch.tensor(found, dtype=torch.float64).view_as(lower)
        return Answer("sat", torch.minimum(torch.maximum(x.to(lower), lower), upper))
    return Answer("unsat") if said.get("result") == "unsat" else Answer("unknown", reason=str(said.get("result"))[:80])


def _write(module: nn.Module, like: Tensor, target: Path) -> None:
    """The network for one input, batch norm folded away."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module.eval(), (like[None].float(),), str(target), dynamo=False, input_names=["input"],
                              output_names=["scores"])
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            raise NotApplicable(f"the network cannot be written as ONNX ({first_line(error, 100)}).") from None
