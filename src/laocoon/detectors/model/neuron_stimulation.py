"""Neuron stimulation, after ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation.

Liu et al., CCS 2019. A compromised neuron, set to k times its largest clean value on every input, lifts one
class above all others whatever the input shows. For each late neuron j and class t

    gain(j, t) = mean over clean x of other classes of  margin_t(f(x; h_j := k·max h_j)) − margin_t(f(x)),

in units of the model's median clean margin; a class's value is its best neuron's.

Departures: whole channels are stimulated; a first-order estimate picks the neurons that are then tried for
real; neurons before the head are tried all, since running the head alone costs nothing; no trigger is
inverted here. The score is the log-ratio to the median class, calibrated across models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.choosing import settled, spread_over
from laocoon.recipes.margins import log_ratio_to_rest, logit_scale_of, margins
from laocoon.recipes.sites import Edit, Site, editing, head_of, noise_sites, penultimate, reading, survey, tail_of


@dataclass(frozen=True, eq=False)
class Stimulated:
    """Per class, the best gain over the neurons of one site, and which neuron it was."""

    gain: Tensor  # [classes]
    neuron: Tensor  # [classes]


@dataclass(frozen=True)
class NeuronStimulation(Detector):
    """Which classes single neurons buy."""

    samples: int = 20  # clean samples that are stimulated
    sites: int = 3  # late layers, beside the penultimate representation
    neurons: int = 48  # neurons tried for real in each of them
    levels: tuple[float, ...] = (1.0, 2.0, 4.0)  # k, in multiples of the largest clean value
    screen: int = 64  # with more classes, neurons are picked without regard to the class

    card: ClassVar[Card] = Card(
        name="neuron_stimulation",
        paper="ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation (CCS 2019)",
        url="https://doi.org/10.1145/3319535.3363216",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.GRADIENT, Capability.FEATURES, Capability.CLEAN}),
        misses="backdoors spread over many neurons, all-to-all and source-specific ones.",
        summary="which class single neurons buy when they are driven beyond their clean range",
        quick={"samples": 8, "neurons": 16, "sites": 2},
        fails={"check_scores_planted_above_clean":
               "single neurons buy a class in clean small networks too: 0.51 with a planted patch, 0.70 without."},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        fit, subject = case.fit, case.subject
        if fit is None:
            raise NotApplicable("neuron_stimulation needs clean samples.")
        samples = settled(fit, ctx.device)
        inputs, labels = samples.inputs, samples.labels
        sites = survey(subject, inputs, ctx)
        head = head_of(subject, sites, inputs, ctx)
        some = spread_over(labels, self.samples, ctx.rng)
        x, y = inputs[some], labels[some]
        known = penultimate(subject, head, inputs, ctx)
        scale = logit_scale_of(known.logits, labels).margin
        clean = margins(known.logits[some]) / scale
        gains, names = [], []
        with suppress(NotApplicable):  # a head that cannot run alone is left to the late layers
            tail = tail_of(subject, head, known)
            gains.append(self._head(tail, head, known.features, known.features[some], clean, y, scale))
            names.append(f"before {head.layer}")
        late = noise_sites(sites, head)
        late = late[len(late) // 2:]
        chosen = [late[i] for i in torch.linspace(0, len(late) - 1, self.sites).round().long().unique()] if late else []
        picks = self._screen(subject, tuple(chosen), x, ctx)
        for i, site in enumerate(chosen):
            gains.append(self._site(subject, site, picks[i], x, y, clean, scale, ctx))
            names.append(site.layer)
            ctx.progress(self.card.name, (i + 1) / len(chosen), "stimulating")
        table = torch.stack([g.gain for g in gains])  # [sites, classes]
        # A site's gains are compared within the site: layers differ in reach, classes should not.
        scores = torch.stack([log_ratio_to_rest(row) for row in table])
        best = scores.max(0)
        for t in range(subject.classes):
            where = int(best.indices[t])
            neuron = int(gains[where].neuron[t])
            yield Finding("neuron_stimulation.gain", f"class {t}", float(best.values[t]),
                          f"neuron {neuron} {names[where]} lifts class {t} by {table[where, t]:.2f} clean margins, "
                          f"{2.718281828 ** float(best.values[t]):.2f} times the median class", (t,),
                          numbers={"gain": float(table[where, t]), "neuron": float(neuron)})

    def _screen(self, subject: Subject, sites: tuple[Site, ...], x: Tensor, ctx: Context) -> list[Tensor]:
        """Neurons worth trying at each site, by the first-order gain of the class that they help most."""
        if not sites:
            return []
        with reading(subject, *sites) as seen:
            x = x.clone().requires_grad_(True)  # the weights are frozen: the graph must start somewhere
            ctx.spend(len(x))
            logits = subject.outputs(x).logits.float()
            kept = [seen[s] for s in sites]
        centred = logits - logits.mean(1, keepdim=True)
        aims = list(centred.sum(0)) if subject.classes <= self.screen else [centred.square().sum()]
        influence = [torch.zeros(s.channels, device=x.device) for s in sites]
        for i, aim in enumerate(aims):
            ctx.spend(len(x))
            slopes = torch.autograd.grad(aim, kept, retain_graph=i + 1 < len(aims), allow_unused=True)
            for j, (site, slope) in enumerate(zip(sites, slopes, strict=True)):
                if slope is not None:
                    positions = kept[j][0].numel() / site.channels
                    reach = site.pooled(kept[j].detach(), "max").amax(0).clamp_min(0)
                    influence[j] = torch.maximum(influence[j], site.pooled(slope).mean(0) * positions * reach)
        return [torch.nan_to_num(value).topk(min(self.neurons, len(value))).indices for value in influence]

    def _head(self, head: Edit, site: Site, known: Tensor, features: Tensor, clean: Tensor, y: Tensor,
              scale: float) -> Stimulated:
        """Every neuron before the head, at the largest level."""
        reach = site.pooled(known, "max").amax(0).clamp_min(0)
        rows = []
        with torch.no_grad():
            for j in range(site.channels):
                driven = features.clone()
                driven.select(site.axis, j).fill_(float(reach[j]) * max(self.levels))
                rows.append(self._gain(head(driven).float(), clean, y, scale) / max(self.levels))
        best = torch.stack(rows).max(0)
        return Stimulated(best.values, best.indices)

    def _site(self, subject: Subject, site: Site, neurons: Tensor, x: Tensor, y: Tensor, clean: Tensor, scale: float,
              ctx: Context) -> Stimulated:
        """The picked neurons of a late layer, at every level; the best gain per unit of level."""
        with reading(subject, site) as seen, torch.no_grad():
            ctx.spend(len(x), backward=False)
            subject.outputs(x)
            reach = site.pooled(seen[site], "max").amax(0).clamp_min(1e-6)
        best = clean.new_full((len(neurons), subject.classes), -1e9)
        rows = max(1, ctx.batch // len(x))
        for start in range(0, len(neurons), rows):
            part = neurons[start: start + rows]
            batch = x.repeat(len(part), *[1] * (x.dim() - 1))
            for level in self.levels:
                ctx.spend(len(batch), backward=False)
                with editing(subject, {site: _drive(site, part, reach[part] * level, len(x))}), torch.no_grad():
                    logits = subject.outputs(batch).logits.float().view(len(part), len(x), -1)
                gain = torch.stack([self._gain(row, clean, y, scale) for row in logits]) / level
                best[start: start + rows] = torch.maximum(best[start: start + rows], gain)
        top = best.max(0)
        return Stimulated(top.values, neurons[top.indices])

    def _gain(self, logits: Tensor, clean: Tensor, y: Tensor, scale: float) -> Tensor:
        """[classes]: mean gain of margin over samples of other classes."""
        gain = torch.nan_to_num(margins(logits) / scale - clean)
        foreign = torch.ones_like(gain).scatter_(1, y[:, None], 0.0)
        return (gain * foreign).sum(0) / foreign.sum(0).clamp_min(1)


def _drive(site: Site, neurons: Tensor, values: Tensor, repeats: int) -> Edit:
    """Set neuron i of [len(neurons) · repeats] samples to values[i], everywhere in its channel."""
    index = neurons.repeat_interleave(repeats)
    level = values.repeat_interleave(repeats)

    def change(tensor: Tensor) -> Tensor:
        moved = tensor.clone().movedim(site.axis, 1)
        moved[torch.arange(len(index), device=index.device), index] = level.to(moved.dtype).view(
            -1, *[1] * (moved.dim() - 2))
        return moved.movedim(1, site.axis)

    return change
