"""Run a plan: worker processes that claim trials from the ledger, and somebody who watches.

Nothing is kept in memory that the ledger does not hold: a run that is killed goes on where it was, and several runs of
one plan, on one machine or many, share the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from laocoon.core.errors import InputError
from laocoon.files.wording import printable
from laocoon.lab.artefacts import Folder, Store, opened
from laocoon.lab.cluster import carry_out
from laocoon.lab.ledger import DONE, FAILED, SKIPPED, ClaimRow, Ended, Ledger, TrialRow, in_folder, void
from laocoon.lab.plan import Experiment
from laocoon.lab.trial import Entry, entries
from laocoon.lab.worker import Job, row_of, work
from laocoon.lab.workshop import Workshop

LOOK = 0.3  # seconds between two looks at the ledger
DEATHS = 2  # of workers over one trial, from which it counts as failed


@dataclass(frozen=True)
class Lab:
    """Where results are kept. Without URLs, everything is in the folder."""

    folder: Path
    ledger_url: str = ""
    artefacts_url: str = ""
    data_root: Path | None = None

    def absolute(self) -> Lab:
        """The same lab for processes that run in another folder."""
        return replace(self, folder=self.folder.absolute(),
                       artefacts_url=self.artefacts_url if "://" in self.artefacts_url or not self.artefacts_url else
                       str(Path(self.artefacts_url).absolute()),
                       data_root=self.data_root.absolute() if self.data_root else None)

    def ledger(self) -> Ledger:
        return Ledger(self.ledger_url or in_folder(self.folder))

    def store(self) -> Store:
        return opened(self.artefacts_url) if self.artefacts_url else Folder(self.folder / "artefacts")

    def workshop(self) -> Workshop:
        return Workshop(self.store(), self.data_root, self.folder / "data")


@dataclass(frozen=True)
class Progress:
    """How far a plan is. Trials that need a failed or a skipped one are blocked: they never start."""

    total: int
    states: Mapping[str, str]  # digest -> done, failed, skipped, blocked, running or waiting
    entries: Sequence[Entry]
    rows: Mapping[str, TrialRow]  # of those that ended
    running: Mapping[str, float]  # digest -> seconds since it began
    left: float | None  # seconds, by the mean of the trials that ended

    def count(self, *states: str) -> int:
        return sum(s in states for s in self.states.values())

    @property
    def settled(self) -> bool:
        return not self.count("running", "waiting")

    def success(self) -> dict[str, list[float]]:
        """Attack success so far, by the attack's label."""
        found: dict[str, list[float]] = {}
        for e in self.entries:
            row = self.rows.get(e.trial.digest)
            if row is not None and row.status == DONE and e.trial.kind == "implant":
                value = row.result["judged"]["success"]["value"]
                if value is not None:
                    found.setdefault(e.label, []).append(value)
        return found


Watch = Callable[[Progress], None]


def _unwatched(progress: Progress) -> None:
    pass


def enrolled(experiment: Experiment, lab: Lab, ledger: Ledger) -> list[Entry]:
    """The plan's trials, written down in the ledger with what is expected of them."""
    shop = lab.workshop()
    prints = {s.data: shop.dataset(s.data)[1] for s in experiment.subjects}
    found = entries(experiment, prints)
    ledger.enrol(experiment.name, [
        {"trial": e.trial.digest, "position": i, "tier": experiment.tier, "label": e.label,
         "defence_label": e.defence_label, "expected": dict(e.expected)} for i, e in enumerate(found)])
    return found


def run(experiment: Experiment, lab: Lab, *, jobs: int = 1, ray: str = "", retry: bool = False,
        watch: Watch = _unwatched) -> Progress:
    """Run what a plan's trials lack, in `jobs` processes; 0 runs them in this one.

    ray: address of a Ray cluster that runs them instead, or `auto`.
    retry: run trials that failed before once more. Interrupt or kill it at will: what ended is never repeated.
    """
    if jobs < 0:
        raise InputError(f"jobs is {jobs}.", "It is a number of processes, or 0 for this one.")
    ledger = lab.ledger()
    try:
        found = enrolled(experiment, lab, ledger)
        digests = [e.trial.digest for e in found]
        if retry:
            ledger.forget(digests, FAILED)
        look = _Looks(found, ledger, jobs)
        watch(look())
        if ray:
            def settled() -> bool:
                watch(now := look())
                return now.settled

            if not look().settled:
                carry_out(experiment, lab, found, ledger, ray, settled)
        elif jobs == 0:
            work(found, ledger, lab.workshop(), f"w{uuid.uuid4().hex[:12]}", after=lambda: watch(look()))
        elif not look().settled:
            _supervise(_Crew(experiment, lab, found, ledger, jobs), look, watch)
        last = look()
        watch(last)
        return last
    finally:
        ledger.close()


