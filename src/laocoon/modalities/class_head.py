"""From what a classifier answers to logits, [batch, classes]: which output, which activation, one or more scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.wording import printable

ACTIVATIONS = ("logits", "softmax", "sigmoid")
# What autograd calls operators, without the digit behind: layers and a ReLU, and what is looked through to find them.
UNBOUNDED = tuple(f"{n}Backward" for n in (
    "Addmm", "Mm", "Bmm", "Linear", "Convolution", "MkldnnConvolution", "Relu", "LeakyRelu"))
THROUGH = tuple(f"{n}Backward" for n in (
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Mean", "AvgPool2D", "AdaptiveAvgPool2D", "Alias",
    "Clone", "ToCopy", "Select", "Slice", "T", "Transpose", "Permute", "Add"))
_SMALLEST = 1e-30  # probabilities are kept above this, so that their logarithm is finite
_LIKELY = re.compile(r"logit|prob|score|class|output|pred|dense|fc|head", re.IGNORECASE)


def outputs_by_name(result: Any) -> dict[str, Tensor]:
    """Whatever a network returned as named tensors."""
    if isinstance(result, Tensor):
        return {"": result}
    if isinstance(result, Mapping):
        return {str(k): v for k, v in result.items() if isinstance(v, Tensor)}
    if isinstance(result, tuple | list):
        return {str(i): v for i, v in enumerate(result) if isinstance(v, Tensor)}
    raise BrokenFile(f"the model returns a {type(result).__name__}.", "A classifier returns tensors.")


@dataclass(frozen=True, eq=False)
class Chosen:
    name: str  # key among the network's outputs
    index: int
    value: Tensor


def choose_output(answers: Mapping[str, Tensor], names: tuple[str, ...], cut: tuple[str, ...],
                  wanted: str | int | None, classes: int | None) -> Chosen:
    """The output that holds one score for each class: as asked for, or the only one of a fitting shape."""
    options = []
    for index, (key, value) in enumerate(answers.items()):
        shown = names[index] if index < len(names) else key or str(index)
        if wanted is None or wanted in (index, shown, key) or str(wanted) == str(index):
            options.append((shown, Chosen(key, index, value)))
    if not options:
        raise InputError(f"the model has no output {wanted!r}.",
                         f"It has {', '.join(repr(printable(n, 40)) for n in names or answers)}.")
    fitting = [(shown, c) for shown, c in options if _scores(c.value) and classes in (None, max(_count(c.value), 2))]
    if not fitting:
        shapes = ", ".join(f"{printable(s, 40)!r} {list(c.value.shape[1:])}" for s, c in options)
        each = "class" if classes is None else f"of {classes} classes"
        raise InputError(f"no output of the model holds one score for each {each} (outputs: {shapes}).",
                         "Only classifiers can be examined." if classes is None else "Drop the number of classes.")
    if len(fitting) > 1:
        proper = [f for f in fitting if _count(f[1].value) > 1] or fitting
        widths = {_count(c.value) for _, c in proper}
        named = [f for f in proper if _LIKELY.search(f[0])]
        if len(widths) > 1 and len(named) != 1:
            shapes = ", ".join(f"{printable(s, 40)!r} {_count(c.value)}" for s, c in proper)
            raise InputError(f"several outputs could hold the class scores ({shapes}).", "Name the one to examine.")
        fitting = named if len(widths) > 1 else proper
    chosen = fitting[0][1]
    if not bool(torch.isfinite(chosen.value).all()):
        raise BrokenFile(f"output {printable(fitting[0][0], 40)!r} is not finite on ordinary images.",
                         "The weights are damaged, or the input range is wrong.")
    return chosen


def _scores(value: Tensor) -> bool:
    """[n], [n, k] or [n, k, 1, 1] of floats."""
    return value.is_floating_point() and value.dim() >= 1 and len(value) == 4 and (
        value.dim() <= 2 or sum(s > 1 for s in value.shape[1:]) <= 1) and 1 <= _count(value) <= 200_000


def _count(value: Tensor) -> int:
    return value[0].numel()


def detect_activation(value: Tensor) -> str:
    """Softmax if every row is a distribution, sigmoid if every score is a probability, logits otherwise."""
    flat = value.reshape(len(value), -1).float()
    if float(flat.min()) < 0 or float(flat.max()) > 1 + 1e-4:
        return "logits"
    if flat.shape[1] > 1 and bool(((flat.sum(1) - 1).abs() < 1e-3).all()):
        return "softmax"
    return "sigmoid" if float(flat.max()) > 0 else "logits"


def ends_unbounded(output: Tensor) -> bool:
    """Is the last that is done to these scores a layer or a ReLU, whose values are bounded by nothing?

    False also where that cannot be seen. Averages, additions of constants and changes of shape are looked through.
    """
    node = output.grad_fn
    while node is not None:
        name = type(node).__name__.rstrip("0123456789")
        if name in UNBOUNDED:
            return True
        before = [n for n, _ in node.next_functions if n is not None]
        if name not in THROUGH or len(before) != 1:
            return False
        node = before[0]
    return False


class Head(nn.Module):
    """Scores to logits. One score z for two classes becomes (-z/2, z/2), whose softmax is the sigmoid of z."""

    def __init__(self, activation: str, *, binary: bool) -> None:
        super().__init__()
        self.activation, self.binary = activation, binary

    def idle(self, value: Tensor) -> bool:
        """Is there nothing to do for outputs like this?"""
        return self.activation == "logits" and not self.binary and value.dim() == 2

    def forward(self, scores: Tensor) -> Tensor:
        z = scores.reshape(len(scores), -1)
        if self.activation == "softmax":
            z = z.clamp_min(_SMALLEST).log()
        elif self.activation == "sigmoid":
            z = z.clamp_min(_SMALLEST).log() - (1 - z).clamp_min(1e-7).log()
        return torch.cat([-z / 2, z / 2], 1) if self.binary else z
