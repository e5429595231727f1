"""Random probes of the head, after HTell (Fast and Lightweight Backdoor Detection via Head Random Probing).

Yu et al., arXiv 2605.18908: the head of a backdoored model answers random latent vectors with the target class more
often than with any other. For vectors h drawn at random, the share of class c is

    s_c = P(argmax_k w_k·h + b_k = c),    score = log(C · max_c s_c),

0 when all classes are equally likely. The answer to h does not change with the scale of the logits.

Departures: written from the abstract; instead of probes made for each architecture there are four kinds, each a finding
of its own (signed, as after a layer norm; positive, as after a pooled ReLU; sparse, as after a ReLU; and positive ones
without the bias), and models are compared with reference models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from laocoon.recipes.heads import LinearHead, linear_head

WORK = 4e8  # multiply-adds for one kind of probes


@dataclass(frozen=True)
class HeadProbes(Detector):
    """Which class a head prefers when it is asked nonsense."""

    probes: int = 4096  # of each kind, fewer for very large heads
    alive: float = 0.1  # share of features that are not zero in sparse probes
    least_classes: int = 3

    card: ClassVar[Card] = Card(
        name="head_probes",
        paper="Fast and Lightweight Backdoor Detection via Head Random Probing (HTell, 2026)",
        url="https://arxiv.org/abs/2605.18908",
        modalities=frozenset({"image"}),
        needs=frozenset({Capability.WEIGHTS}),
        misses="backdoors whose head was frozen or retrained after planting, all-to-all backdoors, classes that are "
               "frequent in the training data; trivially evaded by an attacker who knows of it.",
        summary="the class that random latent vectors are sent to",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        classes = case.subject.classes
        if classes < self.least_classes:
            raise NotApplicable(f"head_probes needs {self.least_classes} classes or more; the model has {classes}.")
        head = linear_head(case.subject, ctx)
        width = head.weight.shape[1]
        count = int(max(256, min(self.probes, WORK / (width * classes))))
        signed = torch.randn(count, width, generator=ctx.rng)
        mask = (torch.rand(count, width, generator=ctx.rng) < self.alive).float()
        kinds = {"signed": (signed, True), "positive": (signed.abs(), True), "sparse": (signed.abs() * mask, True),
                 "unbiased": (signed.abs(), False)}
        for rule, (latent, biased) in kinds.items():
            logits = latent @ head.weight.T + (head.bias if biased else 0.0)
            yield from self._share(rule, logits, head)
            if rule == "positive":
                yield from self._lead(logits, head)

    def _share(self, rule: str, logits: Tensor, head: LinearHead) -> Iterator[Finding]:
        classes = logits.shape[1]
        share = torch.bincount(logits.argmax(1), minlength=classes).float() / len(logits)
        top = int(share.argmax())
        yield Finding(f"head_probes.{rule}", f"class {top}", math.log(float(share[top]) * classes),
                      f"{float(share[top]):.0%} of random {rule} latent vectors go to class {top}, of {classes} "
                      f"(layer {head.layer!r})", (top,), numbers={"share": float(share[top])})

    def _lead(self, logits: Tensor, head: LinearHead) -> Iterator[Finding]:
        """The mean logit of a class, in units of the logits' own spread over probes: finer than a count."""
        mean = logits.mean(0)
        spread = (logits - logits.mean(1, keepdim=True)).std().clamp_min(1e-12)
        lead = (mean - mean.quantile(0.5)) / spread
        top = int(lead.argmax())
        yield Finding("head_probes.lead", f"class {top}", float(lead[top]),
                      f"random latent vectors give class {top} {float(lead[top]):.2f} spreads over the median class "
                      f"(layer {head.layer!r})", (top,), numbers={"lead": float(lead[top])})
