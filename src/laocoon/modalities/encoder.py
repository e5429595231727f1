"""Encoders: networks that answer with an embedding, [batch, width], and know no classes.

An encoder is a Subject whose modality is named "image_encoder" or "text_encoder". Its `classes` is the width of its
embeddings and its `logits` are the embeddings, so that everything that only runs a subject serves it too, while every
method about classes skips it by its card. A classifier becomes an encoder when it is cut before a layer: the teacher
of whoever will put a head of their own on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Discrete, Subject
from laocoon.files.wording import printable
from laocoon.modalities.class_head import Chosen, detect_activation
from laocoon.modalities.text import PADDING, Text

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError)
PENULTIMATE = "penultimate"  # instead of a layer's name: whatever makes the class scores
LIKELY_NAMES = ("embedding", "sentence_embedding", "pooler_output", "pooled", "features", "last_hidden_state")


@dataclass(frozen=True)
class ImageEncoder:
    """Images in, embeddings out."""

    name: str = "image_encoder"


def encodes(modality: str) -> bool:
    """Is a modality of this name one of encoders?"""
    return modality.endswith("_encoder")


class Averaged(nn.Module):
    """Feature maps [batch, width, h, w] or tokens [batch, n, width] as one embedding each, [batch, width]."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


def pooling(value: Tensor) -> nn.Module | None:
    """What makes [batch, width] of a value like this one; None where it is that already."""
    if value.dim() == 2:
        return None
    return Averaged((2, 3)) if value.dim() == 4 else Averaged((1,)) if value.dim() == 3 else nn.Flatten()


class Truncated(nn.Module):
    """A network up to a layer: it answers with what enters that layer. The rest is run and dropped."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.network.get_submodule(self.layer).register_forward_pre_hook(
            lambda _, given: seen.append(given[0]))
        try:
            self.network(x)
        finally:
            handle.remove()
        if not seen or not isinstance(seen[-1], Tensor):
            raise RuntimeError(f"layer {self.layer} is given no tensor")
        return seen[-1]


def cut_before(subject: Subject, layer: str = PENULTIMATE) -> Subject:
    """The encoder inside a classifier: what enters `layer` is the embedding."""
    if Capability.FEATURES not in subject.capabilities:
        raise InputError("the model does not show its hidden features.", "Export the encoder without its head.")
    example = _example(subject)
    name = _head(subject, example) if layer == PENULTIMATE else layer
    names = [n for n, _ in subject.module.named_modules() if n]
    if name not in names:
        near = [n for n in names if n.endswith(layer) or layer in n][:6] or names[-6:]
        raise InputError(f"the model has no layer {printable(layer, 60)!r}.",
                         f"It has, among others, {', '.join(repr(printable(n, 60)) for n in near)}.")
    try:
        with torch.no_grad():
            found = Truncated(subject.module, name)(example)
    except RuntimeError as error:
        raise InputError(f"layer {printable(name, 60)!r} is given no tensor when the model runs.",
                         "Name another.") from error
    module, pool = _without(subject.module, name, example, found), pooling(found)
    if pool is not None:
        module, found = nn.Sequential(module, pool), pool(found)
    note = f"cut before layer {printable(name, 60)!r}: what enters it is the embedding"
    known = subject.modality
    allowed = subject.capabilities
    if isinstance(known, Text) and not isinstance(module, Discrete):
        allowed -= {Capability.GRADIENT}  # nothing says any more where its words are looked up
    return replace(subject, module=module, classes=width_of(found), class_names=(), graph=None, capabilities=allowed,
                   modality=replace(known, name="text_encoder") if isinstance(known, Text) else ImageEncoder(),
                   provenance=replace(subject.provenance, notes=(*subject.provenance.notes, note)))


def _example(subject: Subject) -> Tensor:
    """Four unlike inputs."""
    rng = torch.Generator().manual_seed(0)
    modality = subject.modality
    if isinstance(modality, Text):
        typed = torch.tensor(sorted(set(range(len(modality.vocabulary))) - {PADDING, *modality.special}))
        return typed[torch.randint(len(typed), (4, modality.length), generator=rng)]
    if modality.name != "image":
        raise InputError(f"a model of the modality {modality.name!r} is not cut.",
                         "Classifiers of images and texts are.")
    return torch.rand(4, *subject.input_shape, generator=rng)


def _without(network: nn.Module, layer: str, example: Tensor, wanted: Tensor) -> nn.Module:
    """The network up to a layer: without it where nothing else follows, else cut at each pass."""
    shorter = copy.deepcopy(network)
    parent, _, child = layer.rpartition(".")
    setattr(shorter.get_submodule(parent), child, nn.Identity())
    try:
        with torch.no_grad():
            same = torch.equal(shorter(example), wanted)
    except FAILURES:
        same = False
    return shorter if same else Truncated(network, layer)


def choose_embedding(answers: Mapping[str, Tensor], names: tuple[str, ...], wanted: str | int | None) -> Chosen:
    """The output that holds the embedding: as asked for, by its name, or the first that has one row a sample."""
    fitting = []
    for index, (key, value) in enumerate(answers.items()):
        shown = names[index] if index < len(names) else key or str(index)
        asked = wanted is None or wanted in (index, shown, key) or str(wanted) == str(index)
        if asked and value.is_floating_point() and 2 <= value.dim() <= 4 and len(value) == 4:
            fitting.append((shown, Chosen(key, index, value)))
    if not fitting:
        which = "no output" if wanted is None else f"no output {wanted!r}"
        raise InputError(f"the model has {which} that holds embeddings.",
                         f"Its outputs: {', '.join(repr(printable(n, 40)) for n in names or answers)}.")
    named = [c for likely in LIKELY_NAMES for shown, c in fitting if shown.endswith(likely)]
    flat = [c for _, c in fitting if c.value.dim() == 2]
    return (named or flat or [c for _, c in fitting])[0]


def width_of(value: Tensor, *, scores: bool = False) -> int:
    """Numbers in an embedding, once those of four unlike inputs are found fit: finite, unlike, and no class scores.

    `scores`: the file says that they are.
    """
    pool = pooling(value)
    found = value if pool is None else pool(value)
    if not bool(torch.isfinite(found).all()):
        raise BrokenFile("the embeddings are not finite on ordinary inputs.",
                         "The weights are damaged, or the input range is wrong.")
    if scores or (value.dim() == 2 and detect_activation(value) == "softmax"):
        raise InputError(f"the model gives scores of {found.shape[1]} classes: it is a classifier, not an encoder.",
                         "Drop --task encoder, or cut it before its head with --layer penultimate.")
    if found.shape[1] < 2:
        raise InputError(f"the embeddings have {found.shape[1]} number each.", "An encoder answers with at least two.")
    if float((found - found[:1]).abs().max()) <= 1e-6 * float(found.abs().max()):
        raise InputError("the encoder answers with the same embedding, whatever it is given.",
                         "Check the output, the layer and the input range: a constant cannot be examined.")
    return found.shape[1]


def _head(subject: Subject, example: Tensor) -> str:
    """The last layer with weights that a pass goes through and that gives one number for each class."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        def store(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() >= 2 and subject.classes in output.shape[1:]:
                seen.append(name)

        return store

    handles = [module.register_forward_hook(hook(name)) for name, module in subject.module.named_modules()
               if name and not any(True for _ in module.children()) and _weighted(module)]
    try:
        with torch.no_grad():
            subject.module(example)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InputError("no layer that makes the class scores could be found.", "Name the layer to cut before.")
    return seen[-1]


def _weighted(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(t.dim() >= 2 and t.is_floating_point() for t in tensors)
