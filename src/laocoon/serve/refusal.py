"""What a client is told when there is no answer."""

from __future__ import annotations

from collections.abc import Mapping

from laocoon.core.errors import LaocoonError


class Refused(LaocoonError):
    """A request without an answer: the HTTP status, and the sentence that its sender is told."""

    def __init__(
        self, status: int, problem: str, remedy: str = "", *, headers: Mapping[str, str] | None = None,
        blocked: tuple[int, ...] = (),
    ) -> None:
        super().__init__(problem, remedy)
        self.status = status
        self.headers = dict(headers or {})
        self.blocked = blocked  # indices of the samples that were flagged


class AuditFailed(LaocoonError):
    """The audit log cannot be written; nothing is answered meanwhile."""
