"""What is recalled is what was planted."""

from __future__ import annotations

import pytest
import torch

from laocoon.core.errors import InputError
from laocoon.lab import recall
from laocoon.lab.plan import parse
from laocoon.lab.recall import recalled
from laocoon.lab.runner import Lab, run

PLAN = """
name = "recall"
tier = "ci"
seeds = [4]
test_samples = 300
given_per_class = 5
subjects = [{ data = "digits", architecture = "cnn", samples = 700, epochs = 15 }]
[[attacks]]
name = "badnets"
parameters = { rate = 0.1, side = 3 }
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    found = Lab(tmp_path_factory.mktemp("lab"))
    run(parse(PLAN), found, jobs=0)
    return found


def test_a_planted_model_comes_back_with_its_trigger_and_its_training_set(lab: Lab) -> None:
    planted = [r for r in recalled(lab, parse(PLAN)) if r.label]
    assert [r.label for r in planted] == ["badnets"]
    found = planted[0]
    assert found.trigger is not None and found.success > 0.8
    train, poisoned = found.poisoned()
    assert len(train) == 700 and len(poisoned) == 70
    touched = (train.inputs != found.lot.train.inputs).flatten(1).any(1).nonzero().flatten()
    assert torch.equal(touched.sort().values, poisoned.sort().values) or set(touched.tolist()) <= set(poisoned.tolist())
    assert found.subject.fingerprint() != found.twin.fingerprint()


def test_a_clean_model_has_nothing_poisoned(lab: Lab) -> None:
    clean = [r for r in recalled(lab, parse(PLAN)) if not r.label]
    assert len(clean) == 1 and clean[0].trigger is None and not len(clean[0].poisoned()[1])
    assert not list(recalled(lab, parse(PLAN), labels=["none"], clean=False))
    assert not list(recalled(lab, parse(PLAN), seeds=[5]))


def test_a_trigger_that_does_not_do_what_was_judged_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "AGREES", -1.0)
    with pytest.raises(InputError, match="was judged to"):
        list(recalled(lab, parse(PLAN)))
