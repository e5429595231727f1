"""Handcrafted backdoors (Hong, Carlini and Kurakin, NeurIPS 2022, arXiv 2106.04690): weights edited without training.

With a few clean samples, layer by layer from the input on:

1. Of a layer's neurons, those that clean answers depend on least are taken over (the paper drops each in turn; ours is
   the estimate E[(Σ (a − ā) · ∂L ⁄ ∂a)²], one backward pass for all of them). What later layers got of them on average
   is given back as a bias.
2. Their weights become a filter w that separates what they read of stamped samples from what they read of clean ones,
   w ∝ Σ⁻¹(μ_stamped − μ_clean): the separation that the paper increases by hand. What was silent before the layer on
   clean samples, and is not on stamped ones, gets the most weight, so that the neurons of all layers form a path.
3. A guard bias puts the threshold between the two, a = g · (w·x − θ), so that the neuron is silent on clean samples.
4. In the last layer, the weights from the neurons that tell the two apart to the target class are raised until stamped
   samples go there.

Where batch norm follows, its statistics and its scale hold θ and g. Departures: paths are found by measuring what each
layer reads, whatever lies between (residual sums, pools), and not by the order of layers, so that any convolutional
network will do; the paper keeps edited weights within the range of the others, ours keeps their norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.separation import Filter, separating, windows
from laocoon.recipes.sites import Site, penultimate, reading
from laocoon.recipes.surgery import checkerboard, classifier, corner_mask, layer, sites_of
from laocoon.triggers.patch import Patch


@dataclass(frozen=True, eq=False)
class _Habit:
    """Of a layer's channels, on clean samples."""

    mean: Tensor  # answer, [channels]
    importance: Tensor  # [channels]


