"""One row for every sample, also for those that the methods did not see: these are judged by their neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laocoon.core.context import Context
from laocoon.core.sift_report import KEPT, MISLABELLED, POISON, SampleTable
from laocoon.core.subject import Subject
from laocoon.files.training_set import TrainingSet
from laocoon.recipes.representations import last_layer
from laocoon.recipes.wrong_labels import nearest_rows
from laocoon.verdict.data_samples import Sorted
from laocoon.verdict.data_statistics import Judged, View

ASKED = 5  # neighbours of the same label that vote on a sample
AROUND = 10  # neighbours of any label that say whether its label is right
CHUNK = 2048  # samples whose features are in memory at a time


def fill_in(data: TrainingSet, places: Tensor, samples: Sorted, judged: Judged, subject: Subject,
            ctx: Context) -> SampleTable:
    """The table of all samples. `places`: those that `samples` and `judged` speak of."""
    n, at = len(data), places.numpy()
    labels = np.ascontiguousarray(data.labels)
    table = SampleTable(
        rows=np.asarray(data.rows), labels=labels, predictions=labels.copy(), confidence=np.full(n, np.nan, np.float32),
        nearest=labels.copy(), suspicion=np.zeros(n, np.float32), p_values=np.ones(n), q_values=np.ones(n),
        kinds=np.full(n, KEPT, np.int8), scored=np.zeros(n, np.bool_),
        methods={m: np.full(n, np.nan, np.float32) for m in judged.scores})
    table.suspicion[at], table.kinds[at] = samples.suspicion.numpy(), samples.kinds.numpy()
    table.p_values[at], table.q_values[at], table.scored[at] = samples.p.numpy(), samples.q.numpy(), True
    for name, scores in judged.scores.items():
        table.methods[name][at] = scores.numpy()
    view = judged.view
    if view is None:
        return table
    own = torch.from_numpy(labels)[places]
    table.predictions[at] = view.predictions.numpy()
    table.confidence[at] = view.logits.softmax(1)[torch.arange(len(own)), own].numpy()
    if samples.labelling is not None:
        table.nearest[at] = samples.labelling.nearest.numpy()
    rest = torch.ones(n, dtype=torch.bool)
    rest[places] = False
    for part in rest.nonzero().flatten().split(CHUNK) if bool(rest.any()) else ():
        _judge_by_neighbours(part, data, own, samples, view, subject, table, ctx)
    return table


def _judge_by_neighbours(part: Tensor, data: TrainingSet, labels: Tensor, samples: Sorted, view: View,
                         subject: Subject, table: SampleTable, ctx: Context) -> None:
    """A sample takes the mean suspicion of the nearest ones of its label, and is flagged where most of them are."""
    known = last_layer(subject, data.inputs(part), ctx)
    centre = view.features.mean(0)
    features, pool = known.features - centre, view.features - centre
    told = torch.from_numpy(data.labels[part.numpy()])
    predictions, at = known.logits.argmax(1), part.numpy()
    kinds = torch.full((len(part),), KEPT)
    around = labels[nearest_rows(features, pool, AROUND)]
    wrong = (predictions != told) & ((around == told[:, None]).float().mean(1) < 0.5)
    for label in told.unique().tolist():
        mine, theirs = (told == label).nonzero().flatten(), (labels == label).nonzero().flatten()
        if not len(theirs):
            continue
        near = theirs[nearest_rows(features[mine], pool[theirs], ASKED)]
        table.suspicion[at[mine]] = samples.suspicion[near].mean(1).float().numpy()
        table.p_values[at[mine]] = samples.p[near].log().mean(1).exp().numpy()
        table.q_values[at[mine]] = samples.q[near].log().mean(1).exp().numpy()
        poisoned = (samples.kinds[near] == POISON).double().mean(1) > 0.5
        kinds[mine[poisoned]] = POISON
    kinds[wrong] = MISLABELLED
    table.kinds[at], table.predictions[at] = kinds.numpy(), predictions.numpy()
    table.nearest[at] = around.mode(1).values.numpy()
    table.confidence[at] = known.logits.softmax(1)[torch.arange(len(told)), told].numpy()
