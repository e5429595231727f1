"""A plan on a Ray cluster: every trial a task with its need of processors or GPUs.

Tasks compute and store artefacts; whoever started the run claims the trials and writes them down, so that only the
artefacts and the data have to be within reach of every machine, not the ledger.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from laocoon.core.errors import InputError, MissingExtra
from laocoon.files.wording import printable
from laocoon.lab.ledger import DONE, FAILED, Ended, Ledger, TrialRow, Worker
from laocoon.lab.plan import Experiment
from laocoon.lab.trial import Entry
from laocoon.lab.worker import beating, perform, row_of
from laocoon.lab.workshop import Workshop

if TYPE_CHECKING:
    from laocoon.lab.runner import Lab

AUTO = "auto"
TRIES = 2  # of a trial whose worker or machine is lost
LOOK = 0.5  # seconds to wait for a trial before looking around


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster: the one at the address, or with `auto` the one that runs here, or a
    new one of this machine alone, which ends with the run. Nothing is reported to Ray's makers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise MissingExtra("--ray needs Ray.", "pip install 'laocoon[ray]'") from None
    package = str(Path(__file__).parents[2])  # the same Laocoon, wherever it was imported from
    path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "laocoon",
                              "runtime_env": {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}}
    _reached(address)
    try:
        ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address != AUTO:
            raise _nobody(address, error) from None
        ray.init(address="local", include_dashboard=False, **common)
    try:
        yield ray
    finally:
        ray.shutdown()


def _reached(address: str) -> None:
    """Ray waits for minutes where nobody listens."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if address == AUTO or not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, error) from None


def _nobody(address: str, error: Exception) -> InputError:
    return InputError(f"no Ray cluster answers at {printable(address, 80)} ({printable(error, 120)}).",
                      "Start one with `ray start --head`, or write --ray auto.")


def carry_out(experiment: Experiment, lab: Lab, found: Sequence[Entry], ledger: Ledger, address: str,
              settled: Callable[[], bool]) -> None:
    """Do what a plan's trials lack. settled: looked at after every step."""
    name = f"ray{uuid.uuid4().hex[:12]}"
    worker = Worker.here(name)
    running: dict[Any, Entry] = {}
    with connected(address) as ray, beating(ledger, name):
        gpus = 1 if experiment.device == "cuda" else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(_performed)
        room = _room(ray, gpus)
        while not settled():
            rows = ledger.rows([e.trial.digest for e in found])
            for entry in found:
                if len(running) >= room:
                    break
                needs = {n: rows[n] for n in entry.trial.needs if n in rows and rows[n].status == DONE}
                if entry.trial.digest in rows or entry in running.values() or len(needs) < len(entry.trial.needs):
                    continue
                if ledger.claim(entry.trial.digest, worker):
                    running[task.remote(entry, needs, lab.absolute())] = entry
            for future in ray.wait(list(running), timeout=LOOK)[0] if running else []:
                entry = running.pop(future)
                ledger.finish(row_of(entry, _awaited(ray, future), name), name)


def _room(ray: Any, gpus: int) -> int:
    """How many trials the cluster can do at once; what is claimed beyond that would be kept from other runs."""
    there = ray.cluster_resources()
    if gpus and not there.get("GPU"):
        raise InputError("the plan's device is cuda, and the Ray cluster has no GPU.",
                         'Add a machine that has one, or set device = "cpu".')
    return max(1, int(there.get("GPU", 0) if gpus else there.get("CPU", 1)))


def _awaited(ray: Any, future: Any) -> Ended:
    try:
        ended: Ended = ray.get(future)
    except ray.exceptions.RayError as error:
        return Ended(FAILED, {}, {}, f"its Ray worker was lost {TRIES} times: {printable(error, 300)}")
    return ended


@lru_cache(maxsize=1)
def _shop(lab: Lab) -> Workshop:
    """One for each process: the data stay in memory between trials."""
    return lab.workshop()


def _performed(entry: Entry, needs: Mapping[str, TrialRow], lab: Lab) -> Ended:
    """One trial, on whatever machine it was sent to."""
    torch.set_num_threads(1)  # the same sums on every machine, whatever it has
    return perform(entry, _shop(lab), needs)
