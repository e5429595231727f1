"""What can be learned of a model by asking alone: answers, margins, and patches found by random search.

Where the model gives scores, an answer is their log-softmax; where it gives labels only, it is one for the label and
zero elsewhere, so that a mean margin is a share of samples. Everything is drawn once for all classes, and samples are
put in an order of their own first: neither their order nor the numbering of classes matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from laocoon.core.card import Capability
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.margins import margins

Answers = Float[Tensor, "rows classes"]
Ask = Callable[[Tensor], Tensor]  # samples [rows, …] to answers [rows, classes]
CONFIDENT = 12.0  # a margin of log-probabilities past which being surer says nothing more


def labels_only(subject: Subject) -> bool:
    """Whether the model answers with labels alone."""
    return Capability.HARD_LABEL in subject.capabilities


@torch.no_grad()
def answers(subject: Subject, batch: Tensor, ctx: Context) -> Answers:
    """Answers to a batch, each paid for before it is asked."""
    found = []
    for part in batch.split(ctx.batch):
        ctx.spend(len(part), backward=False)
        logits = subject.outputs(part).logits
        if labels_only(subject):
            found.append(functional.one_hot(logits.argmax(-1), logits.shape[1]).to(logits))
        else:
            found.append(logits.log_softmax(-1))
    return torch.cat(found)


def asking(subject: Subject, ctx: Context) -> Ask:
    """`answers` of one subject, as a function of the batch."""
    return lambda batch: answers(subject, batch, ctx)


def shuffled(samples: Samples, rng: torch.Generator) -> Samples:
    """The samples in a random order that does not depend on the one they came in."""
    flat = samples.inputs.flatten(1).double().cpu()
    weights = torch.rand(flat.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = (flat @ weights).argsort()[torch.randperm(len(flat), generator=rng)].to(samples.labels.device)
    return Samples(samples.inputs[order], samples.labels[order], samples.labelled)


def bystanders(samples: Samples, classes: int, count: int) -> Int[Tensor, "classes count"]:
    """For every class the first `count` samples that are not of it, from the beginning again where there are fewer."""
    rows = []
    for target in range(classes):
        others = (samples.labels != target).nonzero().flatten()
        others = others if len(others) else torch.arange(len(samples), device=samples.labels.device)
        rows.append(others.repeat(-(-count // len(others)))[:count])
    return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Squares:
    """Square patches of one side, an arm each: upper left corners [arms, 2], contents [arms, channels, side, side]."""

    corner: Int[Tensor, "arms 2"]
    content: Float[Tensor, "arms channels side side"]

    def leaves(self, height: int, width: int) -> dict[str, Tensor]:
        """As the trigger of the family `patch`: mask [arms, 1, height, width], pattern [arms, channels, …]."""
        arms, channels, side, _ = self.content.shape
        mask = torch.zeros(arms, 1, height, width, device=self.content.device)
        pattern = torch.zeros(arms, channels, height, width, device=self.content.device)
        for arm, (top, left) in enumerate(self.corner.tolist()):
            mask[arm, :, top:top + side, left:left + side] = 1
            pattern[arm, :, top:top + side, left:left + side] = self.content[arm]
        return {"mask": mask, "pattern": pattern}

    def chosen(self, arms: Tensor) -> Squares:
        return Squares(self.corner[arms], self.content[arms])

    def where(self, better: Tensor, other: Squares) -> Squares:
        """The other's arms where it is better, this one's elsewhere."""
        return Squares(torch.where(better[:, None], other.corner, self.corner),
                       torch.where(better[:, None, None, None], other.content, self.content))


def pasted(batch: Tensor, squares: Squares) -> Tensor:
    """Samples [batch, …] or [arms, batch, …] with each arm's patch, [arms, batch, …]."""
    leaves = squares.leaves(batch.shape[-2], batch.shape[-1])
    mask, pattern = leaves["mask"][:, None], leaves["pattern"][:, None]
    return batch * (1 - mask) + mask * pattern


def drawn(count: int, side: int, like: Tensor, rng: torch.Generator) -> Squares:
    """Patches anywhere, of the corners of the colour cube, pixel by pixel."""
    _, channels, height, width = like.shape
    corner = torch.stack([torch.randint(0, size - side + 1, (count,), generator=rng) for size in (height, width)], 1)
    content = torch.rand(count, channels, side, side, generator=rng).round()
    return Squares(corner.to(like.device), content.to(like))


def changed(squares: Squares, left: float, like: Tensor, rng: torch.Generator) -> Squares:
    """The same change to every arm: a move, or new colours in a window; both shrink as `left` falls from 1 to 0."""
    _, channels, height, width = like.shape
    side = squares.content.shape[-1]
    corner, content = squares.corner.clone(), squares.content.clone()
    if float(torch.rand((), generator=rng)) < 0.35:
        if float(torch.rand((), generator=rng)) < 0.3 * left:
            corner[:] = drawn(1, side, like, rng).corner
        else:
            reach = max(1, round(left * max(height, width) / 4))
            corner += torch.randint(-reach, reach + 1, (1, 2), generator=rng).to(corner)
            corner = corner.clamp_min(0).minimum(torch.tensor([height - side, width - side]).to(corner))
        return Squares(corner, content)
    window = max(1, round(0.6 * left * side))
    top, low = (int(torch.randint(0, side - window + 1, (), generator=rng)) for _ in range(2))
    flat = float(torch.rand((), generator=rng)) < 0.5
    size = (1, 1) if flat else (window, window)
    new = torch.rand(channels, *size, generator=rng).round().to(content)
    old = content[:, :, top:top + window, low:low + window]
    if window == 1:  # a pixel that stays as it was would be a wasted question
        new = (old + new).remainder(2) if channels > 1 else 1 - old
    content[:, :, top:top + window, low:low + window] = new
    return Squares(corner, content)


def mean_margins(said: Answers, arms: Int[Tensor, " arms"], most: float) -> Float[Tensor, " arms"]:
    """Mean margin of each arm's class over its rows, none counted above `most`; rows = arms · batch."""
    every = margins(said).view(len(arms), -1, said.shape[1])
    return every[torch.arange(len(arms)), :, arms].clamp(-3 * CONFIDENT, most).mean(1)


def screened(ask: Ask, squares: Squares, samples: Samples, classes: int,
             most: float) -> Float[Tensor, "squares classes"]:
    """Every patch on the same samples, judged for all classes by one answer; a class's own samples do not count."""
    said = ask(pasted(samples.inputs, squares).flatten(0, 1))
    every = margins(said).clamp(-3 * CONFIDENT, most).view(len(squares.corner), len(samples), classes)
    counts = (samples.labels[:, None] != torch.arange(classes, device=said.device)).to(said)
    return (every * counts).sum(1) / counts.sum(0).clamp_min(1)


def improved(ask: Ask, squares: Squares, arms: Int[Tensor, " arms"], inputs: Float[Tensor, "arms batch ..."],
             steps: int, most: float, rng: torch.Generator) -> tuple[Squares, Float[Tensor, " arms"]]:
    """Random search: keep a change where the mean margin does not fall. The patches and their margins."""
    def judged(trial: Squares) -> Tensor:
        return mean_margins(ask(pasted(inputs, trial).flatten(0, 1)), arms, most)

    best = judged(squares)
    for step in range(steps):
        trial = changed(squares, 1 - step / steps, inputs[0], rng)
        value = judged(trial)
        squares, best = squares.where(value >= best, trial), torch.maximum(best, value)
    return squares, best
