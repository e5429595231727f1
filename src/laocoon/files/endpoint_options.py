"""How a model behind an address is asked. Comments are the help texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from laocoon.core.errors import InputError


@dataclass(frozen=True)
class EndpointOptions:
    """Fields become options of the command line."""

    queries: int = 20000  # at most so many samples are asked about
    rate: float = 50.0  # at most so many requests a second
    per_request: int = 32  # samples in one request
    timeout: float = 30.0  # seconds until an answer must be there, whole
    retries: int = 4  # after 429, 502, 503, 504 or a broken connection, waiting longer each time

    def __post_init__(self) -> None:
        for name, low, high in (("queries", 1, 10**9), ("rate", 1e-3, 1e6), ("per_request", 1, 4096),
                                ("timeout", 1e-3, 3600), ("retries", 0, 20)):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} is {value}.", f"It is a number from {low:g} to {high:g}.")
