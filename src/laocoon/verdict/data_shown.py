"""What a page shows of a sift: the most suspicious samples, clean ones beside them, a map of the features."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from laocoon.core.context import Context
from laocoon.core.sift_report import KEPT, MISLABELLED, POISON, Exhibits
from laocoon.core.subject import Modality
from laocoon.files.training_set import TrainingSet
from laocoon.modalities.shown import in_words
from laocoon.verdict.data_samples import Sorted
from laocoon.verdict.data_shares import shares
from laocoon.verdict.data_statistics import Judged
from laocoon.verdict.data_trigger import Shown

PICTURES = 24
POINTS = 1200


def exhibits(data: TrainingSet, places: Tensor, samples: Sorted, judged: Judged, trigger: Shown | None,
             ctx: Context) -> Exhibits:
    """Samples and points. Poison is shown beside the unsuspected samples of other labels that are most like it."""
    poison, odd = (_worst(samples, kind) for kind in (POISON, MISLABELLED))
    labels = torch.from_numpy(data.labels)[places]
    suspects = data.inputs(places[poison]) if len(poison) else None
    clean = None
    known = shares(data.modality, data.inputs(places[:1]))
    if suspects is not None and known is not None:
        pool = ((samples.kinds == KEPT) & (labels != labels[poison].mode().values)).nonzero().flatten()
        pool = pool[torch.randperm(len(pool), generator=ctx.rng)[:2000]]
        if len(pool):
            others = data.inputs(places[pool])
            clean = others[known.nearest(suspects, others)]
    points = kinds = None
    if judged.view is not None:
        label = int(labels[poison].mode().values) if len(poison) else int(labels[samples.suspicion.argmax()])
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=ctx.rng)[:POINTS]]
        if len(members) >= 8:
            points, kinds = _plane(judged.view.features[members]), samples.kinds[members]
    stamped = None
    if trigger is not None:
        others = ((samples.kinds == KEPT) & (labels != trigger.found.label)).nonzero().flatten()[:9]
        stamped = data.inputs(places[others])
    rows = lambda chosen: tuple(int(data.rows[i]) for i in places[chosen].tolist())  # noqa: E731
    whole = Exhibits(pictures=suspects, clean=clean, oddities=data.inputs(places[odd]) if len(odd) else None,
                     poison_rows=rows(poison), odd_rows=rows(odd), points=points, point_kinds=kinds,
                     candidate=None if trigger is None else trigger.candidate, stamped=stamped)
    return whole if data.modality.name == "image" else _told(whole, data.modality)


def _told(shown: Exhibits, modality: Modality) -> Exhibits:
    """The same in words."""
    def words(samples: Tensor | None) -> tuple[str, ...]:
        return () if samples is None else tuple(in_words(modality, x) for x in samples)

    pairs: tuple[tuple[str, str], ...] = ()
    if shown.candidate is not None and shown.stamped is not None and len(shown.stamped):
        pairs = tuple(zip(words(shown.stamped), words(shown.candidate.stamp(shown.stamped)), strict=True))
    return replace(shown, pictures=None, clean=None, oddities=None, stamped=None, words=words(shown.pictures),
                   clean_words=words(shown.clean), odd_words=words(shown.oddities), stamped_words=pairs[:3])


def _worst(samples: Sorted, kind: int) -> Tensor:
    """The most suspicious samples of a kind, in the order in which the report lists them."""
    rows = (samples.kinds == kind).nonzero().flatten()
    return rows[samples.suspicion[rows].argsort(descending=True, stable=True)[:PICTURES]]


def _plane(features: Tensor) -> Tensor:
    """First two principal components, [n, 2]."""
    centred = features.double() - features.double().mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    return centred @ v[:2].T
