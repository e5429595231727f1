"""What is told about a request: to its sender, and to the audit log."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from laocoon.core.errors import InputError
from laocoon.files.wording import printable
from laocoon.serve.audit import Audit
from laocoon.serve.engine import Facts
from laocoon.serve.gathered import Gathered
from laocoon.serve.refusal import Refused
from laocoon.serve.settings import ServeOptions

LOG = logging.getLogger("laocoon.guard")


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes | Mapping[str, Any]
    headers: Mapping[str, str]


def refusal(error: BaseException, request: str) -> Reply:
    """What is unforeseen is told to the log of the process, not to the client."""
    if not isinstance(error, Refused):
        if isinstance(error, InputError):
            error = Refused(400, error.problem, error.remedy)
        else:
            LOG.error("request %s failed", request, exc_info=error)
            error = Refused(500, "the guard failed on this request, so there is no answer.")
    body: dict[str, Any] = {"error": printable(error, 1000)}
    if request:
        body["parameters"] = {"laocoon_request": request}
    if error.blocked:
        body["parameters"]["laocoon_decision"] = "blocked"
        body["parameters"]["laocoon_blocked"] = ",".join(map(str, error.blocked))
    return Reply(error.status, body, {**error.headers, **({"x-request-id": request} if request else {})})


@dataclass
class Story:
    """What the audit log will say of a request; filled in as it goes on."""

    request: str
    key: str
    began: float
    client_request: str | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)

    def line(self, facts: Facts, settings: ServeOptions, status: int, error: BaseException | None) -> dict[str, Any]:
        """Where there is no answer, no sample is said to have passed."""
        blocked = isinstance(error, Refused) and bool(error.blocked)
        for index, sample in enumerate(self.samples if error is not None else ()):
            mine = isinstance(error, Refused) and index in error.blocked
            sample["decision"] = "blocked" if mine else "refused"
        return {
            "time": _now(), "event": "request", "request": self.request, "client_request": self.client_request,
            "key": self.key, **_engine(facts, settings), "status": status,
            "decision": "answered" if error is None else "blocked" if blocked else "refused",
            "reason": None if error is None else printable(error, 300), "samples": self.samples,
            "seconds": round(time.monotonic() - self.began, 6),
        }


def event(what: str, key: str, facts: Facts, settings: ServeOptions) -> dict[str, Any]:
    """A line about the service itself."""
    return {"time": _now(), "event": what, "key": key, **_engine(facts, settings)}


def _engine(facts: Facts, settings: ServeOptions) -> dict[str, Any]:
    return {"model": settings.name, "version": facts.version, "model_sha256": facts.model, "guard_sha256": facts.guard,
            "policy": settings.policy}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Record:
    """The audit log as seen from the event loop. Lines of requests that end together are written together."""

    def __init__(self, audit: Audit) -> None:
        self.audit, self.works = audit, True
        self._pool = ThreadPoolExecutor(1, "laocoon-audit")
        self._lines: Gathered[Mapping[str, Any], None] = Gathered(self._written, self._pool, most=256)

    def _written(self, lines: Any) -> list[None]:
        self.audit.write(lines)
        return [None] * len(lines)

    async def write(self, line: Mapping[str, Any]) -> BaseException | None:
        """Why the line could not be written; None once it is."""
        task = asyncio.ensure_future(self._lines.ask(line))
        await asyncio.wait([task])
        failed = task.exception()
        if (failed is None) != self.works:
            LOG.log(logging.INFO if failed is None else logging.ERROR, "the audit log: %s", failed or "works again")
        self.works = failed is None
        return failed

    async def reopen(self) -> None:
        """After somebody moved the log away."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self.audit.reopen)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self.audit.close()
