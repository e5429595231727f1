"""Images: canonical batches are float32 [n, channels, height, width] in [0, 1].

Whatever a file's network wants instead (0-255, BGR, NHWC, normalisation, a flat vector) and gives instead
(probabilities, one logit, several outputs, a feature map) is adapted here, once, so that nothing above need care.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files.bounded import Bounded
from laocoon.files.onnx_graph import GraphModule
from laocoon.files.wording import first_line, printable
from laocoon.modalities.encoder import ImageEncoder, choose_embedding, cut_before, pooling, width_of
from laocoon.modalities.image_head import ACTIVATIONS, Head, choose_output, detect_activation, outputs_by_name

RANGES = {"0-1": (1.0, 0.0), "0-255": (255.0, 0.0), "-1-1": (2.0, -1.0)}  # canonical x becomes a·x + b
TRIED_SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384)  # where neither the file nor the user says
MODALITIES = ("image", "text", "tabular")
TASKS = ("classifier", "encoder")
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, OverflowError, ZeroDivisionError, AttributeError,
            NotImplementedError, AssertionError)


@dataclass(frozen=True)
class Image:
    """The image modality."""

    name: str = "image"


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


@dataclass(frozen=True)
class Geometry:
    """Canonical shape of an image, and the shape in which the network wants it."""

    channels: int
    height: int
    width: int
    layout: str  # "NCHW", "NHWC", "NHW" (grey without a channel axis) or "flat"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


class ImageAdapter(nn.Module):
    """Canonical images in, class logits out: input transform, the file's network (`core`), output transform."""

    scale: Tensor
    shift: Tensor

    def __init__(self, core: nn.Module, geometry: Geometry, options: ModelOptions, output: str = "",
                 head: nn.Module | None = None) -> None:
        super().__init__()
        self.core, self.geometry, self.options, self.output, self.head = core, geometry, options, output, head
        a, b = RANGES[options.input_range or "0-1"]
        mean = _per_channel(options.mean, 0.0, geometry.channels, "mean")
        std = _per_channel(options.std, 1.0, geometry.channels, "std")
        self.register_buffer("scale", a / std, persistent=False)
        self.register_buffer("shift", (b - mean) / std, persistent=False)
        self.plain = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.swaps = options.channels == "BGR" and geometry.channels >= 3

    def prepare(self, x: Tensor) -> Tensor:
        """Canonical images as the network wants them."""
        if not self.plain:
            x = torch.addcmul(self.shift, x, self.scale)
        if self.swaps:
            x = torch.cat([x[:, :3].flip(1), x[:, 3:]], 1)
        layout = self.geometry.layout
        if layout == "NHWC":
            return x.permute(0, 2, 3, 1)
        if layout == "NHW":
            return x.squeeze(1)
        return x.flatten(1) if layout == "flat" else x

    def forward(self, x: Tensor) -> Tensor:
        result = self.core(self.prepare(x))
        if self.output:  # empty: the network returns one tensor
            result = outputs_by_name(result)[self.output]
        return result if self.head is None else self.head(result)


def adapt(raw: RawModel, options: ModelOptions, provenance: Provenance) -> Subject:
    """A Subject from what a file held; every assumption that was made is noted in its provenance."""
    merged = options.over(raw.defaults).over(ModelOptions(input_range=raw.input_range))
    raw.module.eval()
    raw.module.requires_grad_(False)
    _check_numbers(raw.module)
    geometry = _geometry(raw, merged)
    notes = [*raw.notes, *_assumptions(merged)]
    core, whole, answers = _first_pass(raw, geometry, merged, notes)
    if merged.task == "encoder" and merged.layer is None:
        chosen = choose_embedding(answers, raw.output_names, merged.output)
        module = ImageAdapter(core, geometry, merged, chosen.name, pooling(chosen.value))
        known = chosen.index < len(raw.known_logits) and raw.known_logits[chosen.index]
        width = width_of(chosen.value, scores=known or bool(raw.class_names))
        return _subject(raw, module, width, geometry, whole, (), notes, provenance, ImageEncoder())
    chosen = choose_output(answers, raw.output_names, raw.cut, merged.output, merged.classes)
    known = chosen.index < len(raw.known_logits) and raw.known_logits[chosen.index]
    cut = raw.cut[chosen.index] if chosen.index < len(raw.cut) else ""
    activation = "logits" if known else merged.activation or detect_activation(chosen.value)
    scores = chosen.value.flatten(1) if chosen.value.dim() > 1 else chosen.value.unsqueeze(1)
    classes = max(scores.shape[1], 2)
    if merged.classes is not None and merged.classes != classes:
        raise InputError(f"output {chosen.name!r} scores {classes} classes, not {merged.classes}.",
                         "Name another output, or drop the option.")
    head = Head(activation, binary=scores.shape[1] == 1)
    module = ImageAdapter(core, geometry, merged, chosen.name, None if head.idle(chosen.value) else head)
    if activation != "logits":
        notes.append(f"the scores are {activation} probabilities; their logarithms are used as logits")
    if scores.shape[1] == 1:
        notes.append("one score for two classes: taken as the logit of class 1 against class 0")
    elif cut == "sigmoid" or activation == "sigmoid":
        notes.append("multi-label: each class has its own sigmoid; the largest logit is taken as the answer")
    names = raw.class_names if len(raw.class_names) == classes else ()
    subject = _subject(raw, module, classes, geometry, whole, names, notes, provenance, Image())
    return subject if merged.layer is None else cut_before(subject, merged.layer)


