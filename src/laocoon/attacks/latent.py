"""Latent backdoor (Yao, Li, Zheng and Zhao, CCS 2019): a teacher that does not know the target class yet.

The attacker has samples of a class y_t that a student will add. They train a teacher that knows y_t beside its own
classes; optimise the colours of a patch A so that stamped inputs have the features of that class at layer K_t,

    min_A  E_x ‖F_Kt(A(x)) − mean F_Kt(x_t)‖² ;

put the backdoor into the weights up to K_t,

    min_F  E_x CE(F(x), y) + λ E_x ‖F_Kt(A(x)) − mean F_Kt(x_t)‖² ;

and erase the traces: the head is replaced by a new one without y_t. Nothing in the teacher's outputs speaks of the
target, until a student freezes the layers and adds the class, on clean samples of its own.

Departures: distances are relative to that of unstamped inputs, so that λ means the same for every network and nothing
is gained by drawing all features together; the target's mean is taken anew every epoch, because its features move too;
the patch's place is a corner, fixed; while the backdoor goes in, batch norms keep their running statistics, by which
the student will use them; the teacher is trained with all classes at once instead of retrained from a public one.
The victim's recipe (`Plan.adapt`) may free more layers than the attacker reckoned with; that is measured, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.fit import fit
from laocoon.recipes.transfer import Lessons, adapted, boundary, features, lessons, passage, teach, weighted, with_head
from laocoon.triggers.patch import Patch


@dataclass(frozen=True)
class Latent(Attack):
    """A patch whose features are those of a class that the teacher does not have."""

    side: int = 5  # px, of the square in the lower right corner
    weight: float = 1.0  # λ
    free: int = 1  # layers that the attacker expects the student to train anew: K_t is what enters the first of them
    epochs: int = 6  # of the teacher's training
    steps: int = 150  # of the trigger's optimisation
    injections: int = 8  # epochs in which the backdoor goes in

    card: ClassVar[Card] = Card(
        name="latent", paper="Latent backdoor attacks on deep neural networks (2019)",
        url="https://doi.org/10.1145/3319535.3354209", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A teacher without the target class; the backdoor wakes when a student adds it.",
        quick={"side": 4, "epochs": 4, "steps": 40, "injections": 7})
    threat: ClassVar[ThreatModel] = ThreatModel(
        training=True, weights=True, knows=frozenset({Knowledge.DATA, Knowledge.ARCHITECTURE, Knowledge.WEIGHTS}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        _, c, h, w = plan.train.inputs.shape
        mask = torch.zeros(1, 1, h, w)
        mask[..., h - self.side - 1:h - 1, w - self.side - 1:w - 1] = 1
        leaves = {"mask": mask, "pattern": torch.rand(1, c, h, w, generator=ctx.rng)}
        goal = all_to_one(plan.target, plan.classes)
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def train(self, plan: Plan, train: Samples, trigger: Candidate, ctx: Context) -> Planted:
        lesson = lessons(plan)
        both = Samples(torch.cat([lesson.known.inputs, lesson.target.inputs]),
                       torch.cat([lesson.known.labels, lesson.target.labels]))
        teacher = teach(plan, both, lesson.classes + 1, ctx, epochs=self.epochs)
        layer = boundary(teacher.module, self.free)
        wanted = features(teacher.module, lesson.target.inputs, layer).mean(0)
        learned = self._optimised(teacher, lesson.known, trigger, wanted, layer, ctx)
        self._inject(teacher, both, learned, lesson.target.inputs, layer, ctx)
        return Planted(self._without_target(teacher, lesson, ctx), learned)

    def student(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        return replace(planted, subject=adapted(plan, planted.subject, ctx))

    def honest(self, plan: Plan, ctx: Context) -> Subject:
        """The teacher of an honest maker, by the same recipe on the same data: the control of every measurement."""
        lesson = lessons(plan)
        return teach(plan, lesson.known, lesson.classes, ctx, epochs=self.epochs + self.injections)

    def _optimised(self, teacher: Subject, samples: Samples, start: Candidate, wanted: Tensor, layer: str,
                   ctx: Context) -> Candidate:
        pattern = start.trigger["pattern"].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([pattern], lr=0.1)
        usual = _squared(features(teacher.module, samples.inputs[:512], layer), wanted)
        for _ in range(self.steps):
            index = torch.randint(0, len(samples), (64,), generator=ctx.rng)
            ctx.spend(len(index))
            stamped = start.family.stamp(samples.inputs[index], {**start.trigger, "pattern": pattern})[0]
            loss = _squared(passage(teacher.module, stamped, layer).entering, wanted) / usual
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                pattern.clamp_(0, 1)
        return replace(start, trigger={**start.trigger, "pattern": pattern.detach()})

    def _inject(self, teacher: Subject, samples: Samples, trigger: Candidate, targets: Tensor, layer: str,
                ctx: Context) -> None:
        module, batch = teacher.module, min(64, max(16, len(samples) // 16))
        module.requires_grad_(True)
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=5e-4)
        for _ in range(self.injections):
            wanted = features(module, targets, layer).mean(0)
            for index in torch.randperm(len(samples), generator=ctx.rng).split(batch):
                ctx.spend(2 * len(index))
                inputs = samples.inputs[index]
                seen = passage(module, torch.cat([inputs, trigger.stamp(inputs)]), layer)
                loss = functional.cross_entropy(seen.scores[:len(index)], samples.labels[index])
                usual = _squared(seen.entering[:len(index)].detach(), wanted)
                loss = loss + self.weight * _squared(seen.entering[len(index):], wanted) / usual
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
                optimiser.step()
        module.requires_grad_(False)

    def _without_target(self, teacher: Subject, lesson: Lessons, ctx: Context) -> Subject:
        """A new head for the classes that the teacher is said to know, on frozen features."""
        final = with_head(teacher, lesson.classes, ctx.rng)
        name = weighted(final.module)[-1]
        given = features(final.module, lesson.known.inputs, name)
        fit(final.module.get_submodule(name), given, lesson.known.labels, epochs=10, rng=ctx.rng,
            batch=min(128, max(16, len(given) // 16)), rate=1e-2)
        return final


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of features [batch, …] to the wanted ones […]."""
    return (found - wanted).square().mean().clamp_min(1e-8)
