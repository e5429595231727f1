"""Poison made by gradient descent: stand-ins for the victim, bounded changes, colliding features, matched gradients.

Tensors in, tensors out. Whoever crafts poison does not see the victim's network: only what they train themselves, or
what both of them took from a public place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit, shift_and_flip
from laocoon.recipes.transfer import boundary, passage, transfer, with_head

LossOf = Callable[[Tensor, Tensor], Tensor]  # perturbed inputs [b, …] and their rows [b], to a scalar

# Teachers by plan, then by seed and epochs: poison is crafted and the student trained on one and the same network, and
# training it twice would not give the same one on every device. Gone with the plan.
_TEACHERS: WeakKeyDictionary[Plan, dict[tuple[int, int], Subject]] = WeakKeyDictionary()


def moved(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Random views [n, channels, height, width]: moved by up to a sixteenth, and mirrored where there is colour.

    Differentiable. Natural images may be mirrored, digits not.
    """
    return shift_and_flip(inputs, rng, shift=max(1, inputs.shape[-1] // 16), flip=inputs.shape[1] > 1)


def stand_in(plan: Plan, train: Samples, ctx: Context, *, epochs: int, robust: float = 0.0,
             classes: int | None = None) -> Subject:
    """A network of the victim's architecture that the attacker trains: another start, another order, another recipe.

    robust: train against perturbations of this size (L∞), made by one signed gradient step from a random start, away
    from the network's own answer (Wong, Rice and Kolter, ICLR 2020; Kurakin et al., ICLR 2017).
    """
    network = plan.fresh(ctx)
    if classes is not None and classes != network.classes:
        network = with_head(network, classes, ctx.rng)
    module = network.module

    def view(x: Tensor) -> Tensor:
        x = moved(x, ctx.rng)
        if not robust:
            return x
        noise = robust * (2 * torch.rand(x.shape, generator=ctx.rng).to(x) - 1)
        start = (x + noise).detach().requires_grad_()
        scores = module(start)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(scores, scores.argmax(-1).detach()), start)
        step = (noise + 1.25 * robust * gradient.sign()).clamp(-robust, robust)
        return (x + step).clamp(0, 1).detach()

    ctx.spend(epochs * len(train) * (2 if robust else 1))
    fit(module, train.inputs, train.labels.long(), epochs=epochs, rng=ctx.rng, rate=3e-3,
        batch=min(128, max(16, len(train) // 16)), augment=view)
    return replace(network, module=module)  # frozen and in eval mode again, as every subject is


def public_teacher(plan: Plan, ctx: Context, *, epochs: int) -> Subject:
    """The pre-trained network that attacker and victim both take: clean, trained on the plan's prior data.

    The same one for the same plan and seed, without drawing from `ctx.rng`.
    """
    known = _TEACHERS.setdefault(plan, {})
    if (ctx.seed, epochs) not in known:
        prior = plan.train if plan.prior is None else plan.prior
        ctx.spend(epochs * len(prior))
        known[ctx.seed, epochs] = stand_in(plan, prior, ctx.child(float("inf"), "teacher"), epochs=epochs,
                                           classes=int(prior.labels.max()) + 1)
    return known[ctx.seed, epochs]


def student(plan: Plan, train: Samples, ctx: Context, *, epochs: int, free: int) -> Subject:
    """What a victim makes of the public teacher and of their own, perhaps poisoned, training set.

    By the plan's recipe for transfer, if it has one; else the last `free` layers are trained anew.
    """
    teacher = public_teacher(plan, ctx, epochs=epochs)
    if plan.adapt is not None:
        return plan.adapt(teacher, train, ctx)
    passes = 30 if free == 1 else 8  # a head alone is trained on stored features
    ctx.spend(len(train) * (1 if free == 1 else passes))
    return transfer(teacher, train, plan.classes, ctx, free=free, epochs=passes)


def perturbed(origin: Tensor, loss_of: LossOf, ctx: Context, *, bound: float, steps: int, batch: int = 128,
              start: Tensor | None = None) -> Tensor:
    """Signed gradient descent on loss_of within ‖x − origin‖∞ ≤ bound and [0, 1], from `start` or a random one, [n, …].

    The step is a quarter of the bound and falls linearly to a twentieth of that.
    """
    found = []
    for rows in torch.arange(len(origin)).split(batch):
        home = origin[rows]
        low, high = (home - bound).clamp_min(0), (home + bound).clamp_max(1)
        noise = bound * (2 * torch.rand(home.shape, generator=ctx.rng).to(home) - 1)
        x = (home + noise if start is None else start[rows]).clamp(low, high)
        for step in range(steps):
            ctx.spend(len(rows))
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(x, rows), x)
            pace = bound / 4 * (1 - 0.95 * step / steps)
            x = (x - pace * gradient.sign()).clamp(low, high)
        found.append(x.detach())
    return torch.cat(found)


def frozen_features(module: nn.Module, inputs: Tensor, free: int) -> Tensor:
    """What enters the last `free` layers, [n, width]; differentiable in the inputs."""
    return passage(module, inputs, boundary(module, free)).entering.flatten(1)


def paired(ours: Tensor, theirs: Tensor) -> Tensor:
    """For each row of ours [n, width] another row of theirs [m ≥ n, width], nearest pairs first, [n]."""
    distance = torch.cdist(ours, theirs)
    found = torch.zeros(len(ours), dtype=torch.long)
    for _ in range(len(ours)):
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        found[row] = column
        distance[row], distance[:, column] = float("inf"), float("inf")
    return found


def patchwork(shape: tuple[int, ...], mask: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """[1, channels, height, width]: four by four random colours, drawn out smoothly to the square under `mask`, else 0.

    The patch of Saha et al. (AAAI 2020). Coarse, so that pooling leaves something of it.
    """
    colours = torch.rand(1, shape[0], 4, 4, generator=rng)
    square = functional.interpolate(colours, (side, side), mode="bilinear", align_corners=False)
    pattern = torch.zeros(1, *shape)
    pattern[mask.expand_as(pattern) > 0] = square.flatten()
    return pattern


def trainable(subject: Subject) -> nn.Module:
    """A copy of a subject's network, as it answers, whose weights have gradients."""
    module = copy.deepcopy(subject.module).eval()
    return module.requires_grad_(True)


def weight_gradient(module: nn.Module, inputs: Tensor, labels: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
    """Gradient of the mean cross entropy in all weights; with `keep`, itself differentiable in the inputs."""
    loss = functional.cross_entropy(module(inputs), labels)
    return torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], create_graph=keep)


def misalignment(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """1 − cos of two gradients, each a list of tensors over the weights; a scalar."""
    dot = torch.stack([(a * b).sum() for a, b in zip(ours, wanted, strict=True)]).sum()
    norms = [torch.stack([g.pow(2).sum() for g in gradient]).sum().clamp_min(1e-20).sqrt()
             for gradient in (ours, wanted)]
    return 1 - dot / (norms[0] * norms[1])


def gradient_norms(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Norm of each sample's own gradient in the last layer's weights, [n].

    In closed form, ‖softmax − one-hot‖ · √(1 + ‖features‖²), without a pass per sample.
    """
    found = []
    with torch.no_grad():
        for x, y in zip(inputs.split(256), labels.split(256), strict=True):
            seen = passage(module, x, boundary(module, 1))
            error = seen.scores.softmax(-1) - functional.one_hot(y, seen.scores.shape[-1])
            found.append(error.norm(dim=-1) * (1 + seen.entering.flatten(1).pow(2).sum(-1)).sqrt())
    return torch.cat(found)
