"""The trigger-inversion engine: all arms of a family in one batch.

For every arm a (a goal: where each class should be sent; or another aim, see `recipes/aims.py`) minimise

    E_x CE(f(T(x; θ_a)), goal_a(y)) + λ_a · size(θ_a) / scale

with Adam and projection, λ_a raised while the arm succeeds and lowered while it fails (the dynamic schedule of
Neural Cleanse, S&P 2019, made continuous and per arm), keeping the smallest trigger that succeeded. Arms never
interact, so searching many at once changes no result but the random draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import SearchedFamily
from laocoon.recipes.aims import Aim, ToClasses

# Places (height × width, all samples together) in one pass on a CPU: with more, activations no longer stay in caches.
# For a residual network of 12 M multiply-adds, 512 images of 32×32 take a third longer, each, than 64.
PLACES = 66_000

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Search:
    """Settings of a search; passes = arms × batch × steps."""

    steps: int = 100
    batch: int = 24  # samples per arm and step
    wanted: float = 0.95  # success that an arm must keep while it shrinks
    pressure: float = 1.12  # factor on λ per step
    start: float = 0.05  # first λ


@dataclass(frozen=True)
class Halving:
    """Fewer arms at each stage, the smallest so far: most of a search goes where it matters.

    After K-Arm (Shen et al., ICML 2021), with the deterministic rule of successive halving (Jamieson and Talwalkar,
    AISTATS 2016) in place of its bandit. Each stage starts the optimiser and λ anew from the triggers reached.
    """

    search: Search
    steps: tuple[int, ...]  # of each stage
    keep: tuple[int, ...]  # arms that go on after each stage but the last


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a search found, one row per arm.

    trigger: leaves [arms, …]; size [arms], in the family's unit; success [arms] on the samples it was fitted on;
    effective [arms]: size made comparable for arms that never succeeded, by the share that they reached, and capped
    where a trigger would replace the input.
    """

    trigger: dict[str, Tensor]
    size: Tensor
    success: Tensor
    effective: Tensor


