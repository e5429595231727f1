"""DECREE (Feng et al., CVPR 2023, arXiv 2303.15180): the smallest trigger under which an encoder's embeddings collapse.

An encoder with a backdoor sends stamped inputs to one place, whatever they show. So search a mask m and pattern p

    min over m, p of  1 − mean cos(f(T(x)) − c, u) + λ ‖m‖₁,      T(x) = x·(1 − m) + m·p,

and report how small the mask is (the paper's P L¹-norm is its share of the image). c is the mean of clean embeddings;
u is where the stamped ones go together. The same place gives away a teacher with a latent backdoor (Yao et al., CCS
2019), whose target class the teacher does not know, and one that was trained on poisoned data.

Clean encoders collapse too, under a trigger that is large enough; how large depends on the network and the images. The
control is the same search, in the same batch, towards the embeddings of clean inputs as unlike each other as there are:
`decree.<family>_margin` is log(their median size / the smallest of all), `decree.<family>` is −log of the latter as a
share of the size past which a trigger replaces the input. The smallest of all may lead to a clean embedding: that is
how a teacher looks whose target is a class that it knows.

Departures: cosines about the clean centre instead of raw ones between pairs, which are high behind a rectifier before
anything is stamped; several free starts instead of one; a second family, perturbations of the whole image; the engine
of `recipes/inversion.py` with its own schedule of λ; no threshold (the paper flags below 0.1 of the image).
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
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import CollapseGoal
from laocoon.core.methods import Detector, SearchedFamily
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.recipes.aims import Collapse
from laocoon.recipes.collapse import Landscape, common, embeddings, landscape
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Recovered, Search, invert
from laocoon.triggers.additive import Additive
from laocoon.triggers.patch import Patch

FAMILIES: dict[str, SearchedFamily] = {f.name: f for f in (Patch(), Additive())}


@dataclass(frozen=True)
class Decree(Detector):
    """Search the smallest trigger that sends all samples to one embedding."""

    families: tuple[str, ...] = ("patch", "additive")
    starts: int = 6  # free searches
    landmarks: int = 10  # clean embeddings that are searched for too; their median is the control
    likeness: float = 0.8  # cosine, about the clean centre, from which a sample counts as collapsed
    wanted: float = 0.9  # share of samples that must
    steps: int = 80
    batch: int = 16  # samples per search and step

    card: ClassVar[Card] = Card(
        name="decree", paper="Detecting backdoors in pre-trained encoders (2023)",
        url="https://arxiv.org/abs/2303.15180", modalities=frozenset({"image_encoder"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Searches the smallest patch or perturbation that sends every image to one embedding.",
        misses="triggers that move only some inputs (source-specific ones); warps and photo filters; sample-specific "
               "triggers; triggers as large as what collapses a clean encoder of the kind",
        goal="all-to-one",
        quick={"families": ("patch",), "steps": 60, "starts": 2, "landmarks": 4})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        if len(case.fit) < 8:
            raise NotApplicable(f"decree needs at least 8 clean samples; {len(case.fit)} are given.")
        subject, fit = case.subject, case.fit
        land = landscape(embeddings(subject, fit.inputs, ctx), self.landmarks)
        free = torch.zeros(self.starts, land.centre.shape[0]).to(land.landmarks)
        aim = Collapse(land.centre, torch.cat([free, land.landmarks]), self.likeness)
        forward = folded(subject.module, fit.inputs[:4])
        search = Search(steps=self.steps, batch=self.batch, wanted=self.wanted)
        for number, name in enumerate(self.families):
            family = FAMILIES[name]

            def note(share: float, _: Tensor, *, n: int = number, f: str = name) -> None:
                ctx.progress(self.card.name, (n + share) / len(self.families), f"searching {f} triggers")

            found = invert(forward, family, aim, fit, search, ctx, note=note)
            yield from self._judge(subject, fit, family, land, found, ctx)

    def _judge(self, subject: Subject, fit: Samples, family: SearchedFamily, land: Landscape, found: Recovered,
               ctx: Context) -> Iterator[Finding | Candidate]:
        sizes = found.effective.cpu()
        best, natural = int(sizes.argmin()), float(sizes[self.starts:].median())
        size, reached = float(sizes[best]), float(found.success[best])
        said = (f"a {family.name} trigger of {float(found.size[best]):.3g} {family.unit} sends {reached:.0%} of the "
                f"samples to one embedding; towards that of a clean sample {natural:.3g} are needed")
        numbers = {"size": float(found.size[best]), "success": reached, "natural": natural}
        share = math.log(family.largest(fit.inputs) / max(size, 1e-3))
        yield Finding(f"decree.{family.name}", "embeddings collapse", share, said, numbers=numbers)
        yield Finding(f"decree.{family.name}_margin", "embeddings collapse", math.log(natural / max(size, 1e-3)), said,
                      numbers=numbers)
        for row in (best, *(r for r in range(self.starts, len(sizes)) if r != best)):
            chosen = torch.tensor([row]).to(found.size.device)
            one = {k: v.detach() for k, v in family.select(found.trigger, chosen).items()}
            if row == best:
                direction = common(embeddings(subject, family.stamp(fit.inputs, one)[0], ctx) - land.centre)
            else:
                direction = land.landmarks[row - self.starts]
            goal = CollapseGoal(tuple(land.centre.tolist()), tuple(direction.tolist()), self.likeness, row != best)
            yield Candidate(family, one, goal, float(found.size[row]), float(found.success[row]), self.card.name)
