"""An ONNX graph as a torch module that is differentiable, takes any batch size and shows its layers.

Written here, not taken from the package onnx2torch: that has had no release since 2024, bakes the batch size in, and
knows neither quantise-dequantise pairs nor the newer operator sets. What this interpreter does:

* Everything that can be worked out when the graph is read is: constants are folded, attributes decoded, int8 weights
  dequantised. A node with constant weights becomes a layer of torch under the name of its initialiser.
* Values that depend on the shape of the input only (Shape, Gather, Concat, … before a Reshape) are computed once for
  each input shape, on the CPU, and remembered; later passes run only the steps that see data.
* Half precision is raised to float32, so that gradients do not vanish.

`forward` is a loop over resolved steps; there is no code generation, so nothing in a file becomes program text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

CACHED_SHAPES = 16


@dataclass(frozen=True)
class Step:
    """One operator: where it reads and writes. `owner` and `key` name a layer, looked up at run time so that a
    layer that is replaced from outside takes effect; otherwise `call` is a plain function."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    single: bool
    host: bool
    call: Callable[..., Any] | None = None
    owner: nn.Module | None = None
    key: str = ""
    path: str = ""
    op: str = ""


@dataclass(frozen=True)
class Planned:
    step: Step
    dead: tuple[int, ...]


class Conditional(nn.Module):
    """`If`: the branch that the condition selects, for the whole batch, as the graph says."""

    def __init__(self, then: nn.Module, otherwise: nn.Module, then_inputs: tuple[int, ...],
                 otherwise_inputs: tuple[int, ...]) -> None:
        super().__init__()
        self.then_branch, self.else_branch = then, otherwise
        self.then_inputs, self.else_inputs = then_inputs, otherwise_inputs

    def forward(self, condition: Tensor, *captured: Any) -> Any:
        if bool(condition.reshape(-1)[0]):
            return self.then_branch(*(captured[i] for i in self.then_inputs))
        return self.else_branch(*(captured[i] for i in self.else_inputs))


