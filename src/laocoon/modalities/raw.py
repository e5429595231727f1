"""What a file held and how its owner says it is to be taken, before a modality makes a subject of it.

Shared by images and tables: which output holds the class scores, what makes logits of it, and what the network turns
out to allow.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Modality, Provenance, Subject
from laocoon.files.wording import printable
from laocoon.modalities.class_head import (
    ACTIVATIONS,
    Head,
    choose_output,
    detect_activation,
    ends_unbounded,
    outputs_by_name,
)

RANGES = {"0-1": (1.0, 0.0), "0-255": (255.0, 0.0), "-1-1": (2.0, -1.0)}  # canonical x becomes a·x + b
MODALITIES = ("image", "text", "tabular")
TASKS = ("classifier", "encoder")
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, OverflowError, ZeroDivisionError, AttributeError,
            NotImplementedError, AssertionError)


@dataclass(frozen=True)
class ModelOptions:
    """How a model wants its images and how it answers; None: taken from the file, or inferred."""

    input_range: str | None = None  # "0-1", "0-255" or "-1-1"
    mean: tuple[float, ...] | None = None  # subtracted, in the units of input_range; one value or one a channel
    std: tuple[float, ...] | None = None  # divided by, in the units of input_range
    layout: str | None = None  # "NCHW" or "NHWC"
    channels: str | None = None  # order of the colours: "RGB" or "BGR"
    image_channels: int | None = None  # 1 grey, 3 colour, 4 colour and alpha
    size: tuple[int, int] | None = None  # height, width
    classes: int | None = None  # how many classes the model must have
    output: str | int | None = None  # name or position of the output with the class scores
    activation: str | None = None  # what is applied to the scores inside: "logits" (nothing), "softmax", "sigmoid"
    modality: str | None = None  # what it takes: "image", "text" or "tabular"; else told by file and data
    task: str | None = None  # what the model is: "classifier", or "encoder" (it answers with an embedding)
    layer: str | None = None  # of the task encoder: cut a classifier before this layer; "penultimate": before its head
    columns: tuple[str, ...] | None = None  # names of a table's columns, in the order in which the model takes them

    def __post_init__(self) -> None:
        for name, allowed in (
            ("input_range", tuple(RANGES)),
            ("layout", ("NCHW", "NHWC")),
            ("channels", ("RGB", "BGR")),
            ("activation", ACTIVATIONS),
            ("image_channels", (1, 3, 4)),
            ("modality", MODALITIES),
            ("task", TASKS),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InputError(f"{name} is {value!r}.", f"It is one of {', '.join(map(str, allowed))}.")
        if self.size is not None and (len(self.size) != 2 or not all(1 <= s <= 65536 for s in self.size)):
            raise InputError(f"size is {self.size}.", "Give a height and a width in pixels.")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and (len(value) not in (1, 3, 4) or not all(math.isfinite(v) for v in value)):
                raise InputError(f"{name} is {value}.", "Give one finite number, or one for each channel.")
        if self.layer is not None and self.task != "encoder":
            raise InputError(f"layer is {self.layer!r}, but the task is not encoder.", "Pass --task encoder too.")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std is {self.std}.", "Every value must be above 0.")

    def over(self, other: ModelOptions) -> ModelOptions:
        """These options, with what they leave open taken from `other`."""
        return replace(other, **{f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None})


@dataclass(frozen=True, eq=False)
class RawModel:
    """What a file held, before it is made uniform. `input_shape` is without the batch; None: not known."""

    module: nn.Module
    format: str
    input_shape: tuple[int | None, ...] | None = None
    output_names: tuple[str, ...] = ()
    known_logits: tuple[bool, ...] = ()  # per output: its activation was taken off, what is left are logits
    cut: tuple[str, ...] = ()  # per output: which activation was taken off
    input_range: str | None = None
    defaults: ModelOptions = field(default_factory=ModelOptions)  # from the file's own configuration
    graph: Any = None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    whole_batch: bool = True  # False: the batch is cut into chunks, so that hidden features cannot be read


class EachBatch(nn.Module):
    """Feeds a model that only takes `size` samples at once; the last batch is filled up and cut again."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x: Tensor) -> Any:
        count = len(x)
        missing = -count % self.size
        if missing:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        parts = [outputs_by_name(self.module(part)) for part in x.split(self.size)]
        joined = {name: torch.cat([p[name] for p in parts])[:count] for name in parts[0]}
        return joined.get("", joined)  # one unnamed tensor stays one


