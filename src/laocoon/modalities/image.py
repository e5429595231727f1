"""Images: canonical batches are float32 [n, channels, height, width] in [0, 1].

Whatever a file's network wants instead (0-255, BGR, NHWC, normalisation, a flat vector) and gives instead
(probabilities, one logit, several outputs, a feature map) is adapted here, once, so that nothing above need care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files.bounded import Bounded
from laocoon.files.onnx_graph import GraphModule
from laocoon.files.wording import first_line
from laocoon.modalities.class_head import outputs_by_name
from laocoon.modalities.encoder import ImageEncoder, choose_embedding, cut_before, pooling, width_of
from laocoon.modalities.raw import (
    FAILURES,
    RANGES,
    EachBatch,
    ModelOptions,
    RawModel,
    as_subject,
    check_numbers,
    scored,
)

TRIED_SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384)  # where neither the file nor the user says
@dataclass(frozen=True)
class Image:
    """The image modality."""

    name: str = "image"


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
    check_numbers(raw.module)
    geometry = _geometry(raw, merged)
    notes = [*raw.notes, *_assumptions(merged)]
    core, whole, answers = _first_pass(raw, geometry, merged, notes)
    if merged.task == "encoder" and merged.layer is None:
        chosen = choose_embedding(answers, raw.output_names, merged.output)
        module = ImageAdapter(core, geometry, merged, chosen.name, pooling(chosen.value))
        known = chosen.index < len(raw.known_logits) and raw.known_logits[chosen.index]
        width = width_of(chosen.value, scores=known or bool(raw.class_names))
        return as_subject(raw, module, ImageEncoder(), width, _probe(geometry, 1), whole=whole, names=(), notes=notes,
                          provenance=provenance)
    told = scored(raw, answers, merged, notes, lambda: _run(ImageAdapter(core, geometry, merged), 1, graph=True))
    module = ImageAdapter(core, geometry, merged, told.output, told.head)
    names = raw.class_names if len(raw.class_names) == told.classes else ()
    subject = as_subject(raw, module, Image(), told.classes, _probe(geometry, 1), whole=whole, names=names,
                         notes=notes, provenance=provenance)
    return subject if merged.layer is None else cut_before(subject, merged.layer)


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


def _run(adapter: ImageAdapter, count: int, *, graph: bool = False) -> dict[str, Tensor]:
    with torch.set_grad_enabled(graph), Bounded():
        return outputs_by_name(adapter.core(adapter.prepare(_probe(adapter.geometry, count).requires_grad_(graph))))


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