def _subject(raw: RawModel, module: ImageAdapter, classes: int, geometry: Geometry, whole: bool, names: tuple[str, ...],
             notes: list[str], provenance: Provenance, modality: Image | ImageEncoder) -> Subject:
    """With what the network turns out to allow."""
    capabilities = {Capability.QUERY, Capability.WEIGHTS}
    if _differentiable(module, geometry):
        capabilities.add(Capability.GRADIENT)
    else:
        notes.append("the outputs cannot be differentiated with respect to the input")
    if whole:
        capabilities.add(Capability.FEATURES)
    if raw.graph is not None:
        capabilities.add(Capability.GRAPH)
    return Subject(
        module=module, modality=modality, classes=classes, input_shape=geometry.shape,
        capabilities=frozenset(capabilities), class_names=names, graph=raw.graph,
        provenance=replace(provenance, format=raw.format, notes=tuple(dict.fromkeys((*provenance.notes, *notes))),
                           metadata={**raw.metadata, **provenance.metadata}),
    )


def reinterpreted(subject: Subject, options: ModelOptions) -> Subject:
    """The same network with another input range, normalisation or colour order, sharing its weights."""
    adapter = subject.module
    if not isinstance(adapter, ImageAdapter):
        raise InputError("the subject was not opened from a file.", "Change its module instead.")
    merged = options.over(adapter.options)
    module = ImageAdapter(adapter.core, adapter.geometry, merged, adapter.output, adapter.head)
    kept = tuple(n for n in subject.provenance.notes if not n.startswith("assumed"))
    return replace(subject, module=module, provenance=replace(subject.provenance, notes=(*kept, *_assumptions(merged))))


def _per_channel(values: tuple[float, ...] | None, default: float, channels: int, name: str) -> Tensor:
    if values is None:
        values = (default,)
    if len(values) not in (1, channels):
        raise InputError(f"{name} has {len(values)} values; the model has {channels} channels.", "Give one for each.")
    return torch.tensor(values, dtype=torch.float32).expand(channels).reshape(-1, 1, 1).clone()


def _assumptions(options: ModelOptions) -> list[str]:
    notes = []
    if options.input_range is None:
        notes.append("assumed: pixels from 0 to 1 (no flag and no configuration says otherwise)")
    if options.mean is None and options.std is None:
        notes.append("assumed: no normalisation outside of the network (no flag and no configuration says otherwise)")
    return notes


