"""No patch of this size, at this place, sends these inputs to that class: proved, refuted, or neither.

After Pham and Sun, Verifying Neural Networks Against Backdoor Attacks, CAV 2022, arXiv 2205.06992. For inputs X that
the model does not already give class t, and every patch p with pixels in [0, 1],

    share of x in X with f(x ⊕ p) = t  <  θ.

First a shared patch is searched by projected gradients: one that reaches θ is the counter-example. Else boxes of
patches are bounded by intervals and CROWN (`recipes/bounds`): an input is safe in a box where another class provably
stays ahead of t; a box is closed when fewer than θ|X| of its inputs are not safe, and halved at the pixel that matters
most otherwise. When no box is left the statement is proved. Because boxes are shared by the inputs, it is about one
patch for all.

Departures: the paper samples X to speak of the whole distribution by a hypothesis test; this certificate speaks of X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import BudgetSpent, InputError, NotApplicable
from laocoon.core.methods import Certifier
from laocoon.core.report import Certificate
from laocoon.recipes.absence import Place, exclude_patches, hits, search_patch
from laocoon.recipes.bounds import sealed


@dataclass(frozen=True)
class PatchAbsence(Certifier):
    """Formal absence of a patch trigger of one size at one place."""

    target: int = 0  # t: the class that a patch would send inputs to
    side: int = 2  # rows and columns of the patch
    row: int = -2  # its first row; negative: from the bottom
    column: int = -2  # its first column; negative: from the right
    theta: float = 0.8  # θ: the share of the inputs that makes a patch a backdoor
    inputs: int = 20  # so many of the inputs at most
    boxes: int = 1000  # boxes of patches looked at before giving up
    starts: int = 3  # random starts of the search for a counter-example
    steps: int = 60  # steps of each

    card: ClassVar[Card] = Card(
        name="patch_absence",
        paper="Verifying Neural Networks Against Backdoor Attacks (CAV 2022)",
        url="https://arxiv.org/abs/2205.06992",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.WEIGHTS, Capability.CLEAN}),
        misses="every other place, size, class and kind of trigger; inputs that were not given. Patches beyond some "
               "nine pixels, deep networks and activations other than ReLU stay undecided.",
        summary="proves that no patch of a given size and place is a backdoor to a given class, or shows one",
        quick={"inputs": 6, "boxes": 60, "starts": 1, "steps": 20},
    )

    def certify(self, case: ModelCase, ctx: Context) -> Certificate:
        subject, fit = case.subject, case.fit
        assert fit is not None
        if not 0 <= self.target < subject.classes:
            raise InputError(f"target is {self.target}.", f"The model has classes 0 to {subject.classes - 1}.")
        if not 0 < self.theta <= 1 or self.inputs < 1 or self.boxes < 0:
            raise InputError(f"theta is {self.theta}, inputs {self.inputs}, boxes {self.boxes}.",
                             "theta lies above 0 and up to 1, inputs is at least 1, boxes at least 0.")
        place = Place(self.row, self.column, self.side, self.side).within(subject.input_shape)
        module = sealed(subject.module)
        given = fit.inputs.to(ctx.device).double()
        ctx.spend(len(given), backward=False)
        with torch.no_grad():
            elsewhere = torch.cat([module(part).argmax(-1) for part in given.split(ctx.batch)]) != self.target
        inputs = given[elsewhere][:self.inputs]
        if not len(inputs):
            raise NotApplicable(f"the model gives all {len(given)} inputs class {self.target} already.")
        wanted = math.ceil(self.theta * len(inputs) - 1e-9)
        patch, possible, looked, reason = None, len(inputs), 0, ""
        try:
            found = search_patch(module, inputs, place, self.target, ctx, starts=self.starts, steps=self.steps)
            if hits(module, inputs, place, found.patch, self.target) >= self.theta - 1e-9:
                patch = found.patch
            else:
                proof = exclude_patches(module, inputs, place, self.target, wanted, ctx, boxes=self.boxes)
                possible, looked, patch = proof.possible, proof.boxes, proof.patch
        except BudgetSpent as error:
            reason = str(error)
        return self._certificate(place, len(inputs), wanted, patch, possible, looked, reason, module, inputs)

    def _certificate(self, place: Place, n: int, wanted: int, patch: torch.Tensor | None, possible: int, looked: int,
                     reason: str, module: torch.nn.Module, inputs: torch.Tensor) -> Certificate:
        holds, shown = (True if possible < wanted else None), {}
        if patch is not None:
            share = hits(module, inputs, place, patch, self.target)
            holds, shown = False, {"success": share}
            reason = f"a patch sends {share:.0%} of them there."
        elif holds is None and not reason:
            reason = (f"after {looked} boxes a patch might still send {possible} of {n} inputs there, and none was "
                      "found; allow more boxes, a smaller patch or fewer inputs.")
        where = f"{self.side} x {self.side} pixels at row {place.row}, column {place.column}"
        return Certificate(
            method=self.card.name,
            statement=f"No single patch of {where}, of any pixel values from 0 to 1, sends {self.theta:.0%} or more of "
                      f"{n} inputs to class {self.target}.",
            assumptions=(
                "the patch replaces the pixels at that place and nothing else changes",
                "arithmetic is that of real numbers: bounds are computed in float64, asked for a margin of 1e-5, and "
                "the rounding of the deployed model is not modelled"),
            inputs=f"{n} inputs that were given and that the model does not give class {self.target} without a patch",
            holds=holds, reason=reason,
            values={"claim": {"kind": "patch", "target": self.target, "row": place.row, "column": place.column,
                              "side": self.side, "theta": self.theta, "inputs": self.inputs},
                    "inputs": n, "possible": possible, "boxes": looked, **shown},
            counterexample=None if patch is None else {"patch": patch.float().cpu(),
                                                       "stamped": place.put(inputs, patch).float().cpu()})
