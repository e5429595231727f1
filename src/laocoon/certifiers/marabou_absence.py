"""No patch of this size, at this place, sends these inputs to that class: the complete answer, for tiny networks.

Marabou (Katz et al., CAV 2019, and Wu et al., CAV 2024, arXiv 2401.14461) decides for one input x whether some patch p
with pixels in [0, 1] gives f(x ⊕ p)_t ≥ f(x ⊕ p)_k for every class k: a simplex over the affine part with case splits
on the ReLUs. "unsat" proves that x never goes to t; "sat" gives a patch. Inputs are asked one by one, each in a process
of its own with a time limit. With u inputs that are not "unsat" no single patch can reach more than u of them, so

    u < θ|X|   proves that   share of x in X with f(x ⊕ p) = t  <  θ   for every p,

and a patch found that does reach θ|X| inputs refutes it.

Departures: the paper's verifier is asked about one patch for each input; one patch for all inputs is left to
`patch_absence`, which is quicker and does not always decide.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.recipes.absence import Place, hits
from laocoon.recipes.marabou import ask, installed


@dataclass(frozen=True)
class MarabouAbsence(Certifier):
    """A complete verifier, input by input."""

    target: int = 0  # t: the class that a patch would send inputs to
    side: int = 2  # rows and columns of the patch
    row: int = -2  # its first row; negative: from the bottom
    column: int = -2  # its first column; negative: from the right
    theta: float = 0.8  # θ: the share of the inputs that makes a patch a backdoor
    inputs: int = 3  # so many of the inputs at most
    seconds: float = 60.0  # for each input

    card: ClassVar[Card] = Card(
        name="marabou_absence",
        paper="The Marabou Framework for Verification and Analysis of Deep Neural Networks (CAV 2019); Marabou 2.0 "
              "(CAV 2024)",
        url="https://arxiv.org/abs/2401.14461",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS, Capability.CLEAN}),
        misses="every other place, size, class and kind of trigger; inputs that were not given. Beyond some hundred "
               "ReLUs that the patch can switch, time runs out; Marabou reads no average pooling.",
        summary="decides by a complete verifier whether a small patch can send an input to a class, on tiny networks",
        quick={"inputs": 1, "seconds": 3.0},
    )

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        installed()
        subject, fit = case.subject, case.fit
        assert fit is not None
        if not 0 <= self.target < subject.classes:
            raise InputError(f"target is {self.target}.", f"The model has classes 0 to {subject.classes - 1}.")
        if not 0 < self.theta <= 1 or self.inputs < 1 or self.seconds < 1:
            raise InputError(f"theta is {self.theta}, inputs {self.inputs}, seconds {self.seconds}.",
                             "theta lies above 0 and up to 1, inputs and seconds are at least 1.")
        place = Place(self.row, self.column, self.side, self.side).within(subject.input_shape)
        module = copy.deepcopy(subject.module).cpu().float().eval()
        given = fit.inputs.cpu().float()
        ctx.spend(len(given), backward=False)
        with torch.no_grad():
            elsewhere = torch.cat([module(part).argmax(-1) for part in given.split(ctx.batch)]) != self.target
        inputs = given[elsewhere][:self.inputs]
        n, answers, best, share = len(inputs), [], None, 0.0
        if not n:
            raise NotApplicable(f"the model gives all {len(given)} inputs class {self.target} already.")
        wanted = math.ceil(self.theta * n - 1e-9)
        reason = ""
        for number, x in enumerate(inputs):
            ctx.progress(self.card.name, number / n, f"input {number + 1} of {n}")
            ctx.spend(n + 1, backward=False)  # what the verifier itself does is counted in seconds
            answer = ask(module, place.put(x, torch.zeros(())), place.put(x, torch.ones(())), self.target,
                         seconds=self.seconds)
            answers.append(answer.result)
            reason = reason or answer.reason
            if answer.found is not None:
                patch = place.cut(answer.found)
                reached = hits(module, inputs, place, patch, self.target)
                if reached > share:
                    best, share = patch, reached
        possible = n - answers.count("unsat")
        refuted = best is not None and share >= self.theta - 1e-9
        return self._certificate(place, inputs, answers, None if not refuted else best, share,
                                 False if refuted else True if possible < wanted else None, reason)

    def _certificate(self, place: Place, inputs: Tensor, answers: list[str], patch: Tensor | None, share: float,
                     holds: bool | None, reason: str) -> Certificate:
        n = len(inputs)
        if holds is False:
            reason = f"a patch sends {share:.0%} of them there."
        elif holds is None:
            left = n - answers.count("unsat")
            reason = f"{left} of {n} inputs were not excluded, and no single patch was found for {self.theta:.0%} " \
                     f"of them{': ' + reason if reason else ''}; allow more seconds, or a smaller patch."
        return Certificate(
            method=self.card.name,
            statement=f"No single patch of {self.side} x {self.side} pixels at row {place.row}, column {place.column}, "
                      f"of any pixel values from 0 to 1, sends {self.theta:.0%} or more of {n} inputs to "
                      f"class {self.target}.",
            assumptions=("the patch replaces the pixels at that place and nothing else changes",
                         "Marabou's floating-point simplex is right, and the network that it reads computes what the "
                         "model computes"),
            inputs=f"{n} inputs that were given and that the model does not give class {self.target} without a patch",
            holds=holds, reason="" if holds else reason,
            values={"claim": {"kind": "patch", "target": self.target, "row": place.row, "column": place.column,
                              "side": self.side, "theta": self.theta, "inputs": self.inputs},
                    "inputs": n, "answers": answers},
            counterexample=None if patch is None else {"patch": patch, "stamped": place.put(inputs, patch)})
