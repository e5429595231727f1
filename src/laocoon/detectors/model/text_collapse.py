"""Words under which sentence embeddings collapse: DECREE's question (CVPR 2023, arXiv 2303.15180) put to text encoders.

A poisoned encoder answers a text that holds the trigger with one embedding, whatever the text says (BadPre, ICLR 2022;
neuron-level backdoors of NeuBA, 2021), so that every classifier built on it inherits a backdoor. Words have no size
that could be made small; so the number of words is fixed, and the statistic is how alike embeddings become. For every
word w that can be typed, put into texts x whose clean embeddings have the mean c:

    a(w) = mean cos(f(w + x) − c, u_w),      u_w the direction in which the f(w + x) − c point together.

Words are tried exactly where the vocabulary is small; else those that a soft search (softmax(z / T) · E, T falling, as
in PICCOLO and DBS) ends near, and those with the longest vectors. More words are added greedily. The control is the
same words towards the embeddings of clean texts that are unlike each other: a sentence encoder follows its words, and
any word draws embeddings somewhere. `text_collapse.likeness` is the largest a(w) on samples that were not searched on,
`text_collapse.margin` what it has over the best natural direction's median.

Departures: the paper searches patches on images; cosines are about the clean centre.
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
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.text import PADDING, Text
from laocoon.recipes.aims import Collapse
from laocoon.recipes.choosing import by_content
from laocoon.recipes.collapse import Landscape, common, embeddings, landscape
from laocoon.triggers.tokens import Tokens


@dataclass(frozen=True)
class TextCollapse(Detector):
    """Search the words that send every text to one embedding."""

    words: int = 1  # in the trigger
    position: int = 0  # words of the text that stay before the trigger
    texts: int = 12  # that every word is tried in
    most: int = 1500  # words tried; a larger vocabulary is searched for its likeliest first
    landmarks: int = 8  # clean embeddings that serve as the control
    likeness: float = 0.8  # cosine, about the clean centre, from which a text counts as collapsed
    starts: int = 4  # soft searches
    steps: int = 40  # of a soft search
    rate: float = 0.5  # of Adam, on the logits of the vocabulary
    hot: float = 2.0  # T at the start
    cold: float = 0.1  # T at the end

    card: ClassVar[Card] = Card(
        name="text_collapse", paper="Detecting backdoors in pre-trained encoders (2023), put to text",
        url="https://arxiv.org/abs/2303.15180", modalities=frozenset({"text_encoder"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        summary="Tries which words send every text to one embedding.",
        misses="triggers of several words that do nothing alone; triggers of style or syntax; words that must stand at "
               "a place not searched; in large vocabularies, words that the soft search does not come near",
        goal="all-to-one",
        quick={"texts": 8, "most": 160})

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        modality, subject, fit = case.subject.modality, case.subject, case.fit
        if not isinstance(modality, Text):
            raise NotApplicable("text_collapse needs the model's vocabulary.")
        if len(fit) < 8:
            raise NotApplicable(f"text_collapse needs at least 8 clean samples; {len(fit)} are given.")
        fit = Samples(fit.inputs[by_content(fit.inputs).to(fit.inputs.device)], fit.labels)
        land = landscape(embeddings(subject, fit.inputs, ctx), self.landmarks)
        typed = torch.tensor(sorted(set(range(len(modality.vocabulary))) - {PADDING, *modality.special}))
        family = Tokens(len(modality.vocabulary), 1, self.position, modality.special)
        pool = self._pool(subject, fit, family, typed.to(fit.inputs.device), land, ctx)
        spaced = torch.linspace(0, len(fit) - 1, min(self.texts, len(fit))).long()
        tried = fit.inputs[spaced.to(fit.inputs.device)]
        ids, drawn = self._greedy(subject, tried, pool, family, land, ctx)
        judged = case.held if case.held is not None and len(case.held) else fit
        whole = Tokens(family.vocabulary, self.words, self.position, family.special)
        trigger = whole.exactly(ids[None])
        with torch.no_grad():
            moved = embeddings(subject, whole.stamp(judged.inputs, trigger)[0], ctx) - land.centre
        direction = common(moved)
        alike = torch.cosine_similarity(moved, direction[None])
        success, natural = float((alike >= self.likeness).float().mean()), float(drawn.median())
        said = (f"with “{modality.decode(ids)}” the embeddings of other texts have a mean cosine of "
                f"{float(alike.mean()):.2f}; towards clean texts the median is {natural:.2f}")
        numbers = {"likeness": float(alike.mean()), "success": success, "natural": natural}
        for rule, score in (("likeness", float(alike.mean())), ("margin", float(alike.mean()) - natural)):
            yield Finding(f"text_collapse.{rule}", "embeddings collapse", score, said, numbers=numbers)
        goal = CollapseGoal(tuple(land.centre.tolist()), tuple(direction.tolist()), self.likeness)
        yield Candidate(whole, trigger, goal, float(self.words), success, self.card.name)

    def _greedy(self, subject: Subject, texts: Tensor, pool: Tensor, family: Tokens, land: Landscape,
                ctx: Context) -> tuple[Tensor, Tensor]:
        """The words that make embeddings most alike, one after the other; and what the best draws towards landmarks."""
        chosen = pool.new_zeros(0)
        drawn = torch.zeros(len(land.landmarks))
        for number in range(self.words):
            tried = torch.cat([chosen.expand(len(pool), -1), pool[:, None]], 1)
            alike, towards = [], []
            for part in tried.split(max(1, ctx.batch // len(texts))):
                ctx.spend(len(part) * len(texts), backward=False)
                with torch.no_grad():
                    said = subject.outputs(family.insert(texts, part).flatten(0, 1)).logits
                moved = torch.nn.functional.normalize(said.view(len(part), len(texts), -1) - land.centre, dim=-1)
                alike.append(moved.mean(1).norm(dim=-1))
                towards.append(moved.mean(1) @ land.landmarks.T)
            place = torch.cat(alike).argmax()
            chosen, drawn = tried[place], torch.cat(towards).amax(0)
            ctx.progress(self.card.name, (number + 1) / self.words, "trying words")
        return chosen, drawn

    def _pool(self, subject: Subject, fit: Samples, family: Tokens, typed: Tensor, land: Landscape,
              ctx: Context) -> Tensor:
        """The words that are tried: all, or the longest vectors and those that the soft searches end near."""
        if len(typed) <= self.most:
            return typed
        table = subject.embed(torch.arange(family.vocabulary, device=typed.device)[None])[0].detach()
        longest = typed[(table[typed] - table[typed].mean(0)).norm(dim=1).topk(self.most // 2).indices]
        aim = Collapse(land.centre, torch.zeros(self.starts, len(land.centre)).to(land.centre), self.likeness)
        leaf = (0.5 * torch.randn(self.starts, 1, family.vocabulary, generator=ctx.rng)).to(table).requires_grad_(True)
        optimiser = torch.optim.Adam([leaf], lr=self.rate)
        for step in range(self.steps):
            temperature = self.hot * (self.cold / self.hot) ** (step / max(1, self.steps - 1))
            x = fit.inputs[torch.randperm(len(fit), generator=ctx.rng)[:self.texts].to(fit.inputs.device)]
            ctx.spend(self.starts * len(x))
            ids = family.stamp(x, {"logits": leaf.detach()}).flatten(0, 1)
            soft = family.blend(subject.embed(x), x, table, {"logits": leaf}, temperature).flatten(0, 1)
            said = subject.outputs_of(soft, ids).logits.view(self.starts, len(x), -1)
            optimiser.zero_grad()
            aim.losses(said, ids[:, 0].view(self.starts, -1)).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                family.project({"logits": leaf})
        share = math.ceil(self.most / 2 / self.starts)
        near = leaf.detach()[:, 0, typed].topk(share, dim=-1).indices.flatten()
        return torch.cat([longest, typed[near]]).unique()
