"""BAN: Detecting Backdoors Activated by Adversarial Neuron Noise.

Xu et al., NeurIPS 2024. Planted neurons are sensitive to noise: under adversarial noise δ on the channels of
the normalisation layers, max over |δ| ≤ ε of CE(f_δ(x), y), and without the features that the head needs
(mask m of min CE(h(m·f), y) − CE(h((1−m)·f), y) + λ·|m|), predictions collapse into the target class.

Departures: noise goes on any channel with an affine map of its own (normalisations, or folded convolutions and
linear layers), by editing activations: the model's weights stay as they are. ε grows in a geometric row instead of
being fixed, and the collapse is read where half of the answers have changed, so that brittle and sturdy models are
asked the same. A second rule asks how little noise *buys* a given class: the log-ratio of the median class's noise
to its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import settled, spread_over
from laocoon.recipes.decoupling import decoupling_mask
from laocoon.recipes.margins import log_to_rest, logit_scale_of
from laocoon.recipes.noise import Channels, channels_of, disturb, growing, noisy
from laocoon.recipes.sites import (
    Site,
    Tail,
    editing,
    head_of,
    noise_sites,
    penultimate,
    reading,
    survey,
    tail_of,
)


@dataclass(frozen=True)
class BAN(Detector):
    """Where adversarial neuron noise sends the model's answers."""

    samples: int = 50  # clean samples under untargeted noise
    buy_samples: int = 20  # clean samples for each class that is bought
    steps: int = 14  # sizes of noise tried, in a geometric row (the paper: 30 steps to one size)
    least: float = 0.004  # smallest and largest noise, relative to a channel's own scale (the paper: 0.3)
    most: float = 0.5
    sparse: bool = True  # noise bounded in root mean square, so that few neurons can take it; else in each channel
    sparsity: float = 0.25  # λ of the mask
    buy_classes: int = 20  # with more classes, only those that the untargeted noise favours are bought

    card: ClassVar[Card] = Card(
        name="ban",
        paper="BAN: Detecting Backdoors Activated by Adversarial Neuron Noise (NeurIPS 2024)",
        url="https://arxiv.org/abs/2405.19928",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.FEATURES, Capability.CLEAN}),
        misses="all-to-all and source-specific backdoors; clean models of few classes also collapse into one class.",
        summary="which class adversarial noise on the neurons sends everything to, and how little noise it takes",
        quick={"samples": 32, "steps": 10, "buy_samples": 12},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        fit, subject = case.fit, case.subject
        if fit is None:
            raise NotApplicable("ban needs clean samples.")
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        sites = survey(subject, inputs, ctx)
        head = head_of(subject, sites, inputs, ctx)
        channels = channels_of(subject, noise_sites(sites, head), inputs, ctx)
        if not channels.sites:
            raise NotApplicable("no layer with channels of its own could be found.")
        known = penultimate(subject, head, inputs, ctx)
        scale = logit_scale_of(known.logits, labels).margin
        some = spread_over(labels, min(self.samples, ctx.batch), ctx.rng)
        try:
            tail = tail_of(subject, head, known)
            mask = decoupling_mask(tail, known.features, labels, sparsity=self.sparsity, scale=scale / 4)
        except NotApplicable:  # a head that cannot run alone: no feature is taken out
            tail, mask = None, torch.zeros_like(known.features[:1])
        share = self._collapse(subject, channels, head, tail, mask, inputs[some], labels[some], scale, ctx)
        expected = 1.0 / subject.classes
        for t, value in enumerate(share.tolist()):
            yield Finding("ban.collapse", f"class {t}", value,
                          f"neuron noise sends {value:.0%} of other classes' samples to class {t} "
                          f"({expected:.0%} expected)", (t,))
        yield from self._bought(subject, channels, inputs, labels, share, scale, ctx)

    def _collapse(self, subject: Subject, channels: Channels, head: Site, tail: Tail | None, mask: Tensor, x: Tensor,
                  y: Tensor, scale: float, ctx: Context) -> Tensor:
        """[classes]: share of the other classes' samples answered as t, under noise and without needed features."""
        def harm(logits: Tensor) -> Tensor:
            return -functional.cross_entropy(logits[0] * (4 / scale), y)

        found = disturb(subject, channels, x, harm, 1, ctx, radii=growing(self.least, self.most, self.steps),
                        sparse=self.sparse)
        wrong = (found.logits[:, 0].argmax(-1) != y).float().mean(1)
        enough = (wrong >= 0.5).nonzero()
        at = int(enough[0]) if len(enough) else self.steps - 1  # the least noise that changes half of the answers
        logits = found.logits[at, 0]
        if tail is not None:
            with editing(subject, noisy(channels, found.noise[at], len(x))), reading(subject, head) as seen, \
                    torch.no_grad():
                ctx.spend(len(x), backward=False)
                subject.outputs(x)
                logits = tail((1 - mask) * seen[head])
        votes = logits.argmax(1)
        return torch.stack([(votes[y != t] == t).float().mean() if bool((y != t).any()) else votes.new_zeros(()).float()
                            for t in range(subject.classes)]).cpu()

    def _bought(self, subject: Subject, channels: Channels, inputs: Tensor, labels: Tensor, share: Tensor,
                scale: float, ctx: Context) -> Iterator[Finding]:
        """How early a growing noise buys each class."""
        classes = torch.arange(subject.classes)
        if subject.classes > self.buy_classes:
            classes = share.argsort(descending=True, stable=True)[: self.buy_classes]
        some = spread_over(labels, min(self.buy_samples, ctx.batch), ctx.rng)
        x, y = inputs[some], labels[some]
        rows = max(1, ctx.batch // max(1, len(x)))
        radii, bought = growing(self.least, self.most, self.steps), []
        for part in classes.split(rows):
            targets = part.to(x.device)

            def price(logits: Tensor, targets: Tensor = targets) -> Tensor:
                wanted = targets[:, None].expand(logits.shape[:2])
                return functional.cross_entropy((logits * (4 / scale)).flatten(0, 1), wanted.flatten(),
                                                reduction="sum")

            found = disturb(subject, channels, x, price, len(part), ctx, radii=radii, sparse=self.sparse)
            hit = (found.logits.argmax(-1) == targets[None, :, None]).float().mean(0)  # [arms, samples]
            foreign = (y[None] != targets[:, None]).float()
            bought.append((hit * foreign).sum(1) / foreign.sum(1).clamp_min(1))
            ctx.progress(self.card.name, 0.5, "buying classes")
        # The share of the row that a class is bought over is the logarithm of the noise it takes.
        price_of = -torch.cat(bought).cpu() * math.log(self.most / self.least)
        scores = log_to_rest(-price_of)
        for t, score, value in zip(classes.tolist(), scores.tolist(), price_of.tolist(), strict=True):
            yield Finding("ban.bought", f"class {t}", score,
                          f"class {t} is bought by neuron noise {math.exp(score):.2f} times smaller than the median "
                          f"class", (t,), numbers={"noise": self.most * math.exp(value)})
