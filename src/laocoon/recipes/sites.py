"""Places inside a network whose tensors can be read and edited, found by running it once.

A `Site` is one call of one leaf module: shared modules (a ReLU used everywhere) have several. Nothing is
assumed about the architecture: layers are told apart by what they hold and what they returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.subject import Subject

Edit = Callable[[Tensor], Tensor]
PROBE = 3  # an unlikely size of anything but the batch


@dataclass(frozen=True)
class Site:
    """The output (or the input) of one call of one leaf module."""

    layer: str
    call: int  # 0 for the first time that the layer runs in a pass
    kind: str  # "norm", "affine" or "other"
    axis: int  # the channel axis of the batch tensor
    channels: int
    shape: tuple[int, ...]  # of one sample
    side: str = "output"

    def spread(self, values: Tensor) -> Tensor:
        """[batch, channels] (or [channels]) made ready to broadcast against the site's tensor."""
        lead = values.shape[:-1] if values.dim() > 1 else (1,)
        sizes = [1] * (len(self.shape) + 1)
        sizes[self.axis] = self.channels
        sizes[0] = lead[0]
        return values.reshape(sizes)

    def pooled(self, tensor: Tensor, how: str = "mean") -> Tensor:
        """[batch, channels]: the site's tensor reduced over everything else."""
        flat = tensor.movedim(self.axis, 1).flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(-1)
        return flat.amax(-1) if how == "max" else flat.mean(-1)


def survey(subject: Subject, example: Tensor, ctx: Context) -> tuple[Site, ...]:
    """Every call of a leaf module that keeps the batch axis, in order of execution."""
    if Capability.FEATURES not in subject.capabilities:
        raise NotApplicable("the subject does not expose its features.")
    leaves = {n: m for n, m in subject.module.named_modules() if n and not any(True for _ in m.children())}
    seen: list[Site] = []
    calls: dict[str, int] = {}

    def hook(name: str) -> Any:
        def store(module: nn.Module, _: Any, output: Any) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2 and len(output) == PROBE:
                kind, axis = _kind(module), _channel_axis(module, output)
                seen.append(Site(name, call, kind, axis, output.shape[axis], tuple(output.shape[1:])))

        return store

    handles = []
    try:
        handles = [module.register_forward_hook(hook(name)) for name, module in leaves.items()]
        ctx.spend(PROBE, backward=False)
        with torch.no_grad():
            subject.outputs(example[torch.arange(PROBE) % len(example)])
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen)


def _kind(module: nn.Module) -> str:
    if "norm" in type(module).__name__.lower():
        return "norm"
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return "affine" if any(t.dim() >= 2 and t.is_floating_point() for t in tensors) else "other"


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    if output.dim() == 2:
        return 1
    weight = getattr(module, "weight", None)
    width = len(weight) if isinstance(weight, Tensor) and weight.dim() else -1
    last_first = "Linear" in type(module).__name__ or "LayerNorm" in type(module).__name__ or output.dim() == 3
    order = (output.dim() - 1, 1) if last_first else (1, output.dim() - 1)
    return next((axis for axis in order if output.shape[axis] == width), order[0])


def head_of(subject: Subject, sites: tuple[Site, ...], example: Tensor, ctx: Context) -> Site:
    """The input of the last affine layer that makes class scores: the penultimate representation."""
    wanted = {subject.classes, 1} if subject.classes == 2 else {subject.classes}
    for site in reversed(sites):
        if site.kind == "affine" and site.channels in wanted:
            entry = replace(site, side="input")
            with reading(subject, entry) as seen, torch.no_grad():
                ctx.spend(PROBE, backward=False)
                subject.outputs(example[torch.arange(PROBE) % len(example)])
            features = seen.get(entry)
            if features is None or features.dim() < 2 or len(features) != PROBE:
                continue
            # A linear head takes features last, a 1x1 convolution takes them first.
            axis = features.dim() - 1 if features.dim() < 4 else 1
            return replace(entry, axis=axis, channels=features.shape[axis], shape=tuple(features.shape[1:]))
    raise NotApplicable("no layer that makes the class scores could be found.")


