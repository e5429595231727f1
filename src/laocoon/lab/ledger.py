"""The ledger: one row a trial, by the digest of everything that determines it, written as the trial ends.

Any database that SQLAlchemy speaks to. Several processes, also on several machines, may share one: a trial belongs to
whoever inserts its claim first, and a claim whose holder died is taken over.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laocoon.core.errors import InputError, MissingExtra
from laocoon.files.wording import first_line, printable

try:
    from sqlalchemy import JSON, Float, Index, Integer, String, Text, create_engine, delete, select, update
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
except ImportError:
    raise MissingExtra("the lab's ledger needs SQLAlchemy.", "pip install 'laocoon[lab]'") from None

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
LEASE = 600.0  # seconds without a heartbeat after which a claim of another machine is void
CHUNK = 500  # digests in one query: databases bound the number of parameters


def in_folder(folder: Path) -> str:
    """URL of the ledger that lives in a folder."""
    return URL.create("sqlite", database=str(folder.absolute() / "ledger.sqlite")).render_as_string()


class Table(DeclarativeBase):
    """All tables of a ledger."""


class TrialRow(Table):
    """One trial that ended."""

    __tablename__ = "trials"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    data: Mapped[str] = mapped_column(String(64))
    architecture: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(Integer)
    attack: Mapped[str] = mapped_column(String(64), default="")
    defence: Mapped[str] = mapped_column(String(64), default="")
    specification: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    artefacts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    reason: Mapped[str] = mapped_column(Text, default="")
    seconds: Mapped[float] = mapped_column(Float, default=0.0)
    worker: Mapped[str] = mapped_column(String(64), default="")
    version: Mapped[str] = mapped_column(String(32), default="")
    ended: Mapped[float] = mapped_column(Float, default=0.0)


class ClaimRow(Table):
    """A trial that somebody is at."""

    __tablename__ = "claims"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    worker: Mapped[str] = mapped_column(String(64))
    host: Mapped[str] = mapped_column(String(128))
    process: Mapped[int] = mapped_column(Integer)
    began: Mapped[float] = mapped_column(Float)
    beat: Mapped[float] = mapped_column(Float)


class EntryRow(Table):
    """A plan's trial: its place there, and what the plan says of it beforehand. Plans may share trials."""

    __tablename__ = "entries"
    __table_args__ = (Index("entries_trial", "trial"),)

    plan: Mapped[str] = mapped_column(String(64), primary_key=True)
    trial: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int] = mapped_column(Integer)
    tier: Mapped[str] = mapped_column(String(16))
    label: Mapped[str] = mapped_column(String(80))  # of the attack, empty for clean subjects
    defence_label: Mapped[str] = mapped_column(String(80))
    expected: Mapped[dict[str, Any]] = mapped_column(JSON)
    expected_since: Mapped[float] = mapped_column(Float)  # when what is expected was written


@dataclass(frozen=True)
class Ended:
    """What is written of a trial."""

    status: str
    result: Mapping[str, Any]
    artefacts: Mapping[str, str]
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Worker:
    """Who claims."""

    name: str
    host: str
    process: int

    @staticmethod
    def here(name: str) -> Worker:
        return Worker(name, here(), os.getpid())


def here() -> str:
    """This machine; a container that has process numbers of its own is another one."""
    try:
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        space = ""
    return f"{socket.gethostname()}:{space}"[:128]


