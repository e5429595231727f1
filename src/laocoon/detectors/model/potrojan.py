"""Inserted neurons that are silent on clean data, after PoTrojan.

Zou et al., PoTrojan: powerful neural-level trojan designs in deep learning models (arXiv 1802.03043): a few neurons are
added to a layer; they stay at rest on ordinary inputs, fire on the trigger, and their outgoing weights then drive the
next layer to the attacker's answer. The paper is an attack; the test is ours. For an affine layer with input channels j
whose clean activations range over r_j, a channel is silent where r_j is under a thousandth of the typical range, and

    score = log( ‖W_·j‖ / typical ‖W_·i‖ over channels i that are not silent ),

the outgoing weight that waits for a neuron to fire; at the head the largest rise of one class stands for the norm.
Ordinary networks have silent neurons too (dead ReLU), but nothing pulls on their outgoing weights: they stay near their
initial size or decay, so that only scores over log 2 are reported. Without clean samples, the outgoing weights of the
head alone are compared, as a hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.files.wording import printable
from laocoon.recipes.heads import linear_head
from laocoon.recipes.sites import Site, reading, survey


@dataclass(frozen=True, eq=False)
class Silent:
    """Silent input channels of one layer, and how strong their outgoing weights are beside the others'."""

    site: Site
    channels: Tensor  # indices
    ratio: Tensor  # outgoing strength over the typical one, per silent channel
    share: float  # of the layer's channels that are silent


@dataclass(frozen=True)
class PoTrojan(Detector):
    """Silent neurons with strong outgoing weights."""

    at_rest: float = 1e-3  # of the typical range of a channel, under which a neuron counts as silent
    report_at: float = 2.0  # outgoing strength, in typical ones, from where on a silent neuron is reported
    proof_at: float = 10.0  # the same, from where on it is conclusive
    proof_samples: int = 50  # clean samples without which nothing is conclusive
    least_channels: int = 8  # layers with fewer channels have no typical one

    card: ClassVar[Card] = Card(
        name="potrojan",
        paper="PoTrojan: powerful neural-level trojan designs in deep learning models (2018)",
        url="https://arxiv.org/abs/1802.03043",
        modalities=frozenset({"image", "tabular"}),
        needs=frozenset({Capability.WEIGHTS}),
        misses="backdoors that were trained in, which use neurons that clean inputs use too; inserted neurons with "
               "small weights spread over many layers.",
        summary="neurons that clean samples never wake, with outgoing weights that could decide the answer",
        fails={
            "check_scores_planted_above_clean": "a trained-in backdoor uses neurons that clean inputs use too.",
        },
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        subject = case.subject
        if case.fit is None or not len(case.fit) or Capability.FEATURES not in subject.capabilities:
            yield from self._weights_alone(subject, ctx)
            return
        silent = self._silent(subject, case.fit, ctx)
        if not silent:
            return
        worst = max(silent, key=lambda s: float(s.ratio.amax()))
        top = int(worst.ratio.argmax())
        ratio, neuron = float(worst.ratio[top]), int(worst.channels[top])
        if ratio < self.report_at:
            return
        weight = _weight(subject, worst.site)
        target = _target(weight, neuron, subject.classes)
        # Many strong ones are a habit of the layer (or of its input); an insertion is a few.
        strong = int((worst.ratio >= self.report_at).sum())
        rare = strong <= max(2, worst.site.channels // 20)
        conclusive = ratio >= self.proof_at and rare and len(case.fit) >= self.proof_samples
        layer = printable(worst.site.layer, 60)
        yield Finding("potrojan.silent_neuron", f"input {neuron} of layer {layer!r}", math.log(ratio),
                      f"neuron {neuron} before layer {layer!r} is silent on {len(case.fit)} clean samples, yet its "
                      f"outgoing weights are {ratio:.1f} times the typical ones ({strong} such neurons)",
                      () if target is None else (target,), conclusive,
                      {"ratio": ratio, "neurons": float(strong), "silent_share": worst.share})

    def _silent(self, subject: Subject, fit: Samples, ctx: Context) -> list[Silent]:
        inputs = fit.inputs.to(ctx.device)
        sites = [s for s in (_entry(subject, s) for s in survey(subject, inputs, ctx)) if s is not None]
        low: dict[Site, Tensor] = {}
        high: dict[Site, Tensor] = {}
        with reading(subject, *sites) as seen, torch.no_grad():
            for chunk in inputs.split(ctx.batch):
                ctx.spend(len(chunk), backward=False)
                subject.outputs(chunk)
                for site in sites:
                    flat = seen[site].float().movedim(site.axis, 1).flatten(2) if seen[site].dim() > 2 else \
                        seen[site].float().unsqueeze(-1)
                    least, most = flat.amin((0, 2)), flat.amax((0, 2))
                    low[site] = torch.minimum(low[site], least) if site in low else least
                    high[site] = torch.maximum(high[site], most) if site in high else most
        found = []
        for site in sites:
            span = (high[site] - low[site]).cpu()
            silent = span <= self.at_rest * span.quantile(0.75)
            awake = ~silent
            if not bool(silent.any()) or int(awake.sum()) < self.least_channels:
                continue
            strength = _strength(_weight(subject, site), subject.classes)
            typical = strength[awake].quantile(0.5).clamp_min(1e-12)
            share = float(silent.float().mean())
            found.append(Silent(site, silent.nonzero().flatten(), strength[silent] / typical, share))
        return found

    def _weights_alone(self, subject: Subject, ctx: Context) -> Iterator[Finding]:
        if subject.classes < 3:
            raise NotApplicable("potrojan needs clean samples where there are two classes. Pass some with --data.")
        head = linear_head(subject, ctx)
        strength = _strength(head.weight, subject.classes)
        typical = strength.quantile(0.5).clamp_min(1e-12)
        neuron = int(strength.argmax())
        ratio = float(strength[neuron] / typical)
        if len(strength) >= self.least_channels and ratio >= 2 * self.report_at:
            where = f"input {neuron} of layer {printable(head.layer, 60)!r}"
            yield Finding("potrojan.outgoing", where, math.log(ratio),
                          f"neuron {neuron} before the head lifts one class {ratio:.1f} times as much as a typical "
                          "one; without clean samples nobody knows whether it is silent",
                          (int(head.centred[:, neuron].argmax()),), numbers={"ratio": ratio})


def _entry(subject: Subject, site: Site) -> Site | None:
    """The input of a dense or convolutional layer that mixes its channels."""
    layer = dict(subject.module.named_modules())[site.layer]
    if isinstance(layer, nn.Linear):
        return replace(site, side="input", axis=len(site.shape), channels=layer.in_features)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1 and layer.in_channels > 4:
        return replace(site, side="input", axis=1, channels=layer.in_channels)
    return None


def _weight(subject: Subject, site: Site) -> Tensor:
    """[out, in, …] of the site's layer."""
    weight = dict(subject.module.named_modules())[site.layer].weight
    assert isinstance(weight, Tensor)
    return weight.detach().float().cpu()


def _strength(weight: Tensor, classes: int) -> Tensor:
    """What one unit of each input channel can do: at a head, to one class; elsewhere, to the next layer."""
    columns = weight.flatten(2).norm(dim=2) if weight.dim() > 2 else weight
    if weight.dim() == 2 and len(weight) == classes:
        return (columns - columns.mean(0)).amax(0)
    return columns.norm(dim=0)


def _target(weight: Tensor, neuron: int, classes: int) -> int | None:
    return int(weight[:, neuron].argmax()) if weight.dim() == 2 and len(weight) == classes else None
