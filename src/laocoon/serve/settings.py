"""What `laocoon guard serve` can be told. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from laocoon.core.errors import InputError

POLICIES = ("log", "block", "abstain", "purify")


@dataclass(frozen=True)
class ServeOptions:
    """Fields become options; see `cli/options.py`."""

    name: str = "model"  # the model's name in the protocol
    policy: str = "block"  # what happens to flagged inputs: log, block, abstain or purify
    host: str = "127.0.0.1"  # the address to listen on
    port: int = 8080  # the port to listen on; 0 for a free one
    keys: Path | None = None  # API keys, one `NAME SECRET` a line, with `admin` behind those that may reload
    open: bool = False  # answer without API keys; only behind something else that authenticates
    audit: str = "audit.jsonl"  # the audit log, one JSON object a line; appended to
    audit_sync: str = "always"  # always: on disk before an answer leaves; never: the operating system decides
    audit_bytes: int = 268435456  # the audit log is set aside under another name at this size, never deleted
    upstream: str | None = None  # address of a server of the same protocol that answers; the guard stands before it
    upstream_model: str | None = None  # the model's name there, where it differs
    max_batch: int = 64  # samples in one request
    max_body: int = 0  # bytes of one request; 0: what max_batch samples need as JSON, at most 16 MiB
    concurrency: int = 32  # requests being read or judged at a time
    queue: int = 128  # requests that wait for that; more are turned away with 503
    request_seconds: float = 10.0  # a request that takes longer is refused with 504
    drain_seconds: float = 0.0  # between the signal to stop and the closed port: time for a balancer to notice
    shutdown_seconds: float = 30.0  # how long requests in flight may take after the port is closed
    drift_run: int = 1000000  # samples between false drift alarms, on average at least
    device: str = "cpu"  # cpu, cuda or cuda:N

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InputError(f"--policy is {self.policy!r}.", f"Choose from {', '.join(POLICIES)}.")
        if self.audit_sync not in ("always", "never"):
            raise InputError(f"--audit-sync is {self.audit_sync!r}.", "Choose always or never.")
        if not self.name or len(self.name) > 128 or not all(c.isalnum() or c in "._-" for c in self.name):
            raise InputError(f"--name is {self.name[:80]!r}.", "Use letters, digits, '.', '_' and '-'.")
        if not 0 <= self.port < 65536:
            raise InputError(f"--port is {self.port}.", "It is a number from 0 to 65535.")
        for field in ("max_batch", "concurrency", "drift_run", "audit_bytes"):
            if getattr(self, field) < 1:
                raise InputError(f"--{field.replace('_', '-')} is {getattr(self, field)}.", "Use at least 1.")
        for field in ("max_body", "queue", "drain_seconds", "shutdown_seconds"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise InputError(f"--{field.replace('_', '-')} is {getattr(self, field)}.", "Use 0 or more.")
        if not 0 < self.request_seconds <= 3600:
            raise InputError(f"--request-seconds is {self.request_seconds}.", "Use more than 0 and at most 3600.")
