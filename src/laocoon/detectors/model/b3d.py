"""Patch inversion from scores: B3D (Dong et al., ICCV 2021, arXiv 2103.13127).

For every class t, a mask m ~ Bernoulli(σ(θ_m)) and a pattern p ~ N(σ(θ_p), s²) are drawn, and the gradient of

    E [ CE(f(x·(1 − m) + m·p), t) + λ·|m| ]

is estimated from the scores of the draws alone: by the logarithm's derivative for the mask, Σ_j F_j·(m_j − σ(θ_m)), by
natural evolution strategies for the pattern, Σ_j F_j·ε_j / s, with F_j standardised over the draws of a step.

Departures, all to do with a few hundred questions a class instead of a million: mask and pattern live on a coarse grid
of cells and are enlarged; all classes are searched at once with the same draws; and the statistic is not the mask's
norm with its outlier index, since so short a search rarely reaches the class at all, but log(median / own) of the size
of the mask, where failing to reach the class makes a mask larger by 1 / success², as in the white-box search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.asking import Ask, asking, bystanders, labels_only, shuffled
from laocoon.recipes.margins import margins
from laocoon.triggers.patch import Patch

WORST = 9.0  # a loss past which a class being further away says nothing more


@dataclass(frozen=True)
class B3d(Detector):
    """Search a mask and a pattern towards every class by gradients that are estimated from scores."""

    grid: int = 7  # cells of mask and pattern along a side
    steps: int = 16
    draws: int = 10  # masks and patterns in a step
    batch: int = 4  # samples that each draw is judged on
    rate: float = 0.5  # of Adam
    noise: float = 0.3  # s, of the pattern
    weight: float = 2.0  # λ, of the covered share of the picture
    most: int = 12  # classes that are searched, drawn where there are more
    judged: int = 12  # other samples that the final trigger is judged on

    card: ClassVar[Card] = Card(
        name="b3d", paper="Black-box detection of backdoor attacks with limited information and data (ICCV 2021)",
        url="https://arxiv.org/abs/2103.13127", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        summary="Searches a patch towards every class with gradients that are estimated from scores.",
        misses="models that answer with labels only; every trigger that is no patch; at these settings most patches "
               "too: AUROC 0.41 on 3 planted and 9 clean models of the fusion split, though it named 2 of 3 targets",
        quick={"steps": 16})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        subject, fit = case.subject, shuffled(case.fit, ctx.rng)
        if labels_only(subject):
            raise NotApplicable("b3d needs scores, and this model answers with labels only.")
        held = shuffled(case.held, ctx.rng) if case.held is not None and len(case.held) else fit
        arms = torch.arange(subject.classes)
        if subject.classes > self.most:
            arms = torch.randperm(subject.classes, generator=ctx.rng)[:self.most].sort().values
        ask = asking(subject, ctx)
        inputs = fit.inputs[bystanders(fit, subject.classes, self.batch * self.steps)[arms]]
        theta = self._start(len(arms), fit.inputs)
        optimiser = torch.optim.Adam(theta, lr=self.rate)
        for step in range(self.steps):
            part = inputs[:, step * self.batch:(step + 1) * self.batch]
            self._descend(ask, theta, part, arms, ctx)
            optimiser.step()
            with torch.no_grad():
                for leaf in theta:
                    leaf.clamp_(-4, 4)
            ctx.progress(self.card.name, (step + 1) / self.steps, "estimating gradients by asking")
        yield from self._judge(ask, theta, held, arms, subject.classes)

    def _start(self, arms: int, like: Tensor) -> list[Tensor]:
        """θ_m [arms, 1, grid, grid] and θ_p [arms, channels, grid, grid]: a third of the picture, in grey."""
        mask = torch.full((arms, 1, self.grid, self.grid), -0.7, device=like.device)
        return [mask, torch.zeros(arms, like.shape[1], self.grid, self.grid, device=like.device)]

    def _descend(self, ask: Ask, theta: list[Tensor], inputs: Tensor, arms: Tensor, ctx: Context) -> None:
        """One estimate of the gradient, written to the leaves; the same draws for all classes."""
        mean_mask, mean_pattern = theta[0].sigmoid(), theta[1].sigmoid()
        chance = torch.rand(self.draws, 1, 1, self.grid, self.grid, generator=ctx.rng).to(inputs)
        noise = torch.randn(self.draws, 1, *theta[1].shape[1:], generator=ctx.rng).to(inputs)
        mask = (chance < mean_mask).float()  # [draws, arms, 1, grid, grid]
        pattern = (mean_pattern + self.noise * noise).clamp(0, 1)
        stamped = torch.stack([_stamped(inputs, m, p) for m, p in zip(mask, pattern, strict=True)])
        said = ask(stamped.flatten(0, 2)).unflatten(0, stamped.shape[:3])  # [draws, arms, batch, classes]
        wanted = said.gather(3, arms.to(said.device).view(1, -1, 1, 1).expand(*said.shape[:3], 1))
        loss = (-wanted).clamp(max=WORST).mean((2, 3)) + self.weight * mask.mean((2, 3, 4))  # [draws, arms]
        worth = ((loss - loss.mean(0)) / loss.std(0).clamp_min(1e-3))[:, :, None, None, None]
        theta[0].grad = (worth * (mask - mean_mask)).mean(0)
        theta[1].grad = (worth * noise * mask).mean(0)

    def _judge(self, ask: Ask, theta: list[Tensor], held: Samples, arms: Tensor,
               classes: int) -> Iterator[Finding | Candidate]:
        side = held.inputs.shape[-2:]
        mask, pattern = (theta[0] > 0).float(), theta[1].sigmoid()
        inputs = held.inputs[bystanders(held, classes, self.judged)[arms]]
        said = ask(_stamped(inputs, mask, pattern).flatten(0, 1))
        every = margins(said).unflatten(0, inputs.shape[:2])[torch.arange(len(arms)), :, arms]
        success, size = (every > 0).float().mean(1), theta[0].sigmoid().mean((1, 2, 3)) * side[0] * side[1]
        logs = (size / success.clamp_min(1 / (2 * self.judged)) ** 2).log()
        score = logs.quantile(0.5) - logs
        order = score.argsort(descending=True, stable=True).tolist()
        for arm in order:
            target = int(arms[arm])
            yield Finding(
                "b3d.size", f"class {target}", float(score[arm]), target_classes=(target,),
                explanation=f"a mask of {float(size[arm]):.0f} px, found by asking alone, sends "
                            f"{float(success[arm]):.0%} of other samples to class {target}",
                numbers={"success": float(success[arm]), "size": float(size[arm])})
        best = order[0]
        leaves = {"mask": functional.interpolate(mask[best:best + 1], side),
                  "pattern": functional.interpolate(pattern[best:best + 1], side)}
        yield Candidate(Patch(), leaves, all_to_one(int(arms[best]), classes), float(leaves["mask"].sum()),
                        float(success[best]), self.card.name)


def _stamped(inputs: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Samples [arms, batch, …] under each arm's mask and pattern, enlarged from their cells."""
    side = inputs.shape[-2:]
    m, p = (functional.interpolate(t, side)[:, None] for t in (mask, pattern))
    return inputs * (1 - m) + m * p
