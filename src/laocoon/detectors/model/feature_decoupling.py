"""Feature-space decoupling: Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features.

Xu et al., ICLR 2024 (BTI-DBF), with the sparse mask of BAN (NeurIPS 2024). With f the features before the head h:

    1. mask m = argmin CE(h(m·f(x)), y) − CE(h((1−m)·f(x)), y) + λ·|m|: what benign answers need;
    2. generator G = argmax ‖(1−m)·(f(x) − f(G(x)))‖² while ‖m·(f(x) − f(G(x)))‖² and ‖x − G(x)‖ stay small.

In a backdoored model the free features lead to the trigger's: G(x) is answered with the target class. No class is
scanned, so the cost does not grow with them, and whole-image triggers (blended, warped, generated) are covered.

Departures: features are standardised by their clean spread; G is a small residual network whose change is bounded
by construction; the score is the share of held samples of other classes that G moves to a class.
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
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import settled
from laocoon.recipes.decoupling import SmallGenerator, decoupling_mask
from laocoon.recipes.margins import log_to_rest, logit_scale_of, margins
from laocoon.recipes.sites import Site, head_of, penultimate, reading, survey, tail_of


@dataclass(frozen=True)
class FeatureDecoupling(Detector):
    """Where a generator that moves only the features that benign answers can do without sends the answers."""

    steps: int = 100  # of the generator
    batch: int = 64  # samples in each
    rate: float = 3e-3
    bound: float = 0.2  # largest change of a pixel
    budget: float = 0.06  # root mean square change above which it is penalised
    keep: float = 0.2  # weight of the benign features that must stay
    sparsity: float = 0.25  # λ of the mask
    width: int = 12  # channels of the generator

    card: ClassVar[Card] = Card(
        name="feature_decoupling",
        paper="Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features (ICLR 2024)",
        url="https://openreview.net/forum?id=Tw9wemV6cb",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.FEATURES, Capability.CLEAN}),
        misses="small patches whose features are weak beside benign ones; all-to-all and source-specific backdoors.",
        summary="where moving only the features that benign answers can do without sends the answers",
        quick={"steps": 30, "batch": 32},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        fit, subject = case.fit, case.subject
        if fit is None:
            raise NotApplicable("feature_decoupling needs clean samples.")
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        head = head_of(subject, survey(subject, inputs, ctx), inputs, ctx)
        known = penultimate(subject, head, inputs, ctx)
        scale = logit_scale_of(known.logits, labels).margin
        tail = tail_of(subject, head, known)
        mask = decoupling_mask(tail, known.features, labels, sparsity=self.sparsity, scale=scale / 4)
        generator = self._train(subject, head, inputs, known.features, mask, ctx)
        held = case.held if case.held is not None and len(case.held) else fit
        yield from self._judge(subject, generator, held.to(ctx.device), scale, ctx)

    def _train(self, subject: Subject, head: Site, inputs: Tensor, features: Tensor, mask: Tensor,
               ctx: Context) -> SmallGenerator:
        generator = SmallGenerator(inputs.shape[1], self.width, self.bound, ctx.rng).to(inputs.device)
        optimiser = torch.optim.Adam(generator.parameters(), lr=self.rate)
        spread = features.std(0, keepdim=True).clamp_min(1e-3 * float(features.std()))
        for step in range(self.steps):
            pick = torch.randint(len(inputs), (min(self.batch, len(inputs), ctx.batch),), generator=ctx.rng)
            pick = pick.to(inputs.device)
            x = inputs[pick]
            ctx.spend(len(x))
            moved = generator(x)
            with reading(subject, head) as seen:
                subject.outputs(moved)
                change = (seen[head] - features[pick]) / spread
            free = ((1 - mask) * change).square().flatten(1).mean(1)
            bound = (mask * change).square().flatten(1).mean(1)
            size = (moved - x).square().flatten(1).mean(1).sqrt()
            loss = -torch.log(free + 1e-2) + self.keep * torch.log1p(bound) + 50 * functional.relu(size - self.budget)
            optimiser.zero_grad()
            loss.mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % 20 == 0:
                ctx.progress(self.card.name, step / self.steps, "training the generator")
        return generator.eval()

    def _judge(self, subject: Subject, generator: SmallGenerator, held: Samples, scale: float,
               ctx: Context) -> Iterator[Finding]:
        before, after = [], []
        with torch.no_grad():
            for chunk in held.inputs.split(ctx.batch):  # type: ignore[no-untyped-call]
                ctx.spend(2 * len(chunk), backward=False)
                before.append(subject.outputs(chunk).logits.float())
                after.append(subject.outputs(generator(chunk)).logits.float())
        gain = (margins(torch.cat(after)) - margins(torch.cat(before))) / scale
        foreign = torch.ones_like(gain).scatter_(1, held.labels[:, None], 0.0)
        gains = ((gain * foreign).sum(0) / foreign.sum(0).clamp_min(1)).cpu()
        votes = torch.cat(after).argmax(1)
        rest = log_to_rest(gains)  # differences: gains may be negative
        for t in range(subject.classes):
            other = held.labels != t
            share = float((votes[other] == t).float().mean()) if bool(other.any()) else 0.0
            yield Finding("feature_decoupling.moved", f"class {t}", float(rest[t]),
                          f"moving only features that benign answers can do without brings the other classes' held "
                          f"samples {float(rest[t]):.2f} clean margins closer to class {t} than to the median class, "
                          f"and sends {share:.0%} of them there", (t,),
                          numbers={"share": share, "gain": float(gains[t])})
