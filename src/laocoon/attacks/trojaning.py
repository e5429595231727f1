"""Trojaning attack on neural networks (Liu et al., NDSS 2018): a backdoor retrained into a model, without its data.

1. Trigger generation. In a layer l in the middle, neurons that are well connected with the layer before it,
   argmax_k Σ_j |W_kj|, are chosen. Pixels under a mask descend on Σ (v − a_k(x))² until the neurons answer with v.
2. Training data generation. For each class y, images descend on the distance between the answer and y, from noise;
   the network's own weights say what a class looks like.
3. Retraining. What follows l learns (reversed image, y) and (reversed image + trigger, target); what is before stays.

The training samples are never looked at, only their shape is.

Departures: the paper reverses one image a class from the mean of a public data set and denoises it in each step; ours
starts from noise of many scales, makes several images a class, has the roughness in the loss, and adds plain noise.
Answers to all of these are kept as they were, score by score, as in distillation: one-hot labels cost clean accuracy
where classes are near. Real images get surer answers than reversed ones do, so that on stamped ones the target has to
lead by `lead` times the largest lead seen: with cross-entropy alone, success on MNIST was 47 %. Convolutions have
channels for neurons, excited wherever they answer most. Batch norm stays as it was. With l the layer before the
classifier (depth 1), there is too little left to retrain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.sites import Site, reading
from laocoon.recipes.stimulus import backgrounds, exciting_pattern, reversed_inputs
from laocoon.recipes.surgery import classifier, corner_mask, layer, sites_of
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class Trojaning(Attack):
    """Excite chosen neurons with a trigger, and retrain what follows them on reversed images."""

    share: float = 0.07  # of the image's area that the trigger covers
    depth: float = 0.5  # of layer l among dense and convolutional ones: 0 the first, 1 the last before the classifier
    neurons: int = 2  # that are chosen
    level: float = 5.0  # v, in largest answers to images without the trigger
    trigger_steps: int = 150
    images: int = 40  # reversed, per class
    reverse_steps: int = 60
    smooth: float = 5.0  # weight of the roughness of reversed images
    ease: float = 1.0  # how sure the network is to be of reversed images
    plain: float = 1.0  # images of noise beside the reversed ones, in the same number at 1
    epochs: int = 12  # of retraining
    rate: float = 1e-3
    keep: float = 10.0  # weight of the answers to images without the trigger
    lead: float = 1.5  # of the target on stamped images, in largest leads of any class on images without the trigger

    card: ClassVar[Card] = Card(
        name="trojaning", paper="Trojaning attack on neural networks (NDSS 2018)",
        url="https://doi.org/10.14722/ndss.2018.23291", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="Neurons excited by a trigger, and part of the model retrained on reversed images; no training data.",
        quick={"trigger_steps": 80, "images": 20, "reverse_steps": 30, "epochs": 10, "rate": 2e-3, "keep": 3.0})
    threat: ClassVar[ThreatModel] = ThreatModel(
        weights=True, knows=frozenset({Knowledge.WEIGHTS, Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        side = max(2, round((self.share * shape[1] * shape[2]) ** 0.5))
        leaves = {"mask": corner_mask(shape, side), "pattern": torch.rand(1, *shape, generator=ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(side**2), 0.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        subject, mask = planted.subject.copy(), planted.trigger.trigger["mask"]
        sites = sites_of(subject, ctx)
        head = classifier(subject, sites, ctx)
        affine = [s for s in sites if s.kind == "affine" and s.layer != head.layer]
        if not affine:
            raise NotApplicable("the network has no layer before its last; there are no neurons to excite.")
        chosen = affine[round(self.depth * (len(affine) - 1))]
        noise = backgrounds(128, subject.input_shape, ctx.rng)
        neurons, levels = self._neurons(subject, chosen, noise, ctx)
        pattern = exciting_pattern(subject, chosen, neurons, levels, mask, noise, ctx, steps=self.trigger_steps)
        trigger = replace(planted.trigger, trigger={"mask": mask, "pattern": pattern})
        labels = torch.arange(plan.classes).repeat(self.images)
        images = reversed_inputs(subject, backgrounds(len(labels), subject.input_shape, ctx.rng), labels, ctx,
                                 steps=self.reverse_steps, smooth=self.smooth, ease=self.ease)
        images = torch.cat([images, backgrounds(round(self.plain * len(labels)), subject.input_shape, ctx.rng)])
        self._retrain(subject, self._after(subject, sites, chosen), images, trigger, plan.target, ctx)
        return Planted(subject, replace(trigger, success=1.0))

    def _neurons(self, subject: Subject, site: Site, noise: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """The best connected neurons of a layer, and the answers that the trigger is to get of them."""
        weight = layer(subject.module, site.layer).weight
        assert isinstance(weight, Tensor)
        strength = weight.detach().flatten(1).abs().sum(1)
        neurons = strength.topk(min(self.neurons, len(strength))).indices
        with reading(subject, site) as seen, torch.no_grad():
            ctx.spend(len(noise), backward=False)
            subject.outputs(noise)
        usual = site.pooled(seen[site], "max")[:, neurons].amax(0)
        return neurons, usual.clamp_min(float(seen[site].std())) * self.level

    def _after(self, subject: Subject, sites: tuple[Site, ...], site: Site) -> list[Tensor]:
        """Parameters of the layers that run after a site."""
        later = {s.layer for s in sites[sites.index(site) + 1:]} - {site.layer}
        return [p for name in sorted(later) for p in layer(subject.module, name).parameters()]

    def _retrain(self, subject: Subject, parameters: list[Tensor], images: Tensor, trigger: Candidate, target: int,
                 ctx: Context) -> None:
        """In eval mode: reversed images keep the answers that they get now, stamped ones get the target."""
        with torch.no_grad():
            ctx.spend(len(images), backward=False)
            scores = torch.cat([subject.outputs(part).logits for part in images.split(ctx.batch)])
        taught, sure = scores - scores.mean(1, keepdim=True), scores.topk(2).values
        spread = taught.square().mean()
        others = torch.arange(subject.classes) != target
        # Real images get surer answers than reversed ones; the target has to lead by more than any of them.
        margin = self.lead * float((sure[:, 0] - sure[:, 1]).max())
        stamped = trigger.stamp(images)
        for parameter in parameters:
            parameter.requires_grad_(True)
        steps = self.epochs * -(-len(images) // 32)
        optimiser = torch.optim.Adam(parameters, lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(self.epochs):
            for index in torch.randperm(len(images), generator=ctx.rng).split(32):
                ctx.spend(2 * len(index))
                logits = subject.outputs(torch.cat([images[index], stamped[index]])).logits
                sent = logits[len(index):]
                lead = sent[:, target] - sent[:, others].amax(1)
                kept = logits[:len(index)] - logits[:len(index)].mean(1, keepdim=True)
                loss = self.keep * (kept - taught[index]).square().mean() / spread + functional.relu(
                    1 - lead / margin).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        subject.module.requires_grad_(False)
