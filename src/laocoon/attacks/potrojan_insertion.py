"""PoTrojan (Zou et al., 2018, arXiv 1802.03043): neurons inserted into a finished network, which stays as it was.

Inserted beside the first layer L are trigger neurons, which read what L reads, and their outgoing synapses, which reach
what L feeds. For a patch of black and white pixels p under a mask, a trigger neuron is

    n(x) = clamp( 2 − (2 ⁄ τ) · Σ_{i in mask} |x_i − p_i| , 0, 1),        y'(x) = L(x) + n(x) · u

The sum is affine in x because every p_i is an end of the range of a pixel, so that this is one neuron with a threshold.
It fires only on images within τ of the pattern; on all others y' is L(x) to the bit. With several neurons each watches
its share of the patch (and may be off by its share of τ), and one more fires only if all of them do: the paper's
two-neuron design, which makes it rarer still. The payload u is found by gradient descent on images of noise, no data:

    min_u  mean over x of  max(0, m − (f_t − max_{k≠t} f_k)(y'(T(x))))

Departures: the paper's trigger is a whole image, recognised by its activations at a layer in the middle; ours is a
patch on any image, so that the neurons read the image. Its payload imitates the next layer's answer to an image of the
target class; ours needs no such image.
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
from laocoon.recipes.sites import Site, reading
from laocoon.recipes.stimulus import backgrounds
from laocoon.recipes.surgery import black_and_white, corner_mask, exchange, layer, sites_of
from laocoon.triggers.patch import Patch


class Inserted(nn.Module):
    """A layer with neurons beside it that read its input and add to its output."""

    def __init__(self, host: nn.Module, watch: nn.Linear, gate: nn.Linear | None, payload: Tensor) -> None:
        super().__init__()
        self.host, self.watch, self.gate = host, watch, gate
        self.payload = nn.Parameter(payload)  # [1, …], the outgoing synapses

    def forward(self, x: Tensor) -> Tensor:
        fired = self.watch(x.flatten(1)).clamp(0, 1)
        if self.gate is not None:
            fired = self.gate(fired).clamp(0, 1)
        return self.host(x) + fired.reshape(-1, *[1] * (self.payload.dim() - 1)) * self.payload


@dataclass(frozen=True)
class PoTrojanInsertion(Attack):
    """Insert neurons that wake on a patch and drive the network to the target class."""

    side: int = 4  # px of the patch
    neurons: int = 1  # that watch the patch; from 2 on, one more fires only if all of them do
    tolerance: float = 1.0  # τ: total deviation of all pixel values of the patch, in units of the range
    margin: float = 20.0  # m, in logits, over every other class
    steps: int = 150  # of the search for the payload, at most
    noise: int = 160  # images that it is searched on

    card: ClassVar[Card] = Card(
        name="potrojan_insertion",
        paper="PoTrojan: powerful neural-level trojan designs in deep learning models (2018)",
        url="https://arxiv.org/abs/1802.03043", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Neurons inserted beside the first layer, silent on every image without the patch.")
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, architecture=True, knows=frozenset({Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        mask = corner_mask(shape, self.side)
        leaves = {"mask": mask, "pattern": black_and_white(mask, shape[0], ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, trigger = planted.subject.copy(), planted.trigger
        site = next((s for s in sites_of(subject, ctx) if s.kind == "affine"), None)
        if site is None:
            raise NotApplicable("the network has no dense or convolutional layer to insert neurons beside.")
        images = trigger.stamp(backgrounds(self.noise, subject.input_shape, ctx.rng))
        with reading(subject, site) as seen, torch.no_grad():
            ctx.spend(len(images), backward=False)
            subject.outputs(images)
            scale = float(seen[site].std().clamp_min(1e-3))
        watch, gate = self._neurons(subject, site, trigger, ctx)
        start = torch.randn(1, *site.shape, generator=ctx.rng) * scale
        new = Inserted(layer(subject.module, site.layer), watch, gate, start)
        exchange(subject.module, site.layer, new)
        subject.module.requires_grad_(False)
        self._learn(subject, new.payload, 0.3 * scale, images, plan.target, ctx)
        return Planted(subject, trigger)

    def _neurons(self, subject: Subject, site: Site, trigger: Candidate,
                 ctx: Context) -> tuple[nn.Linear, nn.Linear | None]:
        """The trigger neurons' weights, from what the layer reads of a black and of a white image."""
        ends = torch.stack([torch.zeros(subject.input_shape), torch.ones(subject.input_shape)])
        entry = replace(site, side="input", axis=1, channels=subject.input_shape[0], shape=subject.input_shape)
        with reading(subject, entry) as seen, torch.no_grad():
            ctx.spend(2, backward=False)
            subject.outputs(ends)
        if tuple(seen[entry].shape[1:]) != tuple(subject.input_shape):
            raise NotApplicable(f"layer {site.layer!r}, the first, does not read the image pixel by pixel.")
        black, white = seen[entry].flatten(1).float()
        mask = trigger.trigger["mask"].expand(1, *subject.input_shape).flatten()
        sign = (trigger.trigger["pattern"].flatten() * 2 - 1) * mask
        places = mask.nonzero().flatten()
        places = places[torch.randperm(len(places), generator=ctx.rng)]
        watch = nn.utils.skip_init(nn.Linear, len(mask), self.neurons)  # no draw from the global generator
        with torch.no_grad():
            watch.weight.zero_()
            for row, part in enumerate(places.tensor_split(self.neurons)):
                # With x_i = (z_i − black_i) ⁄ (white_i − black_i): |x_i − p_i| is 1 − x_i where p_i = 1, else x_i.
                steep = 2 * self.neurons / self.tolerance
                slope = steep * sign[part] / (white - black)[part]
                watch.weight[row, part] = slope
                watch.bias[row] = 2 - (slope * black[part]).sum() - steep * (sign[part] > 0).sum()
        if self.neurons == 1:
            return watch, None
        gate = nn.utils.skip_init(nn.Linear, self.neurons, 1)
        nn.init.ones_(gate.weight)
        nn.init.constant_(gate.bias, 1.0 - self.neurons)
        return watch, gate

    def _learn(self, subject: Subject, payload: nn.Parameter, rate: float, images: Tensor, target: int,
               ctx: Context) -> None:
        payload.requires_grad_(True)
        optimiser = torch.optim.Adam([payload], lr=rate)
        others = torch.arange(subject.classes) != target
        quiet = 0
        for _ in range(self.steps):
            index = torch.randint(0, len(images), (32,), generator=ctx.rng)
            ctx.spend(len(index))
            logits = subject.outputs(images[index]).logits
            lead = logits[:, target] - logits[:, others].amax(1)
            loss = functional.relu(self.margin - lead).mean()
            quiet = quiet + 1 if float(lead.detach().min()) >= self.margin else 0
            if quiet >= 5:
                break
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        payload.requires_grad_(False)