def alive(process: int) -> bool:
    """Does a process of this machine live? A zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


class Ledger:
    """A connection to a ledger; tables are made where they are missing."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self.shown = parsed.render_as_string(hide_password=True)
            self._local = parsed.get_backend_name() == "sqlite"
        except (SQLAlchemyError, ValueError):
            raise InputError(f"the ledger {printable(url.rpartition('@')[2], 80)!r} is not a database URL.",
                             "Write, for instance, sqlite:///ledger.sqlite.") from None
        if self._local and parsed.database in (None, "", ":memory:"):
            raise InputError(f"the ledger {self.shown} is in memory, where no other process sees it.",
                             "Name a file: sqlite:///ledger.sqlite.")
        with self._told():
            # A writer waits for the others instead of failing.
            self._engine = create_engine(parsed, connect_args={"timeout": 60} if self._local else {},
                                         pool_pre_ping=not self._local)
            if self._local and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            try:
                Table.metadata.create_all(self._engine)
            except DBAPIError:  # another process made them between our look and our creation
                Table.metadata.create_all(self._engine)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except NoSuchModuleError as error:
            raise InputError(f"the ledger {self.shown}: {first_line(error)}.",
                             "Install that database's driver.") from None
        except ModuleNotFoundError as error:
            raise MissingExtra(f"the ledger {self.shown} needs {error.name}.", f"pip install {error.name}") from None
        except SQLAlchemyError as error:
            raise InputError(f"the ledger {self.shown}: {first_line(error)}.",
                             "Check that the database is there, may be written to and has room.") from None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._told(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        self._engine.dispose()

    def enrol(self, plan: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write down what a plan consists of, and what it expects, before anything runs."""
        for attempt in range(3):
            try:
                with self._told(), Session(self._engine) as session:
                    self._enrol(session, plan, entries)
                    session.commit()
                return
            except InputError:  # two processes enrolled the same plan at once: look again
                if attempt == 2:
                    raise
                time.sleep(0.2)

    @staticmethod
    def _enrol(session: Session, plan: str, entries: Sequence[Mapping[str, Any]]) -> None:
        old = {row.trial: row for row in session.scalars(select(EntryRow).where(EntryRow.plan == plan))}
        now = time.time()
        for entry in entries:
            row = old.pop(entry["trial"], None)
            since = now if row is None or row.expected != entry["expected"] else row.expected_since
            values = {"plan": plan, **entry, "expected_since": since}
            if row is None:
                session.add(EntryRow(**values))
            else:
                for key, value in values.items():
                    setattr(row, key, value)
        for row in old.values():
            session.delete(row)

    def rows(self, digests: Collection[str] | None = None) -> dict[str, TrialRow]:
        """Trials that ended, by digest."""
        with self._session() as session:
            if digests is None:
                return {r.digest: r for r in session.scalars(select(TrialRow))}
            return {r.digest: r for part in _parts(digests)
                    for r in session.scalars(select(TrialRow).where(TrialRow.digest.in_(part)))}

    def statuses(self, digests: Collection[str]) -> dict[str, str]:
        with self._session() as session:
            columns = select(TrialRow.digest, TrialRow.status)
            return {digest: status for part in _parts(digests)
                    for digest, status in session.execute(columns.where(TrialRow.digest.in_(part)))}

    def entries(self, plan: str | None = None) -> list[EntryRow]:
        """What plans consist of, in their order."""
        query = select(EntryRow).order_by(EntryRow.plan, EntryRow.position)
        with self._session() as session:
            return list(session.scalars(query if plan is None else query.where(EntryRow.plan == plan)))

    def claims(self, digests: Collection[str] | None = None) -> dict[str, ClaimRow]:
        with self._session() as session:
            found = {r.digest: r for r in session.scalars(select(ClaimRow))}
        return found if digests is None else {d: r for d, r in found.items() if d in set(digests)}

    def claim(self, digest: str, worker: Worker) -> bool:
        """Make a trial ours: true for one process only, and never for a trial that has ended."""
        now = time.time()
        with self._session() as session:
            if session.get(TrialRow, digest) is not None:
                return False
            held = session.get(ClaimRow, digest)
            if held is not None:
                if not void(held, now):
                    return False
                # Taken over by whoever changes the row first: the old holder's beat is part of the condition.
                taken: Any = session.execute(
                    update(ClaimRow).where(ClaimRow.digest == digest, ClaimRow.worker == held.worker,
                                           ClaimRow.beat == held.beat)
                    .values(worker=worker.name, host=worker.host, process=worker.process, began=now, beat=now)
                    .execution_options(synchronize_session=False))
                session.commit()
                ours = bool(taken.rowcount == 1)
            else:
                session.add(ClaimRow(digest=digest, worker=worker.name, host=worker.host, process=worker.process,
                                     began=now, beat=now))
                try:
                    session.commit()
                except IntegrityError:
                    return False
                ours = True
        if ours and digest in self.statuses([digest]):  # it ended between our look and our claim
            self.release(worker.name, digest)
            return False
        return ours

    def beat(self, worker: str) -> None:
        """Say that a worker lives."""
        with self._session() as session:
            session.execute(update(ClaimRow).where(ClaimRow.worker == worker).values(beat=time.time()))
            session.commit()

    def release(self, worker: str, digest: str | None = None) -> None:
        """Give claims back without a result."""
        query = delete(ClaimRow).where(ClaimRow.worker == worker)
        with self._session() as session:
            session.execute(query if digest is None else query.where(ClaimRow.digest == digest))
            session.commit()

    def finish(self, row: TrialRow, worker: str) -> bool:
        """Write a trial's row and end its claim, in one transaction. False where somebody else's row is there."""
        with self._session() as session:
            try:
                session.add(row)
                session.flush()
                session.execute(delete(ClaimRow).where(ClaimRow.digest == row.digest, ClaimRow.worker == worker))
                session.commit()
            except IntegrityError:
                session.rollback()
                self.release(worker, row.digest)
                return False
        return True

    def forget(self, digests: Collection[str], status: str) -> int:
        """Delete the rows of a status, so that their trials run again."""
        gone = 0
        with self._session() as session:
            for part in _parts(digests):
                query = delete(TrialRow).where(TrialRow.digest.in_(part), TrialRow.status == status)
                found: Any = session.execute(query)
                gone += found.rowcount
            session.commit()
        return gone


def void(claim: ClaimRow, now: float) -> bool:
    """Its holder is dead: a process of this machine that is gone, or one that gave no sign for the lease."""
    if claim.host == here() and not alive(claim.process):
        return True
    return now - claim.beat > LEASE


def _parts(digests: Collection[str]) -> Iterator[list[str]]:
    every = list(digests)
    for start in range(0, len(every), CHUNK):
        yield every[start:start + CHUNK]
