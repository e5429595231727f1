"""Judge a recovered trigger on samples it was not fitted on, against natural controls."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal, CollapseGoal, Goal
from laocoon.core.report import Evidence
from laocoon.core.subject import Subject
from laocoon.recipes.conformal import binomial_interval

MOST = 200  # held-out samples that a trigger is judged on


def _hits(subject: Subject, stamped: Tensor, goal: Goal, labels: Tensor, ctx: Context) -> Tensor:
    """Which stamped samples, of these clean labels, are what the attacker wants."""
    parts = []
    for x, y in zip(stamped.split(ctx.batch), labels.split(ctx.batch), strict=True):
        ctx.spend(len(x), backward=False)
        parts.append(goal.success(subject.outputs(x), y))
    return torch.cat(parts)


def _jpeg(images: Tensor, quality: int = 75) -> Tensor:
    """Compress and decompress, [n, 1 or 3, h, w] in [0, 1]."""
    result = []
    for image in (images.clamp(0, 1) * 255).round().byte().cpu().numpy():
        picture = Pillow.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        back = np.asarray(Pillow.open(buffer))
        result.append(torch.as_tensor((back[None] if back.ndim == 2 else back.transpose(2, 0, 1)).copy()))
    return torch.stack(result).to(images) / 255


def _unlearning(subject: Subject, candidate: Candidate, fit: Samples, held: Samples, ctx: Context,
                steps: int = 12) -> float:
    """Success left on held-out samples after a few steps of training a copy to answer stamped samples as clean ones:
    with their labels or, where there are none, with the embeddings that they had."""
    patient = subject.copy()
    patient.module.requires_grad_(True)
    optimiser = torch.optim.Adam(patient.module.parameters(), lr=3e-4)
    for _ in range(steps):
        index = torch.randperm(len(fit), generator=ctx.rng)[:32].to(fit.inputs.device)
        x, y = fit.inputs[index], fit.labels[index]
        ctx.spend(2 * len(x))
        said = patient.module(torch.cat([candidate.stamp(x), x]))
        if isinstance(candidate.goal, CollapseGoal):
            loss = _away(said, subject.outputs(x).logits, candidate.goal)
        else:
            loss = functional.cross_entropy(said, torch.cat([y, y]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    patient.module.requires_grad_(False)
    return float(_hits(patient, candidate.stamp(held.inputs), candidate.goal, held.labels, ctx).float().mean())


def _away(said: Tensor, clean: Tensor, goal: CollapseGoal) -> Tensor:
    """How far the embeddings of stamped and clean samples [2·batch, width] are from what the clean ones were."""
    centre = torch.tensor(goal.centre).to(clean)
    return (1 - functional.cosine_similarity(said - centre, torch.cat([clean, clean]) - centre, dim=-1)).mean()


@torch.no_grad()
def _natural(subject: Subject, candidate: Candidate, others: Sequence[Candidate], held: Samples, ctx: Context) -> float:
    """Mean success of the same search towards the other goals, at the size of the candidate."""
    rates = []
    for other in others:
        applies = other.goal.applies(held.labels)
        if not bool(applies.any()):
            continue
        x, y = held.inputs[applies][:MOST], held.labels[applies][:MOST]
        factor = torch.tensor([min(1.0, candidate.size / max(other.size, 1e-9))], device=x.device)
        if hasattr(other.family, "shrink"):
            weak = other.family.shrink(other.trigger, factor)
        elif other.size <= candidate.size:
            weak = other.trigger
        else:
            continue  # larger, and its family (of tokens, for instance) has no weaker form
        hits = _hits(subject, other.family.stamp(x, weak)[0], other.goal, y, ctx)
        rates.append(float(hits.float().mean()))
    return sum(rates) / len(rates) if rates else float("nan")


def described(subject: Subject, candidate: Candidate) -> str:
    """The trigger in the words of its family (`describe`), where it has some."""
    say = getattr(candidate.family, "describe", None)
    return str(say(candidate.trigger, subject.modality)) if say is not None else ""


def verify(subject: Subject, candidate: Candidate, siblings: Sequence[Candidate], fit: Samples, held: Samples,
           ctx: Context) -> Evidence:
    """Held-out success with its interval, the natural control, and what survives: shift, JPEG, another background."""
    goal = candidate.goal
    applies = goal.applies(held.labels)
    judged = held if bool(applies.any()) else fit
    applies = goal.applies(judged.labels)
    x, y = judged.inputs[applies][:MOST], judged.labels[applies][:MOST]
    checks: dict[str, float] = {}
    with torch.no_grad():
        stamped = candidate.stamp(x)
        hits = _hits(subject, stamped, goal, y, ctx)
        rate = lambda s: float(_hits(subject, s, goal, y, ctx).float().mean())  # noqa: E731
        checks["before the trigger"] = rate(x)
        if x.dim() == 4:
            checks["shifted by 1 px"] = rate(torch.roll(stamped, (1, 1), (2, 3)))
            if x.shape[1] in (1, 3):
                checks["after JPEG 75"] = rate(_jpeg(stamped))
            noise = torch.rand(x.shape, generator=ctx.rng).to(x)
            checks["on noise instead of an image"] = rate(candidate.stamp(noise))
    if Capability.WEIGHTS in subject.capabilities:  # a black box has nothing to train
        checks["after brief unlearning"] = _unlearning(subject, candidate, fit, Samples(x, y), ctx)
    others = [c for c in siblings if c is not candidate and c.family.name == candidate.family.name
              and c.method == candidate.method and c.goal != goal]
    found, tried = int(hits.sum()), len(hits)
    low, high = binomial_interval(found, tried)
    targets = goal.targets if isinstance(goal, ClassGoal) else ()
    return Evidence(goal=goal.describe(), target_classes=targets if len(targets) == 1 else (),
                    family=candidate.family.name, method=candidate.method, size=candidate.size,
                    unit=candidate.family.unit, success=found / tried, low=low, high=high, samples=tried,
                    natural_control=_natural(subject, candidate, others, held, ctx), checks=checks,
                    shown=described(subject, candidate))