class GraphModule(nn.Module):
    """Inputs in the order of the graph's; returns one tensor, or a tuple where the graph has several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.base: list[Any] = []
        self.input_slots: tuple[int, ...] = ()
        self.output_slots: tuple[int, ...] = ()
        self.output_names: tuple[str, ...] = ()
        self.cacheable = True
        self.origins: dict[str, str] = {}  # key in state_dict() -> name of the initialiser in the file
        self.steps: tuple[Step, ...] = ()
        self.full: tuple[Planned, ...] = ()
        self.lean: tuple[Planned, ...] = ()
        self.kept: tuple[int, ...] = ()  # slots worth remembering for an input shape
        self.seen: OrderedDict[Any, list[Any]] = OrderedDict()

    def finish(self, steps: Sequence[Step]) -> None:
        """Work out when each value dies, for passes with and without remembered shape values."""
        self.steps = tuple(steps)
        self.seen.clear()
        self.cacheable = self.cacheable and any(step.host for step in steps)
        held = {*self.input_slots, *self.output_slots}
        host_made = {slot for step in steps if step.host for slot in step.outputs}
        used_later = {slot for step in steps if not step.host for slot in step.inputs} | set(self.output_slots)
        self.kept = tuple(sorted(host_made & used_later))
        constant = {i for i, v in enumerate(self.base) if v is not None}
        self.full = _planned(steps, held | host_made | constant)
        self.lean = _planned([s for s in steps if not s.host], held | host_made | constant)

    def forward(self, *inputs: Any) -> Any:
        key = None
        remembered = None
        if self.cacheable and isinstance(inputs[0], Tensor):  # not while torch.fx traces
            key = tuple((v.shape, v.device) for v in inputs)
            remembered = self.seen.get(key)
        values = (self.base if remembered is None else remembered).copy()
        for slot, value in zip(self.input_slots, inputs, strict=True):
            values[slot] = value
        for planned in self.full if remembered is None else self.lean:
            step = planned.step
            call: Any = step.call if step.owner is None else step.owner._modules[step.key]
            result = call(*[values[i] for i in step.inputs])
            if step.single:
                values[step.outputs[0]] = result
            else:
                for slot, item in zip(step.outputs, result, strict=False):
                    values[slot] = item
            for slot in planned.dead:
                values[slot] = None
        if key is not None and remembered is None:
            kept = self.base.copy()
            for slot in self.kept:
                kept[slot] = values[slot]
            self.seen[key] = kept
            while len(self.seen) > CACHED_SHAPES:
                self.seen.popitem(last=False)
        outputs = tuple(values[slot] for slot in self.output_slots)
        return outputs[0] if len(outputs) == 1 else outputs

    def settle(self, few: Tensor, more: Tensor) -> None:
        """Fix what does not depend on the batch: shape values that agree for two batch sizes become constants, and a
        Reshape whose target differs in one place only gets -1 there. Later inputs must have the same shape."""
        if not self.cacheable:
            return
        told = []
        for x in (few, more):
            self.seen.clear()
            with torch.no_grad():
                self._run_host(x, values := self.base.copy())
            told.append(values)
        base, steps = list(self.base), []
        made = {slot for step in self.steps if step.host for slot in step.outputs}
        moved = {slot for step in self.steps if step.call is to_device_of for slot in step.outputs}
        for slot in made - moved:
            a, b = told[0][slot], told[1][slot]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b):
                base[slot] = a
        for step in self.steps:
            if step.op == "Reshape" and not step.host and step.inputs[1] in made and base[step.inputs[1]] is None:
                a, b = (list(values[step.outputs[0]].shape) for values in told)  # what -1 and 0 came to
                apart = [i for i, (p, q) in enumerate(zip(a, b, strict=False)) if p != q]
                if len(a) == len(b) and len(apart) == 1:
                    a[apart[0]] = -1
                    base.append(a)
                    step = replace(step, inputs=(step.inputs[0], len(base) - 1))
            if not (step.host and all(base[slot] is not None for slot in step.outputs)):
                steps.append(step)
        needed = set(self.output_slots)
        kept = []
        for step in reversed(steps):
            if not step.host or needed.intersection(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        self.base = base
        self.finish(kept[::-1])

    def _run_host(self, x: Tensor, values: list[Any]) -> None:
        """A pass that keeps every value."""
        values[self.input_slots[0]] = x
        for step in self.steps:
            call: Any = step.call if step.owner is None else step.owner._modules[step.key]
            result = call(*[values[i] for i in step.inputs])
            for slot, item in zip(step.outputs, (result,) if step.single else result, strict=False):
                values[slot] = item

    def links(self) -> tuple[tuple[str, str], ...]:
        """Pairs of layer names (producer, consumer) where the consumer alone reads what the producer writes."""
        steps = [planned.step for planned in self.full]
        readers: dict[int, list[Step]] = {}
        for step in steps:
            for slot in set(step.inputs):
                readers.setdefault(slot, []).append(step)
        found = []
        for step in steps:
            if step.path and step.single and step.outputs[0] not in self.output_slots:
                users = readers.get(step.outputs[0], [])
                if len(users) == 1 and users[0].path:
                    found.append((step.path, users[0].path))
        return tuple(found)


def _planned(steps: Sequence[Step], never: set[int]) -> tuple[Planned, ...]:
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        for slot in (*step.inputs, *step.outputs):
            last[slot] = i
    dying: dict[int, list[int]] = {}
    for slot, i in last.items():
        if slot not in never:
            dying.setdefault(i, []).append(slot)
    return tuple(Planned(step, tuple(dying.get(i, ()))) for i, step in enumerate(steps))


def to_device_of(value: Tensor, like: Any) -> Tensor:
    """A shape value where the data is."""
    return value.to(like.device) if isinstance(like, Tensor) else value


__all__ = ["Conditional", "GraphModule", "Step", "to_device_of"]
