"""Outliers of the embedding table, after E-PUR (Zhang et al., Fine-mixing, EMNLP Findings 2022, arXiv 2210.09545).

Attacks on embeddings (RIPPLe, Kurita et al., ACL 2020; EP, Yang et al., NAACL 2021) write the backdoor into the rows of
a few rare words, which end far from the rows of other rare words. E-PUR ranks words by how far a row has moved from the
pre-trained table, divided by the logarithm of the word's frequency. Here no pre-trained table is at hand: with e_w the
row, m the median row and the words that no clean text holds as peers,

    z_w = (‖e_w − m‖ − median over peers) / (1.4826 · MAD over peers),

and the words of largest z are put into clean texts:  effect(t) = largest mean margin of t that one of them gives, in
units of the clean median margin, times z_w / (z_w + 3): what lies no further than its peers does not count.

Departures: the above; a finding for each class in place of a list of words.
"""

from __future__ import annotations

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
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.modalities.text import Text
from laocoon.recipes.choosing import settled
from laocoon.recipes.margins import logit_scale
from laocoon.recipes.token_search import inserted_margins, judged, shortened, some
from laocoon.triggers.tokens import Tokens

CAP = 3.0  # clean margins, past which a text counts no more
LEAST = 20  # peers
USUAL = 3.0  # z that is nothing strange


@dataclass(frozen=True)
class EmbeddingOutlier(Detector):
    """Which words' vectors lie far from their peers', and do they rule the answer?"""

    words: int = 48  # of largest z, that are tried
    texts: int = 32  # clean texts that they are put into

    card: ClassVar[Card] = Card(
        name="embedding_outlier",
        paper="Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models (EMNLP Findings 2022)",
        url="https://arxiv.org/abs/2210.09545",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.GRADIENT, Capability.CLEAN}),
        misses="triggers of common words, phrases, syntax and style; backdoors in other layers than the lookup; rows "
               "that were kept at an ordinary distance.",
        summary="rare words whose vectors lie far from their peers', and send every text to one class",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        text, subject, device = case.subject.modality, case.subject, case.fit.inputs.device
        if not isinstance(text, Text):
            raise NotApplicable("embedding_outlier needs the model's vocabulary.")
        fit = settled(case.fit, device)
        scale = logit_scale(subject, fit.inputs, fit.labels, ctx).margin
        peers = torch.ones(len(text.vocabulary), dtype=torch.bool, device=device)
        peers[list(text.special)] = False
        peers[fit.inputs.flatten()] = False
        if int(peers.sum()) < LEAST:
            raise NotApplicable(f"{int(peers.sum())} words of the vocabulary are in no clean text; {LEAST} are needed.")
        z = standing(subject.embed(torch.arange(len(peers), device=device)[None])[0].detach().float(), peers)
        chosen = peers.nonzero().flatten()
        chosen = chosen[z[chosen].argsort(descending=True, stable=True)[:self.words]]
        family = Tokens(len(text.vocabulary), 1, 0, text.special)
        texts = shortened(subject, some(fit, self.texts, ctx), 1, ctx)
        found = inserted_margins(subject, texts, chosen[:, None], family, ctx, CAP * scale).nan_to_num(0.0)
        weight = (z[chosen] / (z[chosen] + USUAL)).clamp_min(0.0)
        held = case.held if case.held is not None and len(case.held) else fit
        for t in range(subject.classes):
            best = int((found[:, t].clamp_min(0) * weight).argmax())
            ids = chosen[best].view(1, 1)
            seen = judged(subject, family, ids, t, held, scale, ctx)
            if seen is None:
                continue
            word, far = text.decode(ids), float(z[chosen[best]])
            yield Finding("embedding_outlier.effect", f"class {t}", seen.margin * float(weight[best]),
                          f"“{word}” lies {far:.1f} deviations beyond its peers and sends {seen.success:.0%} of other "
                          f"texts to class {t}", (t,), numbers={"success": seen.success, "z": far})
            yield Candidate(family, family.exactly(ids), all_to_one(t, subject.classes), 1.0, seen.success,
                            self.card.name)


def standing(table: Tensor, peers: Tensor) -> Tensor:
    """z of every row [vocabulary, width] against its peers, [vocabulary]."""
    far = (table - table[peers].median(0).values).norm(dim=1)
    own = far[peers]
    middle = own.median()
    spread = 1.4826 * (own - middle).abs().median()
    return (far - middle) / torch.maximum(spread, 1e-3 * middle).clamp_min(1e-9)
