"""What the checks see a method by: what it runs, what it leaves behind, and a network that breaks under it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from laocoon.core.subject import Subject
from laocoon.testing.networks import entry


class PlannedFailure(RuntimeError):
    """Raised by a network that was told to break."""


@dataclass
class Meter:
    """Sample-level passes that a network really made; a forward is a third of one, a backward two thirds."""

    passes: float = 0.0
    calls: int = 0


@contextmanager
def metered(subject: Subject) -> Iterator[Meter]:
    """Count what goes through the subject (and through its copies) within the block."""
    meter = Meter()

    def forward(_: nn.Module, __: object, output: Tensor) -> None:
        meter.calls += 1
        meter.passes += len(output) / 3
        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    def backward(gradient: Tensor) -> None:
        meter.passes += len(gradient) * 2 / 3

    handle = entry(subject.module).register_forward_hook(forward)
    try:
        yield meter
    finally:
        handle.remove()


@contextmanager
def breaking(subject: Subject, at: int) -> Iterator[None]:
    """Within the block every layer fails from the `at`-th call of the entry layer on."""
    calls = 0
    first = entry(subject.module)

    def count(_: nn.Module, __: object) -> None:  # copies of a layer keep its hooks: they count, and break, as well
        nonlocal calls
        calls += 1
        fail(_, __)

    def fail(_: nn.Module, __: object) -> None:
        if calls >= at:
            raise PlannedFailure("the network broke, as planned")

    layers = [m for m in subject.module.modules() if not any(True for _ in m.children())]
    handles = [layer.register_forward_pre_hook(count if layer is first else fail) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def surroundings() -> dict[str, object]:
    """Global state that a method must not touch."""
    return {
        "torch's random state": torch.random.get_rng_state().sum().item(),
        "numpy's random state": int(np.random.get_state()[1].sum()),  # type: ignore[index,union-attr]
        "Python's random state": hash(random.getstate()),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


@contextmanager
def stirred(seed: int) -> Iterator[None]:
    """Within the block the global generators are in another state: a method that draws from them will show it.

    After it they are as before, and so is grad mode, whatever the method did to them.
    """
    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.random.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def traces(subject: Subject) -> dict[str, object]:
    """Everything about a subject that an examination must leave as it was."""
    state = {"weights, buffers, modes, hooks": subject.fingerprint()}
    gradients = [name for name, p in subject.module.named_parameters() if p.grad is not None]
    attributes = sorted(f"{name}.{key}" for name, m in subject.module.named_modules() for key in vars(m))
    return {**state, "gradients left on parameters": gradients, "attributes of layers": attributes,
            "classes of layers": [type(m).__name__ for m in subject.module.modules()]}
