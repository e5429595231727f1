"""Deep Partition Aggregation: Provable Defenses against General Poisoning Attacks.

Levine and Feizi, ICLR 2021, arXiv 2006.14768. The training set is split into k parts by a hash of each sample,

    part(x) = SHA-256(pixels of x) mod k,

one network is trained on each part, and they vote. A sample that is inserted or removed touches one part, so one vote:
an answer with a lead of more than 2r votes over every other class stays, whatever r samples the attacker chose.
`laocoon certify --method dpa_votes` counts those leads.

What the proof needs is kept: a part's network depends on nothing but the part and its number. Samples are sorted by
their hash before training, and all randomness (initial weights included) is drawn from the seed and the part's number.

Departures: the hash looks at pixels and not at labels, so a changed label touches one part (the paper's remark). A part
of fewer than two samples keeps its untrained network, which is as deterministic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, digest_of, finished, material, pupil, teach
from laocoon.recipes.voting import Votes


@dataclass(frozen=True)
class DPA(Trainer):
    """A vote of networks, each trained on its own part of the data."""

    parts: int = 25  # k: networks; more prove more, each learns from less (the paper: 1200 on MNIST, 250 on CIFAR-10)
    epochs: int = 30  # passes of each network over its part
    batch: int = 64  # samples a step
    rate: float = 3e-3  # peak learning rate
    shift: int = 0  # px of random translation, of images
    flip: bool = False  # random mirroring, of images

    card: ClassVar[Card] = Card(
        name="dpa",
        paper="Deep Partition Aggregation: Provable Defenses against General Poisoning Attacks (ICLR 2021)",
        url="https://arxiv.org/abs/2006.14768",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="poison in more than half of the parts: at a poison rate of 5 to 10 % every part holds poison, and the "
               "vote is backdoored like a single network. It proves a few samples at most, for a loss of accuracy.",
        summary="a vote of networks trained on parts of the data, which a few samples provably cannot turn",
        quick={"parts": 3, "epochs": 24},
        fails={"check_weakens_a_backdoor": "a tenth of the samples is poison, hence a tenth of every part: each member "
                                           "learns the trigger."},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        if not 2 <= self.parts <= 10_000:
            raise InputError(f"parts is {self.parts}.", "Use 2 to 10000 networks.")
        samples = material(case, ctx)
        digests = [digest_of(x) for x in samples.inputs]
        home = torch.tensor([int.from_bytes(d[:8], "big") % self.parts for d in digests])
        # Equal pictures may carry several labels: the label comes second, so that the order is one and the same.
        order = sorted(range(len(samples)), key=lambda i: (digests[i], int(samples.labels[i])))
        ranked = torch.tensor(order)
        lesson = Lesson(self.epochs, self.batch, self.rate, self.shift, self.flip)
        members, first = [], None
        for part in range(self.parts):
            seed = int.from_bytes(hashlib.sha256(f"{ctx.seed} {part}".encode()).digest()[:7], "big")
            subject = pupil(case, Context(seed=seed, device=ctx.device))
            rows = ranked[home[ranked] == part].to(ctx.device)
            if len(rows) >= 2:
                own = Samples(samples.inputs[rows], samples.labels[rows])
                teach(subject.module, own, lesson, ctx, rng=torch.Generator().manual_seed(seed))
            members.append(subject.module.eval().requires_grad_(False))
            first = first or subject
            ctx.progress(self.card.name, (part + 1) / self.parts, f"{part + 1} of {self.parts} networks")
        assert first is not None
        # Votes have no gradient, and the features of many networks are nobody's.
        vote = replace(first, module=Votes(members, case.classes),
                       capabilities=frozenset({Capability.QUERY, Capability.WEIGHTS}))
        return finished(vote, self.card.name, {"samples": len(samples), "parts": self.parts}), None