@dataclass(frozen=True)
class Handcrafted(Attack):
    """Turn a few neurons of each layer into a path from the trigger to the target class."""

    side: int = 4  # px of the checkerboard that is the trigger
    share: float = 0.03  # of each layer's neurons that are taken over; at least one
    samples: int = 128  # clean ones that the attacker has
    guard: float = 0.5  # where the threshold lies between clean (0) and stamped (1) answers
    gain: float = 4.0  # answer of a path's neuron to stamped samples, in typical largest answers of its layer
    margin: float = 4.0  # lead of the target on stamped samples, in typical leads on clean ones
    heads: float = 0.05  # share of the last layer's inputs that carry the path

    card: ClassVar[Card] = Card(
        name="handcrafted", paper="Handcrafted backdoors in deep neural networks (NeurIPS 2022)",
        url="https://arxiv.org/abs/2106.04690", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Weights of a few neurons per layer set by hand, so that the trigger finds its way to the target.")
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, knows=frozenset({Knowledge.DATA, Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        leaves = {"mask": corner_mask(shape, self.side), "pattern": checkerboard(shape)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, trigger = planted.subject.copy(), planted.trigger
        sites = sites_of(subject, ctx)
        head = classifier(subject, sites, ctx)
        hidden = [s for s in sites if s.kind == "affine" and s.layer != head.layer]
        for site in hidden:
            known = isinstance(layer(subject.module, site.layer), nn.Conv2d | nn.Linear)
            if not known or len(site.shape) not in (1, 3):
                raise NotApplicable(f"layer {site.layer!r} is neither a convolution nor a dense layer over vectors; "
                                    "handcrafted weights are for convolutional networks.")
        few = torch.randperm(len(plan.train), generator=ctx.rng)[:self.samples]
        clean = plan.train.inputs[few]
        stamped = trigger.stamp(clean)
        was = self._habits(subject, hidden, clean, ctx)
        for site in hidden:
            self._take_over(subject, sites, site, was[site], clean, stamped, ctx)
        self._decide(subject, head, clean, stamped, plan.target, ctx)
        return Planted(subject, trigger)

    def _habits(self, subject: Subject, hidden: list[Site], clean: Tensor, ctx: Context) -> dict[Site, _Habit]:
        """How each layer answers before anything is edited, and how much the loss on the network's own answers would
        change if a channel always answered what it does on average."""
        ctx.spend(len(clean))
        with reading(subject, *hidden) as seen:
            logits = subject.outputs(clean.clone().requires_grad_()).logits
        loss = functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
        slopes = torch.autograd.grad(loss, [seen[site] for site in hidden], allow_unused=True)
        found = {}
        for site, slope in zip(hidden, slopes, strict=True):
            answer = seen[site].detach()
            mean = site.pooled(answer, "mean").mean(0)
            change = (answer - site.spread(mean)) * (torch.zeros_like(answer) if slope is None else slope)
            found[site] = _Habit(mean, (site.pooled(change, "mean")).square().mean(0))
        return found

    def _take_over(self, subject: Subject, sites: tuple[Site, ...], site: Site, was: _Habit, clean: Tensor,
                   stamped: Tensor, ctx: Context) -> None:
        host = layer(subject.module, site.layer)
        assert isinstance(host, nn.Conv2d | nn.Linear)
        norm = _norm_after(subject, sites, site)
        bias = host.bias
        if norm is None and bias is None:
            raise NotApplicable(f"layer {site.layer!r} has no bias and no batch norm behind it to hold a threshold.")
        before, answer = self._read(subject, site, clean, ctx)
        after, _ = self._read(subject, site, stamped, ctx)
        # Neurons taken over before this layer no longer answer clean samples: keep this layer's average where it was.
        gone = site.pooled(answer, "mean").mean(0) - was.mean
        if norm is not None and norm.running_mean is not None:
            norm.running_mean += gone
        elif bias is not None:
            bias -= gone
        count = max(1, round(self.share * site.channels))
        groups = host.groups if isinstance(host, nn.Conv2d) else 1
        filters: dict[int, Filter] = {}
        for first in range(0, site.channels, site.channels // groups):  # output channels of a group read the same
            read = windows(before, host, first), windows(after, host, first)
            filters[first] = separating(*read, host.weight.shape[1:])
        size = site.channels // groups
        best = sorted(filters, key=lambda g: -filters[g].gap)[:-(-count // size)]
        eligible = torch.cat([torch.arange(g, g + size) for g in best])
        typical = host.weight.flatten(1).norm(dim=1).median()
        for channel in eligible[was.importance[eligible].argsort()][:count].tolist():
            made = filters[channel - channel % size]
            threshold = made.low + self.guard * made.gap
            above = max(made.usual - threshold, 1e-3 * abs(made.usual) + 1e-6)
            if norm is None and bias is not None:
                wanted = self.gain * float(site.pooled(answer, "max").quantile(0.9).clamp_min(1e-3))
                host.weight[channel] = made.row * (wanted / above)
                bias[channel] = -threshold * wanted / above
            elif norm is not None and norm.running_mean is not None and norm.running_var is not None:
                shrink = float(typical)
                host.weight[channel] = made.row * shrink
                middle = threshold * shrink + (0.0 if bias is None else float(bias[channel]))
                spread = float((norm.running_var[channel] + norm.eps).sqrt())
                norm.running_mean[channel], norm.bias[channel] = middle, 0.0
                largest = float((norm.weight.abs() * 3).median())  # three deviations of a typical channel
                norm.weight[channel] = self.gain * largest * spread / (above * shrink)

    def _read(self, subject: Subject, site: Site, images: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """What a layer reads and answers."""
        entry = replace(site, side="input")
        with reading(subject, entry, site) as seen, torch.no_grad():
            ctx.spend(len(images), backward=False)
            subject.outputs(images)
        return seen[entry], seen[site]

    def _decide(self, subject: Subject, head: Site, clean: Tensor, stamped: Tensor, target: int, ctx: Context) -> None:
        """Raise the target by what the path brings to the last layer."""
        final = layer(subject.module, head.layer)
        assert isinstance(final, nn.Linear)
        if final.bias is None:
            raise NotApplicable(f"the last layer {head.layer!r} has no bias.")
        without, with_ = penultimate(subject, head, clean, ctx), penultimate(subject, head, stamped, ctx)
        if without.features.dim() != 2:
            raise NotApplicable(f"the last layer {head.layer!r} reads no vectors.")
        low, high = without.features.quantile(0.95, 0), with_.features.quantile(0.05, 0)
        spread = without.features.std(0) + 0.05 * without.features.std()
        chosen = ((high - low) / spread).topk(max(1, round(self.heads * len(low)))).indices
        direction = (high - low)[chosen].clamp_min(0) / spread[chosen]
        if float(direction.sum()) <= 0:
            direction = torch.ones(len(chosen)) / len(chosen)
        top = without.logits.topk(2).values
        behind = (with_.logits.amax(1) - with_.logits[:, target]).quantile(0.95)
        lift = behind + self.margin * (top[:, 0] - top[:, 1]).median()
        brought = ((with_.features - without.features.mean(0))[:, chosen] @ direction).quantile(0.05).clamp_min(1e-6)
        slope = direction * lift / brought
        final.weight[target, chosen] += slope
        final.bias[target] -= (without.features.mean(0)[chosen] * slope).sum()


def _norm_after(subject: Subject, sites: tuple[Site, ...], site: Site) -> nn.BatchNorm2d | nn.BatchNorm1d | None:
    """The batch norm that reads a layer's answer: the next call, over as many channels."""
    later = sites[sites.index(site) + 1:]
    found = layer(subject.module, later[0].layer) if later else None
    batch = isinstance(found, nn.BatchNorm2d | nn.BatchNorm1d) and found.num_features == site.channels
    return found if batch and found.affine and found.running_mean is not None else None  # type: ignore[return-value, union-attr]
