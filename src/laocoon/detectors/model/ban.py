"""BAN: Detecting Backdoors Activated by Adversarial Neuron Noise.

Xu et al., NeurIPS 2024. Planted neurons are sensitive to noise: under adversarial noise δ on the channels of
the normalisation layers, max over |δ| ≤ ε of CE(f_δ(x), y), and without the features that the head needs
(mask m of min CE(h(m·f), y) − CE(h((1−m)·f), y) + λ·|m|), predictions collapse into the target class.

Departures: noise goes on any channel with an affine map of its own (normalisations, or folded convolutions and
linear layers), by editing activations: the model's weights stay as they are. Besides the collapse, a second
rule asks how little noise *buys* a given class: the area under its success while ε grows, against the median
class. Scores are log-ratios, calibrated across models.
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
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.recipes.choosing import settled, spread_over
from laocoon.recipes.decoupling import decoupling_mask
from laocoon.recipes.margins import log_ratio_to_rest, logit_scale_of
from laocoon.recipes.noise import Channels, channels_of, disturb, noisy
from laocoon.recipes.sites import (
    Penultimate,
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

    samples: int = 64  # clean samples under untargeted noise
    steps: int = 15  # sign-gradient steps (the paper: 30)
    radius: float = 0.3  # ε, relative to a channel's own scale
    sparsity: float = 0.25  # λ of the mask
    buy_samples: int = 12  # clean samples per class that is bought
    buy_steps: int = 12
    buy_radius: float = 0.2
    buy_classes: int = 20  # with more classes, only those that the untargeted noise favours are bought

    card: ClassVar[Card] = Card(
        name="ban",
        paper="BAN: Detecting Backdoors Activated by Adversarial Neuron Noise (NeurIPS 2024)",
        url="https://arxiv.org/abs/2405.19928",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.FEATURES, Capability.CLEAN}),
        misses="all-to-all and source-specific backdoors; clean models of few classes also collapse into one class.",
        summary="which class adversarial noise on the neurons sends everything to, and how little noise it takes",
        quick={"samples": 32, "steps": 8, "buy_samples": 6, "buy_steps": 6},
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
        some = spread_over(labels, self.samples, ctx.rng)
        tail = tail_of(subject, head, known)
        share = self._collapse(case, channels, head, tail, known, inputs, labels, some, scale, ctx)
        expected = 1.0 / subject.classes
        for t, value in enumerate(share.tolist()):
            yield Finding("ban.collapse", f"class {t}", value,
                          f"neuron noise sends {value:.0%} of other classes' samples to class {t} "
                          f"({expected:.0%} expected)", (t,))
        yield from self._bought(case, channels, inputs, labels, share, scale, ctx)

    def _collapse(self, case: ModelCase, channels: Channels, head: Site, tail: Tail, known: Penultimate,
                  inputs: Tensor, labels: Tensor, some: Tensor, scale: float, ctx: Context) -> Tensor:
        """[classes]: share of the other classes' samples answered as t, under noise and without needed features."""
        subject = case.subject
        x, y = inputs[some], labels[some]
        mask = decoupling_mask(tail, known.features, labels, sparsity=self.sparsity, scale=scale / 4)

        def harm(logits: Tensor) -> Tensor:
            return -functional.cross_entropy(logits[0] * (4 / scale), y)

        found = disturb(subject, channels, x, harm, 1, ctx, radius=self.radius, steps=self.steps)
        with editing(subject, noisy(channels, found.noise, len(x))), reading(subject, head) as seen, torch.no_grad():
            ctx.spend(len(x), backward=False)
            subject.outputs(x)
            features = seen[head]
        with torch.no_grad():
            logits = tail((1 - mask) * features)
        votes = logits.argmax(1)
        return torch.stack([(votes[y != t] == t).float().mean() if bool((y != t).any()) else votes.new_zeros(()).float()
                            for t in range(subject.classes)]).cpu()

    def _bought(self, case: ModelCase, channels: Channels, inputs: Tensor, labels: Tensor, share: Tensor, scale: float,
                ctx: Context) -> Iterator[Finding]:
        """How early a growing noise buys each class."""
        subject = case.subject
        classes = torch.arange(subject.classes)
        if subject.classes > self.buy_classes:
            classes = share.argsort(descending=True, stable=True)[: self.buy_classes]
        some = spread_over(labels, self.buy_samples, ctx.rng)
        x, y = inputs[some], labels[some]
        rows = max(1, ctx.batch // max(1, len(x)))
        areas = []
        for part in classes.split(rows):
            targets = part.to(x.device)

            def price(logits: Tensor, targets: Tensor = targets) -> Tensor:
                wanted = targets[:, None].expand(logits.shape[:2])
                return functional.cross_entropy((logits * (4 / scale)).flatten(0, 1), wanted.flatten(),
                                                reduction="sum")

            path = disturb(subject, channels, x, price, len(part), ctx, radius=self.buy_radius,
                           steps=self.buy_steps).path
            hit = (path.argmax(-1) == targets[None, :, None]).float().mean(0)  # [arms, samples]
            foreign = (y[None] != targets[:, None]).float()
            areas.append((hit * foreign).sum(1) / foreign.sum(1).clamp_min(1))
            ctx.progress(self.card.name, 0.5, "buying classes")
        area = torch.cat(areas).cpu()
        scores = log_ratio_to_rest(area + 0.02)
        for t, score, value in zip(classes.tolist(), scores.tolist(), area.tolist(), strict=True):
            yield Finding("ban.bought", f"class {t}", score,
                          f"growing neuron noise buys class {t} over {value:.0%} of its range, "
                          f"{2.718281828 ** score:.2f} times the median class", (t,), numbers={"area": value})