def draw(pool: list[Tensor], batch: int, rng: torch.Generator) -> Tensor:
    """A batch of sample indices per arm, without replacement as far as the pool goes, [arms, batch]."""
    rows = []
    for indices in pool:
        n = len(indices)
        if n == 0:
            rows.append(torch.zeros(batch, dtype=torch.long))
            continue
        order = torch.cat([torch.randperm(n, generator=rng) for _ in range(-(-batch // n))])[:batch]
        rows.append(indices[order])
    return torch.stack(rows)


def invert(forward: Forward, family: SearchedFamily, destinations: Tensor | Aim, samples: Samples, search: Search,
           ctx: Context, *, start: dict[str, Tensor] | None = None,
           note: Callable[[float, Tensor], None] | None = None) -> Recovered:
    """Search every arm. destinations: long [arms, classes], or an aim; samples on the device of the model.

    Memory is bounded by ctx.batch: arms are worked in groups. Raises BudgetSpent before a pass that does not fit.
    """
    aim = ToClasses(destinations) if isinstance(destinations, Tensor) else destinations
    arms, rng = len(aim), ctx.rng
    pool = aim.to(torch.device("cpu")).pools(samples.labels.cpu())
    theta = start if start is not None else family.blank(samples.inputs, arms, rng=rng)
    group = max(1, ctx.batch // search.batch)
    parts = []
    for number, members in enumerate(torch.arange(arms).split(group)):
        local = {k: v[members].clone() for k, v in theta.items()}

        def tell(share: float, success: Tensor, done: float = number * group / arms,
                 weight: float = members.numel() / arms) -> None:
            if note is not None:
                note(done + share * weight, success)

        own = [pool[int(m)] for m in members]
        parts.append(_search(forward, family, aim.select(members), samples, own, search, ctx, local, tell))
    leaves = {k: torch.cat([p.trigger[k] for p in parts]) for k in parts[0].trigger}
    return Recovered(leaves, *(torch.cat([getattr(p, n) for p in parts]) for n in ("size", "success", "effective")))


@dataclass(frozen=True, eq=False)
class Halved:
    """whole: a row per arm, of the last stage that it was in; last: the rows of the arms `members` [k] that stayed."""

    whole: Recovered
    last: Recovered
    members: Tensor


def halve(forward: Forward, family: SearchedFamily, destinations: Tensor, samples: Samples, halving: Halving,
          ctx: Context, *, note: Callable[[float, Tensor], None] | None = None) -> Halved:
    """Search every arm briefly, the smallest on."""
    counts = [len(destinations), *halving.keep]
    costs = [steps * count for steps, count in zip(halving.steps, counts, strict=True)]

    def portion(stage: int) -> Callable[[float, Tensor], None]:
        def tell(share: float, success: Tensor) -> None:
            if note is not None:
                note((sum(costs[:stage]) + share * costs[stage]) / sum(costs), success)

        return tell

    members = torch.arange(len(destinations))
    search = replace(halving.search, steps=halving.steps[0])
    whole = last = invert(forward, family, destinations, samples, search, ctx, note=portion(0))
    for stage, keep in enumerate(halving.keep, 1):
        rows = last.effective.cpu().argsort()[:keep].sort().values
        members = members[rows]
        start = {k: v.detach() for k, v in family.select(last.trigger, rows.to(last.size.device)).items()}
        search = replace(halving.search, steps=halving.steps[stage])
        last = invert(forward, family, destinations[members], samples, search, ctx, start=start, note=portion(stage))
        whole = _updated(whole, last, members)
    return Halved(whole, last, members)


def _updated(whole: Recovered, found: Recovered, members: Tensor) -> Recovered:
    """The rows of `members` replaced."""
    index = members.to(whole.size.device)

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.detach().clone().index_copy(0, index, new.detach())

    return Recovered({k: put(v, found.trigger[k]) for k, v in whole.trigger.items()}, put(whole.size, found.size),
                     put(whole.success, found.success), put(whole.effective, found.effective))


def _search(forward: Forward, family: SearchedFamily, aim: Aim, samples: Samples, pool: list[Tensor],
            search: Search, ctx: Context, theta: dict[str, Tensor], note: Callable[[float, Tensor], None]) -> Recovered:
    device = samples.inputs.device
    arms = len(aim)
    aim = aim.to(device)
    for leaf in theta.values():
        leaf.requires_grad_(True)
    optimiser = torch.optim.Adam([{"params": [leaf], "lr": family.rate} for leaf in theta.values()], betas=(0.5, 0.9))
    weight = torch.full((arms,), search.start, device=device)
    smooth = torch.zeros(arms, device=device)
    best = {k: v.detach().clone() for k, v in theta.items()}
    best_size = torch.full((arms,), float("inf"), device=device)
    reached = torch.zeros(arms, device=device)
    parts, bank = _parts(arms, search.batch, samples.inputs), samples.inputs
    if bank.dim() == 4:  # channels last from the start, so that no step has to turn its samples
        bank = bank.contiguous(memory_format=torch.channels_last)
    for step in range(search.steps):
        index = draw(pool, search.batch, ctx.rng).to(device)
        x, y = _taken(bank, index), samples.labels[index]
        ctx.spend(index.numel())
        optimiser.zero_grad(set_to_none=True)
        done: list[tuple[Tensor, Tensor]] = []
        for part in parts:
            here = theta if len(parts) == 1 else {k: leaf[part] for k, leaf in theta.items()}
            stamped = family.stamp(x[part], here).flatten(0, 1)
            said = forward(stamped.contiguous(memory_format=torch.channels_last) if stamped.dim() == 4 else stamped)
            said, own = said.reshape(*y[part].shape, *said.shape[1:]), aim.select(part)
            size = family.size(here, x[part])
            (own.losses(said, y[part]) + weight[part] * size / family.scale).sum().backward()
            done.append((own.hits(said.detach(), y[part]), size.detach()))
        hits, size = (torch.cat(each) for each in zip(*done, strict=True))
        with torch.no_grad():
            success = hits.float().mean(1)
            smooth = success if step == 0 else 0.6 * smooth + 0.4 * success
            better = (success >= search.wanted) & (smooth >= search.wanted - 0.03) & (size < best_size)
            reached = torch.maximum(reached, smooth)
            for k, leaf in theta.items():
                shape = (arms,) + (1,) * (leaf.dim() - 1)
                best[k] = torch.where(better.view(shape), leaf.detach(), best[k])
            best_size = torch.where(better, size, best_size)
            weight = torch.where(smooth >= search.wanted, weight * search.pressure,
                                 weight / search.pressure**1.5).clamp(1e-4, 1e4)
        optimiser.step()
        with torch.no_grad():
            family.project(theta)
        if step % 10 == 9:
            note((step + 1) / search.steps, success)
    with torch.no_grad():
        failed = best_size.isinf()
        final = {k: torch.where(failed.view((arms,) + (1,) * (v.dim() - 1)), v.detach(), best[k])
                 for k, v in theta.items()}
        index = draw(pool, search.batch, ctx.rng).to(device)
        size = family.size(final, samples.inputs[index])
        success = success_rate(forward, family, final, aim, samples, pool, ctx)
        effective = torch.where(failed, size * (search.wanted / success.clamp_min(0.02)).clamp_min(1.0) ** 2, size)
        effective = effective.clamp_max(family.largest(samples.inputs))
    return Recovered(final, size, success, effective)


def _parts(arms: int, batch: int, inputs: Tensor) -> list[slice]:
    """The arms of one step in the portions that are passed at once."""
    if inputs.device.type != "cpu" or inputs.dim() != 4:
        return [slice(0, arms)]
    most = max(1, PLACES // (batch * inputs.shape[-1] * inputs.shape[-2]))
    equal = -(-arms // -(-arms // most))  # no small rest
    return [slice(i, min(i + equal, arms)) for i in range(0, arms, equal)]


def _taken(bank: Tensor, index: Tensor) -> Tensor:
    """Samples [arms, batch, …] in the memory layout of the bank."""
    if bank.dim() != 4:
        return bank[index]
    return bank.permute(0, 2, 3, 1)[index].permute(0, 1, 4, 2, 3)


@torch.no_grad()
def success_rate(forward: Forward, family: SearchedFamily, trigger: dict[str, Tensor], aim: Aim,
                 samples: Samples, pool: list[Tensor], ctx: Context, limit: int = 64) -> Tensor:
    """Share of an arm's samples (at most `limit`) that its trigger sends where the goal says, [arms]."""
    device, arms = samples.inputs.device, len(aim)
    count = min(limit, max(len(p) for p in pool))
    index = draw(pool, max(count, 1), ctx.rng).to(device)
    result = []
    group = max(1, ctx.batch // index.shape[1])
    for members in torch.arange(arms, device=device).split(group):
        x, y = samples.inputs[index[members]], samples.labels[index[members]]
        ctx.spend(y.numel(), backward=False)
        stamped = family.stamp(x, family.select(trigger, members))
        said = forward(stamped.flatten(0, 1))
        result.append(aim.select(members).hits(said.reshape(*y.shape, *said.shape[1:]), y).float().mean(1))
    return torch.cat(result)