@dataclass(frozen=True, eq=False)
class Scored:
    """Where the class scores are. head: makes logits of them; None: they are logits."""

    output: str
    classes: int
    head: Head | None


def scored(raw: RawModel, answers: Mapping[str, Tensor], options: ModelOptions, notes: list[str],
           again: Callable[[], Mapping[str, Tensor]]) -> Scored:
    """From the outputs on a few inputs; what was assumed is added to the notes.

    again: the outputs on one input, with the graph that autograd leaves behind.
    """
    chosen = choose_output(answers, raw.output_names, raw.cut, options.output, options.classes)
    known = chosen.index < len(raw.known_logits) and raw.known_logits[chosen.index]
    cut = raw.cut[chosen.index] if chosen.index < len(raw.cut) else ""
    activation = "logits" if known else options.activation or detect_activation(chosen.value)
    if activation == "sigmoid" and options.activation is None:
        with contextlib.suppress(*FAILURES):  # what cannot be differentiated is judged by its numbers
            activation = "logits" if ends_unbounded(again()[chosen.name]) else activation
    scores = chosen.value.flatten(1) if chosen.value.dim() > 1 else chosen.value.unsqueeze(1)
    classes = max(scores.shape[1], 2)
    if options.classes is not None and options.classes != classes:
        raise InputError(f"output {chosen.name!r} scores {classes} classes, not {options.classes}.",
                         "Name another output, or drop the option.")
    head = Head(activation, binary=scores.shape[1] == 1)
    if activation != "logits":
        notes.append(f"the scores are {activation} probabilities; their logarithms are used as logits")
    if scores.shape[1] == 1:
        notes.append("one score for two classes: taken as the logit of class 1 against class 0")
    elif cut == "sigmoid" or activation == "sigmoid":
        notes.append("multi-label: each class has its own sigmoid; the largest logit is taken as the answer")
    return Scored(chosen.name, classes, None if head.idle(chosen.value) else head)


def as_subject(raw: RawModel, module: nn.Module, modality: Modality, classes: int, probe: Tensor, *, whole: bool,
               names: tuple[str, ...], notes: list[str], provenance: Provenance) -> Subject:
    """With what the network turns out to allow. probe: one input, [1, …]; whole: batches go through in one piece."""
    capabilities = {Capability.QUERY, Capability.WEIGHTS}
    if _differentiable(module, probe):
        capabilities.add(Capability.GRADIENT)
    else:
        notes.append("the outputs cannot be differentiated with respect to the input")
    if whole:
        capabilities.add(Capability.FEATURES)
    if raw.graph is not None:
        capabilities.add(Capability.GRAPH)
    return Subject(
        module=module, modality=modality, classes=classes, input_shape=tuple(probe.shape[1:]),
        capabilities=frozenset(capabilities), class_names=names, graph=raw.graph,
        provenance=replace(provenance, format=raw.format, notes=tuple(dict.fromkeys((*provenance.notes, *notes))),
                           metadata={**raw.metadata, **provenance.metadata}),
    )


def check_numbers(module: nn.Module) -> None:
    """Weights must be finite; buffers may be infinite (masks are), but hold no NaN."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            bad = (
                int((~torch.isfinite(tensor)).sum()) if isinstance(tensor, nn.Parameter) else int(tensor.isnan().sum())
            )
            if bad:
                raise BrokenFile(f"weight {printable(name)!r} holds {bad} values that are not finite numbers.",
                                 "The file is damaged or was meant to break its reader.")


def _differentiable(module: nn.Module, probe: Tensor) -> bool:
    x = probe.clone().requires_grad_()
    with torch.enable_grad():
        y = module(x)
        if not y.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(y.square().sum(), x, allow_unused=True)
    return gradient is not None
