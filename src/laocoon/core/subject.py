"""A read-only handle on a model under examination."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.outputs import Outputs


class Modality(Protocol):
    """What an input is. One file each in `modalities/`."""

    @property
    def name(self) -> str: ...


class Discrete(nn.Module):
    """A network over discrete inputs (token ids), cut where gradients begin: a lookup, then all the rest."""

    def embed(self, batch: Tensor) -> Tensor:
        """Ids [batch, length] to vectors [batch, length, width]: a lookup and nothing else (no positions)."""
        raise NotImplementedError

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        """Class scores [batch, classes] of vectors; `batch` holds ids and only says which places are padding."""
        raise NotImplementedError

    def forward(self, batch: Tensor) -> Tensor:
        return self.classify(self.embed(batch), batch)


@dataclass(frozen=True)
class Provenance:
    """Where a subject comes from, as far as its file says."""

    path: str = ""
    format: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Subject:
    """A classifier (or other model) made uniform: canonical inputs in, `Outputs` out.

    `module` maps a canonical batch to raw class scores, [batch, classes]; adapters in `modalities` wrap
    whatever the file held (layout, range, softmax, one logit) so that nothing above them need care.
    Frozen: parameters have requires_grad False and the module is in eval mode. Methods that change
    weights ask for `.copy()`.
    """

    module: nn.Module
    modality: Modality
    classes: int
    input_shape: tuple[int, ...]  # of one canonical sample, e.g. (channels, height, width), values in [0, 1]
    capabilities: frozenset[Capability] = frozenset(
        {Capability.GRADIENT, Capability.FEATURES, Capability.WEIGHTS, Capability.QUERY}
    )
    provenance: Provenance = field(default_factory=Provenance)
    class_names: tuple[str, ...] = ()
    graph: Any = None  # a static operator graph (recipes.graphs.Graph) where the format has one

    def __post_init__(self) -> None:
        self.module.eval()
        self.module.requires_grad_(False)
        if self.classes < 2:
            raise InputError(f"the model has {self.classes} output class.", "A classifier needs at least two.")

    def outputs(self, batch: Tensor) -> Outputs:
        """Outputs of a canonical batch; differentiable where the subject has GRADIENT."""
        return Outputs(self.module(batch))

    def embed(self, batch: Tensor) -> Tensor:
        """The batch where gradients live: itself, or the vectors of its ids where inputs are discrete."""
        return self.module.embed(batch) if isinstance(self.module, Discrete) else batch

    def outputs_of(self, embedded: Tensor, batch: Tensor) -> Outputs:
        """Outputs of an embedded batch; `batch` is the discrete one that it stands for (padding is read off it)."""
        if isinstance(self.module, Discrete):
            return Outputs(self.module.classify(embedded, batch))
        return self.outputs(embedded)

    def layers(self) -> tuple[str, ...]:
        """Names of leaf modules that have run-time activations, in definition order."""
        return tuple(n for n, m in self.module.named_modules() if n and not any(True for _ in m.children()))

    @contextmanager
    def recording(self, *layers: str) -> Iterator[dict[str, Tensor]]:
        """Within the block, each pass stores the output of every named layer; no hook survives the block."""
        if Capability.FEATURES not in self.capabilities:
            raise NotApplicable("the subject does not expose its features.")
        modules = dict(self.module.named_modules())
        seen: dict[str, Tensor] = {}
        handles = []

        def hook(name: str) -> Any:
            def store(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    seen[name] = output

            return store

        try:
            for name in layers:
                if name not in modules:
                    raise InputError(f"the subject has no layer {name!r}.", "See Subject.layers().")
                handles.append(modules[name].register_forward_hook(hook(name)))
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def features(self, batch: Tensor, layer: str) -> Tensor:
        """Activations of one layer for a batch."""
        with self.recording(layer) as seen:
            self.module(batch)
            if layer not in seen:
                raise NotApplicable(f"layer {layer!r} gave no tensor.")
            return seen[layer]

    def fingerprint(self) -> str:
        """Digest of weights, buffers, mode, requires_grad and hooks: equal before and after any examination."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict(keep_vars=True).items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.requires_grad}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                          if tensor.dim() else repr(tensor.item()).encode())
        for name, module in self.module.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            digest.update(f"{name}{module.training}{hooks}".encode())
        return digest.hexdigest()

    def copy(self) -> Subject:
        """A deep copy whose weights may be changed."""
        return replace(self, module=copy.deepcopy(self.module))

    def to(self, device: torch.device) -> Subject:
        """The same subject on another device."""
        return replace(self, module=self.module.to(device))
