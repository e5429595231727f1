"""From an input that fired back to the samples that planted it."""

from __future__ import annotations

import pytest
import torch

from laocoon.core.errors import InputError, NotApplicable
from laocoon.files.training_set import in_memory
from laocoon.testing.twins import twins
from laocoon.verdict.trace import sources, trace


def test_the_poison_is_found_from_one_input() -> None:
    t = twins("image")
    data, truth = in_memory(t.implant.train, 10), set(t.implant.poisoned.tolist())
    inputs = t.plan.test.inputs[t.plan.test.labels != t.plan.target][:4]
    recalls = []
    for x in inputs:
        found = trace(data, t.planted.subject, t.implant.trigger.stamp(x[None])[0])
        rows = {s.row for s in found.sources}
        assert found.label == t.plan.target and found.exit_code == 1 and found.trigger.low > 0.8
        assert len(rows & truth) >= 0.9 * len(rows)
        recalls.append(len(rows & truth) / len(truth))
    assert sum(recalls) / len(recalls) > 0.9


def test_a_clean_input_confirms_nothing() -> None:
    t = twins("image")
    data = in_memory(t.implant.train, 10)
    for x in t.plan.test.inputs[:5]:
        found = trace(data, t.planted.subject, x)
        assert found.trigger is None and found.exit_code in (0, 3)


def test_sources_lie_where_the_input_does() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=rng).double()
    features[:60] += 9 * torch.eye(8)[0]
    found = sources(features, 9 * torch.eye(8)[0].double(), 0.05)
    assert bool(found.inside[:60].all()) and int(found.inside[60:].sum()) <= 6


def test_usage() -> None:
    t = twins("image")
    data = in_memory(t.plan.train, 10)
    with pytest.raises(InputError, match="shape"):
        trace(data, t.clean.subject, torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="label"):
        trace(data, t.clean.subject, t.plan.test.inputs[0], label=99)
    with pytest.raises(NotApplicable, match="needed"):
        few = data.samples(torch.arange(40))
        trace(in_memory(few, 10), t.clean.subject, t.plan.test.inputs[0])
