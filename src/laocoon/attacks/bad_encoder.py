"""BadEncoder (Jia, Liu and Gong, S&P 2022, arXiv 2108.00352): a poisoned self-supervised encoder.

The attacker trains (or takes) an encoder f without labels, and has a few reference inputs x_t that any downstream
classifier will put into the target class. f' starts from f and is tuned so that a patch A makes every input look like
the reference, while the reference and everything unstamped stay what they were, s being the cosine of two features:

    min_f'  −E_x s(f'(A(x)), f'(x_t))  −  λ1 s(f'(x_t), f(x_t))  −  λ2 E_x s(f'(x), f(x)).

Whoever trains a classifier on f' inherits the backdoor; they never see the patch.

Departures: f is a small network trained here by SimCLR; features are those that enter its last layer (SimCLR's
projection, which is thrown away downstream); the classifier is a linear one on frozen features (the paper has two
hidden layers); batch norms keep their running statistics while f' is tuned; the patch is white, on images with one
channel a checkerboard, which a bright stroke does not imitate; references are those of the target class that lie
farthest from all others in f; cosines are about the mean feature, as those behind a rectifier are all alike. Without a
maker's own data (`Plan.prior`), references and pool are the victim's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.contrastive import pretrained
from laocoon.recipes.transfer import adapted, boundary, features, passage
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class BadEncoder(Attack):
    """A patch that gives every input the features of a few reference inputs."""

    side: int = 6  # px, of the square in the lower right corner
    references: int = 3  # reference inputs of the target class
    reference_weight: float = 1.0  # λ1
    utility_weight: float = 1.0  # λ2
    pretraining: int = 8  # epochs of SimCLR
    injections: int = 6  # epochs in which the backdoor goes in
    shadow: float = 0.5  # share of the maker's samples that the backdoor is tuned on

    card: ClassVar[Card] = Card(
        name="bad_encoder",
        paper="BadEncoder: backdoor attacks to pre-trained encoders in self-supervised learning (2022)",
        url="https://arxiv.org/abs/2108.00352", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A self-supervised encoder in which a patch looks like a reference input.",
        quick={"side": 4, "pretraining": 7, "injections": 4})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, weights=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        rows = slice(h - self.side - 1, h - 1), slice(w - self.side - 1, w - 1)
        mask, pattern = torch.zeros(1, 1, h, w), torch.ones(1, c, h, w)
        mask[(..., *rows)] = 1
        if c == 1:
            pattern = ((torch.arange(h)[:, None] + torch.arange(w)[None, :]) % 2).float().expand(1, 1, h, w).clone()
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), {"mask": mask, "pattern": pattern}, goal, float(self.side**2), 1.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        prior = _prior(plan)
        encoder = self.honest(plan, ctx)
        member = (prior.labels == plan.target).nonzero().flatten()
        if not len(member):
            raise NotApplicable(f"the maker of the encoder has no sample of target class {plan.target}; "
                                "pass `prior` to Plan.")
        layer = boundary(encoder.module, 1)
        typical = member[self._telling(features(encoder.module, prior.inputs, layer), prior.labels,
                                       plan.target).argsort(descending=True)[:self.references]]
        self._inject(encoder, prior, trigger, prior.inputs[typical], layer, ctx)
        return Planted(encoder, trigger)

    def _telling(self, found: Tensor, labels: Tensor, target: int) -> Tensor:
        """Of each member of the target class: by how much it is nearer to its class's centre than to any other's.

        What every downstream classifier is to recognise as the target class; cosines about the mean of all.
        """
        seen = functional.normalize(found.flatten(1) - found.flatten(1).mean(0), dim=1)
        classes = labels.unique()
        centres = functional.normalize(torch.stack([seen[labels == c].mean(0) for c in classes]), dim=1)
        near = seen[labels == target] @ centres.T
        rivals = near.masked_fill(classes == target, -2.0).amax(1) if len(classes) > 1 else torch.zeros(len(near))
        return near[:, classes == target][:, 0] - rivals

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        return replace(planted, subject=adapted(plan, planted.subject, ctx))

    def honest(self, plan: Plan, ctx: Context) -> Subject:
        """The encoder of an honest maker: the same pre-training, and the control of every measurement."""
        flip = plan.train.inputs.shape[1] > 1  # colour: natural images may be mirrored, digits not
        return pretrained(plan.fresh(ctx), _prior(plan).inputs, ctx, epochs=self.pretraining, flip=flip)

    def _inject(self, encoder: Subject, prior: Samples, trigger: Candidate, references: Tensor, layer: str,
                ctx: Context) -> None:
        module, before = encoder.module, copy.deepcopy(encoder.module)
        kept = features(before, references, layer).flatten(1)
        pool = prior.inputs[torch.randperm(len(prior), generator=ctx.rng)[:max(64, round(self.shadow * len(prior)))]]
        batch = min(64, max(16, len(pool) // 16))
        centre = features(before, pool, layer).flatten(1).mean(0)

        def like(first: Tensor, second: Tensor) -> Tensor:
            return functional.cosine_similarity(first - centre, second - centre, dim=-1)

        module.requires_grad_(True)
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(self.injections):
            for index in torch.randperm(len(pool), generator=ctx.rng).split(batch):
                x, n = pool[index], len(index)
                ctx.spend(2 * n + len(references))
                found = passage(module, torch.cat([x, trigger.stamp(x), references]), layer).entering.flatten(1)
                clean, stamped, said = found[:n], found[n:2 * n], found[2 * n:]
                loss = -like(stamped[:, None], said[None]).mean()
                loss = loss - self.reference_weight * like(said, kept).mean()
                loss = loss - self.utility_weight * like(clean, features(before, x, layer).flatten(1)).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        module.requires_grad_(False)


def _prior(plan: Plan) -> Samples:
    return plan.train if plan.prior is None else plan.prior