def noise_sites(sites: tuple[Site, ...], head: Site | None = None) -> tuple[Site, ...]:
    """Channels with an affine map of their own: normalisations, or (folded or absent) the affine layers."""
    norms = tuple(s for s in sites if s.kind == "norm")
    affine = tuple(s for s in sites if s.kind == "affine" and (head is None or s.layer != head.layer))
    return norms if len(norms) >= max(2, len(affine) // 3) else affine


@contextmanager
def editing(subject: Subject, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Within the block, each pass replaces the tensors at the given sites; no hook survives the block."""
    modules = dict(subject.module.named_modules())
    by_layer: dict[str, dict[tuple[int, str], Edit]] = {}
    for site, edit in edits.items():
        by_layer.setdefault(site.layer, {})[site.call, site.side] = edit
    calls: dict[str, int] = {}

    def restart(_: nn.Module, __: Any) -> None:
        calls.clear()

    def before(name: str) -> Any:
        def change(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            edit = by_layer[name].get((calls.get(name, -1) + 1, "input"))
            return None if edit is None else (edit(inputs[0]), *inputs[1:])

        return change

    def after(name: str) -> Any:
        def change(_: nn.Module, __: Any, output: Any) -> Any:
            calls[name] = calls.get(name, -1) + 1
            edit = by_layer[name].get((calls[name], "output"))
            return None if edit is None else edit(output)

        return change

    handles: list[Any] = []
    try:
        handles.append(subject.module.register_forward_pre_hook(restart))
        for name in by_layer:
            handles.append(modules[name].register_forward_pre_hook(before(name)))
            handles.append(modules[name].register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reading(subject: Subject, *sites: Site) -> Iterator[dict[Site, Tensor]]:
    """Within the block, each pass stores the tensors at the given sites."""
    seen: dict[Site, Tensor] = {}

    def keep(site: Site) -> Edit:
        def store(tensor: Tensor) -> Tensor:
            seen[site] = tensor
            return tensor

        return store

    with editing(subject, {site: keep(site) for site in sites}):
        yield seen


@dataclass(frozen=True, eq=False)
class Tail:
    """The map from the penultimate representation to the logits, without running the network before it.

    Running a head costs nothing worth counting beside the network. Its answer may be renumbered, negated or
    normalised afterwards (one score made into two, a softmax undone): `after` is that affine map, if any.
    """

    subject: Subject
    site: Site
    after: Tensor | None = None  # [outputs + 1, classes]

    def __call__(self, features: Tensor) -> Tensor:
        """[n, …] features to [n, classes], up to a constant for each sample."""
        own: Tensor = dict(self.subject.module.named_modules())[self.site.layer](features)
        own = own.flatten(1).float()
        return own if self.after is None else own @ self.after[:-1] + self.after[-1]


@dataclass(frozen=True, eq=False)
class Penultimate:
    """Features of samples before the head, [n, …], and the logits that went with them, [n, classes]."""

    features: Tensor
    logits: Tensor


def penultimate(subject: Subject, site: Site, inputs: Tensor, ctx: Context) -> Penultimate:
    """Features and logits of clean inputs, in chunks, without gradients."""
    features, logits = [], []
    with reading(subject, site) as seen, torch.no_grad():
        for chunk in inputs.split(ctx.batch):
            ctx.spend(len(chunk), backward=False)
            logits.append(subject.outputs(chunk).logits)
            features.append(seen[site].clone())
    return Penultimate(torch.cat(features), torch.cat(logits))


def tail_of(subject: Subject, site: Site, known: Penultimate) -> Tail:
    """The tail, checked on known features and logits; NotApplicable where the head is not the whole tail."""
    plain = Tail(subject, site)
    with torch.no_grad():
        try:
            alone = plain(known.features)
        except (TypeError, ValueError, RuntimeError) as error:  # a head of several inputs, or bound to its graph
            raise NotApplicable(f"the head {site.layer!r} cannot be run on its own.") from error
        wanted = _centred(known.logits.float())
        if alone.shape == wanted.shape and _agree(_centred(alone), wanted):
            return plain
        if len(alone) >= 2 * (alone.shape[1] + 1):
            design = torch.cat([alone, alone.new_ones(len(alone), 1)], 1)
            after = torch.linalg.lstsq(design.double().cpu(), wanted.double().cpu(), driver="gelsd").solution
            after = after.to(alone)
            if _agree(design @ after, wanted):
                return Tail(subject, site, after)
    raise NotApplicable(f"what follows the head {site.layer!r} is more than an affine map.")


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _agree(found: Tensor, wanted: Tensor) -> bool:
    """Close by how much the logits differ from sample to sample: where they hardly do, a constant would be close."""
    spread = (wanted - wanted.mean(0)).abs().amax()
    return bool((found - wanted).abs().amax() <= 1e-2 * spread + 1e-5 * wanted.abs().amax())