@dataclass
class _Looks:
    """Reads the ledger; rows that ended are read once."""

    entries: Sequence[Entry]
    ledger: Ledger
    jobs: int
    rows: dict[str, TrialRow] = field(default_factory=dict)

    def __call__(self) -> Progress:
        digests = [e.trial.digest for e in self.entries]
        self.rows |= self.ledger.rows([d for d in digests if d not in self.rows])
        claims, now = self.ledger.claims(digests), time.time()
        states: dict[str, str] = {}
        for e in self.entries:  # in order: what a trial needs stands before it
            digest, row = e.trial.digest, self.rows.get(e.trial.digest)
            claim = claims.get(digest)
            if row is not None:
                states[digest] = row.status
            elif any(states.get(n) in (FAILED, SKIPPED, "blocked") for n in e.trial.needs):
                states[digest] = "blocked"
            else:
                states[digest] = "running" if claim is not None and not void(claim, now) else "waiting"
        running = {d: now - c.began for d, c in claims.items() if states[d] == "running"}
        return Progress(len(self.entries), states, self.entries, dict(self.rows), running,
                        self._left(states, running))

    def _left(self, states: Mapping[str, str], running: Mapping[str, float]) -> float | None:
        """Each trial that is left takes as long as those like it did; trials of a kind that never ended, as any."""
        spent: dict[tuple[str, ...], list[float]] = {}
        for e in self.entries:
            row = self.rows.get(e.trial.digest)
            if row is not None and row.status == DONE:
                for key in _likes(e):
                    spent.setdefault(key, []).append(row.seconds)
        if not spent:
            return None
        whole = 0.0
        for e in self.entries:
            digest = e.trial.digest
            if states[digest] in ("waiting", "running"):
                known = next((spent[k] for k in _likes(e) if k in spent), spent[()])
                whole += max(0.0, sum(known) / len(known) - running.get(digest, 0.0))
        return whole / max(1, self.jobs)


def _likes(e: Entry) -> list[tuple[str, ...]]:
    own = (e.trial.kind, e.defence_label or e.label)
    return [(e.data, e.architecture, *own), own, (e.trial.kind,), ()]


@dataclass
class _Hand:
    """A worker process."""

    name: str
    process: subprocess.Popen[bytes]
    told: IO[bytes]

    def last_words(self) -> str:
        self.told.seek(0)
        lines = [line for line in self.told.read()[-4000:].decode(errors="replace").splitlines() if line.strip()]
        return printable(lines[-1], 200) if lines else ""


@dataclass
class _Crew:
    """The workers of one run."""

    experiment: Experiment
    lab: Lab
    entries: Sequence[Entry]
    ledger: Ledger
    jobs: int
    hands: list[_Hand] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)
    idle_deaths: int = 0  # between trials: nothing to blame but the machine

    def hire(self, stack: ExitStack) -> None:
        name = f"w{uuid.uuid4().hex[:12]}"
        told = tempfile.TemporaryFile()  # noqa: SIM115  closed by the stack
        stack.enter_context(told)
        job = Job(name, self.experiment, str(self.lab.folder.absolute()), self.lab.ledger_url, self.lab.artefacts_url,
                  str(self.lab.data_root.absolute()) if self.lab.data_root else "", os.getpid())
        package = str(Path(__file__).parents[2])  # the same Laocoon, wherever it was imported from
        path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
        process = subprocess.Popen([sys.executable, "-m", "laocoon.lab.worker"], stdin=subprocess.PIPE, stderr=told,
                                   stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
        hand = _Hand(name, process, told)
        self.hands.append(hand)
        assert process.stdin is not None
        try:
            process.stdin.write(job.text().encode())  # not as an argument: the ledger's URL may hold a password
            process.stdin.close()
        except BrokenPipeError:
            pass  # it is dead already: `bury` says why

    def bury(self) -> int:
        """How many died. Who went home has nothing left to do; a trial that kills is given up."""
        died = 0
        for hand in [h for h in self.hands if h.process.poll() is not None]:
            self.hands.remove(hand)
            if hand.process.returncode == 0:
                continue
            held = [c for c in self.ledger.claims().values() if c.worker == hand.name]
            self.idle_deaths += not held
            if self.idle_deaths >= DEATHS:
                raise InputError(f"a worker ended with exit code {hand.process.returncode}: {hand.last_words()}",
                                 "Run the plan again; with --jobs 0 it runs in one process, and shows more.")
            for claim in held:
                self._lost(hand, claim)
            self.ledger.release(hand.name)
            died += 1
        return died

    def _lost(self, hand: _Hand, claim: ClaimRow) -> None:
        self.deaths[claim.digest] = self.deaths.get(claim.digest, 0) + 1
        entry = next((e for e in self.entries if e.trial.digest == claim.digest), None)
        if entry is not None and self.deaths[claim.digest] >= DEATHS:
            code = hand.process.returncode
            how = f"signal {-code}, perhaps for want of memory" if code < 0 else f"exit code {code}"
            reason = f"its worker died {self.deaths[claim.digest]} times, at last with {how}. {hand.last_words()}"
            self.ledger.finish(row_of(entry, Ended(FAILED, {}, {}, reason.strip()), hand.name), hand.name)

    def dismiss(self) -> None:
        for hand in self.hands:
            hand.process.terminate()
        for hand in self.hands:
            try:
                hand.process.wait(10)
            except subprocess.TimeoutExpired:
                hand.process.kill()
                hand.process.wait()
            self.ledger.release(hand.name)


def _supervise(crew: _Crew, look: _Looks, watch: Watch) -> None:
    with ExitStack() as stack:
        stack.callback(crew.dismiss)
        for _ in range(min(crew.jobs, look().count("waiting", "running"))):
            crew.hire(stack)
        while True:
            progress = look()
            watch(progress)
            if progress.settled:
                return
            died = crew.bury()
            # Nobody left, and yet something is open: what held it was lost meanwhile.
            wanted = died or int(not crew.hands)
            if wanted and not look().settled:
                for _ in range(wanted):
                    crew.hire(stack)
            time.sleep(LOOK)


