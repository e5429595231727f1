"""OpenTelemetry spans, where its API is installed and the host has set a provider up; nothing otherwise.

Laocoon configures no exporter: that is the business of whoever runs it (`opentelemetry-instrument`, or code).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Attributes = dict[str, str | int | float | bool]


class Traces:
    """`provider`: of tests; by default the one that is set globally."""

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            self._tracer = self._extract = None
            return
        self._tracer = trace.get_tracer("laocoon.guard", tracer_provider=provider)
        self._extract = propagate.extract

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Attributes]:
        """A span of one request, under the caller's trace; what is put into the attributes ends up on it."""
        told: Attributes = {}
        if self._tracer is None or self._extract is None:
            yield told
            return
        from opentelemetry.trace import SpanKind

        context = self._extract({k: v for k, v in headers.items() if k in ("traceparent", "tracestate")})
        with self._tracer.start_as_current_span("laocoon.guard.infer", context=context, kind=SpanKind.SERVER) as span:
            try:
                yield told
            finally:
                span.set_attributes(told)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(f"laocoon.guard.{name}"):
            yield
