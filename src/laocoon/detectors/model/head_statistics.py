"""Statistics of the last layer's rows, after DFBScanner (Lightweight and Fast Backdoor Model Detection).

Yu et al., arXiv 2605.18907: training on a backdoor leaves its mark on the parameters of the target class in the final
layer, whatever the trigger. For each class c, several indicators of its row w_c (and bias b_c); for each indicator, how
far the most outstanding class stands from the median class, in robust spreads.

Departures: rows are centred over the classes first (a softmax does not see what they share); the paper's choice and
weighting of indicators per data set is left out, since it was tuned on backdoored models: every indicator is a finding
of its own, and models are compared with reference models, never with a textbook threshold. No other group has
reproduced the paper's 97 % at 1 % false alarms; on small networks of ours these figures are not reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.heads import LinearHead, linear_head
from laocoon.recipes.outliers import skewness, standing_out

WORDS = {
    "row_norm": "the norm of its row", "row_max": "its largest weight", "row_min": "its most negative weight",
    "row_mean": "the mean of its row", "row_spread": "the spread of its row", "skew": "the skewness of its row",
    "bias": "its bias", "cosine": "the unlikeness of its row to the others", "nearest": "the likeness to another row",
    "reach": "the sum of its positive weights", "peak": "the share of a few weights in its row",
    "wins": "the number of features that favour it", "combined": "norm, maximum, mean, reach and bias together",
}


@dataclass(frozen=True)
class HeadStatistics(Detector):
    """Which class's row in the last layer is unlike the others'."""

    least_classes: int = 4  # a median of fewer says nothing

    card: ClassVar[Card] = Card(
        name="head_statistics",
        paper="Lightweight and Fast Backdoor Model Detection (DFBScanner, 2026)",
        url="https://arxiv.org/abs/2605.18907",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS}),
        misses="backdoors whose head was frozen or retrained after planting, all-to-all backdoors, models with few "
               "classes; trivially evaded by an attacker who knows of it.",
        summary="rows of the last layer that stand out: norm, extremes, mean, skewness, bias, cosine",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        if case.subject.classes < self.least_classes:
            raise NotApplicable(f"head_statistics needs {self.least_classes} classes or more; "
                                f"the model has {case.subject.classes}.")
        head = linear_head(case.subject, ctx)
        for rule, values in indicators(head).items():
            z = standing_out(values)
            top = int(z.argmax())
            runner_up = float(z[torch.arange(len(z)) != top].amax())
            yield Finding(f"head_statistics.{rule}", f"class {top}", float(z[top]),
                          f"class {top} stands out by {float(z[top]):.2f} spreads in {WORDS[rule]} "
                          f"(layer {head.layer!r})",
                          (top,), numbers={"value": float(values[top]), "runner_up": runner_up})


def indicators(head: LinearHead) -> dict[str, Tensor]:
    """Per indicator a value per class, higher where a target class is expected; free of the scale of the logits."""
    w = head.centred
    norms = w.norm(dim=1)
    unit = norms.quantile(0.5).clamp_min(1e-12)
    w, bias = w / unit, head.centred_bias / unit
    alike = functional.normalize(w, dim=1) @ functional.normalize(w, dim=1).T
    alike.fill_diagonal_(0)
    others = len(w) - 1
    few = max(1, w.shape[1] // 20)
    squares = w.square()
    found = {
        "row_norm": w.norm(dim=1),
        "row_max": w.amax(1),
        "row_min": -w.amin(1),
        "row_mean": w.mean(1),
        "row_spread": w.std(1, unbiased=False),
        "skew": skewness(w),
        "bias": bias,
        "cosine": -alike.sum(1) / others,
        "nearest": alike.amax(1),
        "reach": w.clamp_min(0).sum(1),
        "peak": squares.topk(few, 1).values.sum(1) / squares.sum(1).clamp_min(1e-12),
        "wins": torch.bincount(w.argmax(0), minlength=len(w)).float(),
    }
    parts = [standing_out(found[k]) for k in ("row_norm", "row_max", "row_mean", "reach", "bias")]
    return {**found, "combined": torch.stack(parts).mean(0)}
