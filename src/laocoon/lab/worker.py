"""A worker: claims a trial, does it, writes it down, until nothing is left. `python -m laocoon.lab.worker` reads its
job from standard input; nobody but the runner starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laocoon import __version__
from laocoon.core.errors import LaocoonError, NotApplicable
from laocoon.files.wording import printable
from laocoon.lab.artefacts import Folder, opened
from laocoon.lab.ledger import DONE, FAILED, SKIPPED, Ended, Ledger, TrialRow, Worker, in_folder
from laocoon.lab.plan import Experiment
from laocoon.lab.trial import Entry, entries
from laocoon.lab.workshop import Workshop
from laocoon.verdict.examination import Crash, attempted

BEAT = 5.0  # seconds between two signs of life
WAIT = 0.5  # seconds between two looks for work that others have to finish first


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    name: str
    experiment: Experiment
    folder: str
    ledger_url: str
    artefacts_url: str
    data_root: str
    parent: int

    def text(self) -> str:
        facts = {k: v for k, v in vars(self).items() if k != "experiment"}
        return json.dumps({**facts, "experiment": self.experiment.model_dump(mode="json")})

    @staticmethod
    def of(text: str) -> Job:
        facts = json.loads(text)
        experiment = Experiment.model_validate_json(json.dumps(facts.pop("experiment")))
        return Job(experiment=experiment, **facts)


def row_of(entry: Entry, ended: Ended, worker: str) -> TrialRow:
    return TrialRow(
        digest=entry.trial.digest, kind=entry.trial.kind, status=ended.status, data=entry.data,
        architecture=entry.architecture, seed=entry.seed, attack=entry.attack, defence=entry.defence,
        specification=json.loads(json.dumps(entry.trial.specification)), result=dict(ended.result),
        artefacts=dict(ended.artefacts), reason=ended.reason, seconds=ended.seconds, worker=worker,
        version=__version__, ended=time.time())


def work(found: Sequence[Entry], ledger: Ledger, shop: Workshop, name: str,
         after: Callable[[], None] | None = None) -> int:
    """Do what can be done until every trial has ended or never will; returns how many were done here."""
    worker, done = Worker.here(name), 0
    open_ones, index = list(found), {e.trial.digest: e for e in found}
    rows: dict[str, TrialRow] = {}
    with beating(ledger, name):
        while open_ones:
            rows |= ledger.rows([d for e in open_ones for d in (e.trial.digest, *e.trial.needs) if d not in rows])
            open_ones = [e for e in open_ones if e.trial.digest not in rows and not _blocked(e, index, rows)]
            entry = next((e for e in open_ones if all(n in rows for n in e.trial.needs)
                          and ledger.claim(e.trial.digest, worker)), None)
            if entry is None:
                if open_ones:
                    time.sleep(WAIT)
                continue
            ended = perform(entry, shop, rows)
            ledger.finish(row_of(entry, ended, name), name)
            done += 1
            if after is not None:
                after()
    return done


def _blocked(entry: Entry, index: Mapping[str, Entry], rows: Mapping[str, TrialRow]) -> bool:
    """Something that it needs failed, or waits for something that did."""
    return any(rows[n].status != DONE if n in rows else _blocked(index[n], index, rows) for n in entry.trial.needs)


def perform(entry: Entry, shop: Workshop, rows: Mapping[str, TrialRow]) -> Ended:
    """Do one trial, whatever happens in it."""
    start = time.monotonic()

    def once() -> Ended:
        try:
            return shop.perform(entry.trial, rows)
        except NotApplicable as error:
            return Ended(SKIPPED, {}, {}, printable(error, 500))
        except LaocoonError as error:
            return Ended(FAILED, {}, {}, printable(error, 500))

    done: Ended | Crash = attempted(once)
    if isinstance(done, Crash):
        done = Ended(FAILED, {}, {}, printable(done.reason, 500))
    return Ended(done.status, done.result, done.artefacts, done.reason, round(time.monotonic() - start, 3))


@contextmanager
def beating(ledger: Ledger, name: str) -> Iterator[None]:
    """Give signs of life from a thread of its own; at the end, give back what was claimed and not done."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            attempted(lambda: ledger.beat(name))  # a database that is away for a moment ends no trial

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        ledger.release(name)


def _follow(parent: int) -> None:
    """End with the runner: nobody is left behind to use the machine unseen."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main(text: str) -> None:
    job = Job.of(text)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner is interrupted, and ends its workers
    _follow(job.parent)
    torch.set_num_threads(1)  # the same sums whatever the number of jobs
    folder = Path(job.folder)
    ledger = Ledger(job.ledger_url or in_folder(folder))
    store: Any = opened(job.artefacts_url) if job.artefacts_url else Folder(folder / "artefacts")
    shop = Workshop(store, Path(job.data_root) if job.data_root else None, folder / "data")
    prints = {s.data: shop.dataset(s.data)[1] for s in job.experiment.subjects}
    work(entries(job.experiment, prints), ledger, shop, job.name)
    ledger.close()


if __name__ == "__main__":
    main(sys.stdin.read())
