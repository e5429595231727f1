"""Trials on Ray: the same results as in one process, also when a worker is killed at its work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from laocoon.core.errors import InputError
from laocoon.lab.plan import parse
from laocoon.lab.runner import Lab, Progress, run

pytest.importorskip("ray")

PLAN = """
name = "cluster"
tier = "ci"
test_samples = 60
given_per_class = 4
subjects = [{ data = "digits", architecture = "cnn", samples = 300, epochs = 2 }]
attacks = [{ name = "badnets", parameters = { rate = 0.2, side = 3 } }]
defences = [{ name = "head_statistics" }]
"""


def working() -> list[int]:
    """Processes of this machine that do a trial for Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_performed"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(240)
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    killed: list[int] = []

    def watch(progress: Progress) -> None:
        if not killed and progress.count("running"):
            for process in working():
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    plan = parse(PLAN)
    last = run(plan, Lab(tmp_path / "ray"), ray="auto", watch=watch)
    torch.set_num_threads(1)
    alone = run(plan, Lab(tmp_path / "alone"), jobs=0)
    assert killed, "no worker was seen"
    assert last.count("done") == alone.count("done") == last.total == 4, [r.reason for r in last.rows.values()]
    for digest, one in alone.rows.items():
        other = last.rows[digest]
        assert (one.artefacts, one.result.get("judged")) == (other.artefacts, other.result.get("judged"))
        assert other.worker.startswith("ray")
    again = run(plan, Lab(tmp_path / "ray"), ray="auto")  # nothing left: no cluster is started
    assert {d: r.ended for d, r in again.rows.items()} == {d: r.ended for d, r in last.rows.items()}


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        run(parse(PLAN), Lab(tmp_path), ray="127.0.0.1:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_plan_for_a_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    last = run(parse(PLAN.replace('tier = "ci"', 'tier = "ci"\ndevice = "cuda"')), Lab(tmp_path), jobs=0)
    assert last.count("failed") == 1 and "sees no GPU" in next(iter(last.rows.values())).reason
