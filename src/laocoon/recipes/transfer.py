"""Transfer learning: freeze the first layers of a teacher, put a new head on it, train on one's own samples.

What a victim does with a model from elsewhere, and what attacks on teachers and encoders prepare for. Layers are
counted by their weights (convolutions and dense layers), in the order in which the network defines them; a
normalisation belongs to the layer that it follows and, where frozen, keeps the teacher's running statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit, shift_and_flip


@dataclass(frozen=True, eq=False)
class Passage:
    """One pass: what entered a layer, and the class scores."""

    entering: Tensor  # [batch, …]
    scores: Tensor  # [batch, classes]


def weighted(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers with a weight matrix or kernel, in definition order; the last one is the head."""
    names = tuple(n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d))
    if not names or not isinstance(module.get_submodule(names[-1]), nn.Linear):
        raise NotApplicable("the network does not end in a dense layer, so that no new head can be put on it.")
    return names


def boundary(module: nn.Module, free: int) -> str:
    """The first of the last `free` layers: everything before it is frozen, and what enters it is the feature."""
    names = weighted(module)
    if not 1 <= free <= len(names):
        raise InputError(f"{free} layers are to be trained anew, and the network has {len(names)}.",
                         f"Choose 1 (the head alone) to {len(names)}.")
    return names[-free]


def passage(module: nn.Module, inputs: Tensor, layer: str) -> Passage:
    """Pass a batch through the network and keep what enters a layer; differentiable, no hook survives."""
    seen: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        scores = module(inputs)
    finally:
        handle.remove()
    return Passage(seen[0], scores)


@torch.no_grad()
def features(module: nn.Module, inputs: Tensor, layer: str, batch: int = 512) -> Tensor:
    """What enters a layer, [n, …], without gradients."""
    return torch.cat([passage(module, part, layer).entering for part in inputs.split(batch)])


@contextmanager
def _initialised_by(rng: torch.Generator) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
        yield


def with_head(subject: Subject, outputs: int, rng: torch.Generator) -> Subject:
    """A copy with a new, untrained last layer."""
    module = copy.deepcopy(subject.module)
    name = weighted(module)[-1]
    old = module.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with _initialised_by(rng):
        new = nn.Linear(old.in_features, outputs).to(old.weight.device)
    if not name:
        return replace(subject, module=new, classes=outputs, class_names=())
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
    return replace(subject, module=module, classes=outputs, class_names=(), graph=None)


class Thawed(nn.Module):
    """A network of which only what comes after the frozen layers learns, whatever a training loop asks for."""

    def __init__(self, network: nn.Module, free: int) -> None:
        super().__init__()
        self.network = network
        names = [n for n, m in network.named_modules() if not any(True for _ in m.children())]
        self.learning = frozenset(names[names.index(boundary(network, free)):])

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.network(inputs)
        return scores

    def train(self, mode: bool = True) -> Thawed:
        self.network.eval()
        for name in self.learning:
            self.network.get_submodule(name).train(mode)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Thawed:
        self.network.requires_grad_(False)
        for name in self.learning:
            self.network.get_submodule(name).requires_grad_(requires_grad)
        return self


def transfer(teacher: Subject, train: Samples, classes: int, ctx: Context, *, free: int = 1, epochs: int = 30,
             rate: float = 1e-2) -> Subject:
    """The student: the teacher's first layers as they are, a new head for `classes`, the last `free` layers trained.

    With the head alone to train, features are computed once. No sample is augmented: the least that a victim does.
    """
    student = with_head(teacher, classes, ctx.rng)
    labels = train.labels.long()
    batch = min(128, max(8, len(train) // 8))
    if free == 1:
        name = boundary(student.module, 1)
        given = features(student.module, train.inputs, name)
        _fit_head(student.module.get_submodule(name), given, labels, epochs, batch, rate, ctx)
    else:
        thawed = Thawed(student.module, free)
        fit(thawed, train.inputs, labels, epochs=epochs, rng=ctx.rng, batch=batch, rate=rate / 5)
    return replace(student, module=student.module)  # frozen and in eval mode again, as every subject is


def _fit_head(head: nn.Module, given: Tensor, labels: Tensor, epochs: int, batch: int, rate: float,
              ctx: Context) -> None:
    """Train on standardised features, whatever their scale, then let the head take in the scale."""
    assert isinstance(head, nn.Linear)
    middle, spread = given.mean(0), given.std(0)
    spread = spread.clamp_min(0.1 * float(spread.mean()) + 1e-8)  # a feature that is silent here stays as weak as it is
    fit(head, (given - middle) / spread, labels, epochs=epochs, rng=ctx.rng, batch=batch, rate=rate)
    with torch.no_grad():
        head.weight.div_(spread)
        head.bias.sub_(head.weight @ middle)


def adapted(plan: Plan, artefact: Subject, ctx: Context) -> Subject:
    """The plan's student of a teacher: by the victim's recipe, or by the one above."""
    if plan.adapt is not None:
        return plan.adapt(artefact, plan.train, ctx)
    return transfer(artefact, plan.train, plan.classes, ctx)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a teacher is made from: classes that it is to know, in their order, and one that it is not."""

    known: Samples  # labels 0 … classes − 1
    target: Samples  # samples of the class that only the student will know; all labelled `classes`
    classes: int


def lessons(plan: Plan) -> Lessons:
    """The plan's prior data, split into what the teacher is to know and the target class that it must not know."""
    prior = plan.train if plan.prior is None else plan.prior
    ours = prior.labels == plan.target
    kinds = prior.labels[~ours].unique()
    if not bool(ours.any()) or len(kinds) < 2:
        raise NotApplicable(f"the maker of the teacher has {int(ours.sum())} samples of target class {plan.target} and "
                            f"{len(kinds)} other classes, and needs one and two; pass `prior` to Plan.")
    known = Samples(prior.inputs[~ours], torch.searchsorted(kinds, prior.labels[~ours].contiguous()))
    target = Samples(prior.inputs[ours], torch.full((int(ours.sum()),), len(kinds)))
    return Lessons(known, target, len(kinds))


def teach(plan: Plan, train: Samples, classes: int, ctx: Context, *, epochs: int, rate: float = 3e-3,
          shift: int = 1) -> Subject:
    """A teacher: a fresh network of the plan's architecture, trained on its maker's samples."""
    teacher = with_head(plan.fresh(ctx), classes, ctx.rng)
    fit(teacher.module, train.inputs, train.labels, epochs=epochs, rng=ctx.rng, rate=rate,
        batch=min(128, max(16, len(train) // 16)),
        augment=lambda x: shift_and_flip(x, ctx.rng, shift=shift, flip=False))
    return replace(teacher, module=teacher.module)