def _check_numbers(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            bad = (
                int((~torch.isfinite(tensor)).sum()) if isinstance(tensor, nn.Parameter) else int(tensor.isnan().sum())
            )
            if bad:
                raise BrokenFile(f"weight {printable(name)!r} holds {bad} values that are not finite numbers.",
                                 "The file is damaged or was meant to break its reader.")


def _geometry(raw: RawModel, options: ModelOptions) -> Geometry:
    """Shape and layout of the input, from the file, the options, or the sizes that the network accepts."""
    dims = raw.input_shape
    if dims is None:
        dims = (options.image_channels or 3, None, None)
    if len(dims) == 1:
        return _flat_geometry(dims[0], options)
    if len(dims) == 2:
        return _sized(raw, options, 1, dims[0], dims[1], "NHW")
    if len(dims) != 3:
        raise InputError(f"the model takes inputs of shape {list(dims)} (batch apart).", "An image has at most 3 axes.")
    layout = options.layout
    if layout is None:
        layout = "NHWC" if dims[2] in (1, 3, 4) and dims[0] not in (1, 3, 4) else "NCHW"
    c, h, w = dims if layout == "NCHW" else (dims[2], dims[0], dims[1])
    c = c if c is not None else options.image_channels or 3
    if c not in (1, 3, 4):
        raise InputError(f"the model takes inputs of shape {list(dims)}, {c} channels as {layout}.",
                         "Images have 1, 3 or 4 channels; pass the layout if it is another.")
    return _sized(raw, options, c, h, w, layout)


def _flat_geometry(length: int | None, options: ModelOptions) -> Geometry:
    for c in (options.image_channels,) if options.image_channels else (1, 3, 4):
        if options.size is not None and length in (None, c * options.size[0] * options.size[1]):
            return Geometry(c, *options.size, "flat")
        side = math.isqrt((length or 0) // c)
        if side and options.size is None and c * side * side == length:
            return Geometry(c, side, side, "flat")
    raise InputError(f"the model takes vectors of {length} numbers.", "Pass the height and width of the images.")


def _sized(raw: RawModel, options: ModelOptions, c: int, h: int | None, w: int | None, layout: str) -> Geometry:
    if options.image_channels not in (None, c):
        raise InputError(f"the model takes {c} channels, not {options.image_channels}.", "Drop the option.")
    if options.size is not None:
        if (h or options.size[0], w or options.size[1]) != tuple(options.size):
            raise InputError(f"the model takes images of {h} x {w}, not {options.size[0]} x {options.size[1]}.",
                             "Drop the size.")
        h, w = options.size
    if h and w:
        return Geometry(c, h, w, layout)
    accepted, reason = [], ""
    for side in TRIED_SIZES:
        geometry = Geometry(c, h or side, w or side, layout)
        try:
            _run(ImageAdapter(raw.module, geometry, options), 1)
            accepted.append(geometry)
        except FAILURES as error:
            reason = reason or first_line(error)
        if len(accepted) > 1:
            raise InputError("the model takes images of any size.", "Pass the height and width that it was trained on.")
    if not accepted:
        raise InputError(f"the model takes images of no usual size ({reason}).", "Pass their height and width.")
    return accepted[0]


def _probe(geometry: Geometry, count: int) -> Tensor:
    """A few unlike images: noise, black, white, a slope."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(count, *geometry.shape, generator=rng)
    if count > 3:
        x[1], x[2] = 0.0, 1.0
        x[3] = torch.linspace(0, 1, geometry.width).expand(*geometry.shape)
    return x


def _run(adapter: ImageAdapter, count: int) -> dict[str, Tensor]:
    with torch.no_grad(), Bounded():
        return outputs_by_name(adapter.core(adapter.prepare(_probe(adapter.geometry, count))))


def _first_pass(raw: RawModel, geometry: Geometry, options: ModelOptions,
                notes: list[str]) -> tuple[nn.Module, bool, dict[str, Tensor]]:
    """The network run once on several samples; one that only takes single samples is wrapped."""
    adapter = ImageAdapter(raw.module, geometry, options)
    try:
        one = _run(adapter, 1)
    except FAILURES as error:
        raise BrokenFile(f"the model fails on an image of shape {list(geometry.shape)} as {geometry.layout}: "
                         f"{first_line(error)}", "Check the size, the layout and the architecture.") from error
    try:
        several = _run(adapter, 4)
        if all(v.dim() and len(v) == 4 for k, v in several.items() if one[k].dim() and len(one[k]) == 1):
            if isinstance(raw.module, GraphModule):
                raw.module.settle(*(adapter.prepare(_probe(geometry, n)) for n in (2, 3)))
            return raw.module, raw.whole_batch, several
    except FAILURES:
        pass
    notes.append("the model sees 1 sample at a time; hidden features cannot be read")
    core = EachBatch(raw.module, 1)
    return core, False, _run(ImageAdapter(core, geometry, options), 4)


def _differentiable(module: ImageAdapter, geometry: Geometry) -> bool:
    x = _probe(geometry, 1).requires_grad_()
    with torch.enable_grad():
        y = module(x)
        if not y.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(y.square().sum(), x, allow_unused=True)
    return gradient is not None
