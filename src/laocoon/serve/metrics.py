"""What Prometheus is told, in a registry of its own."""

from __future__ import annotations

from typing import Any

from laocoon import __version__
from laocoon.core.errors import MissingExtra

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
P_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
VERDICTS = ("clear", "flagged", "disagrees")
DECISIONS = ("passed", "logged", "blocked", "abstained", "purified")


class Metrics:
    """Names after the conventions: prefix, base unit, `_total` behind counters."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
        except ImportError:
            raise MissingExtra("prometheus_client is not installed.", "pip install 'laocoon[serve]'") from None
        self.registry = CollectorRegistry()

        def named(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), buckets: Any = ()) -> Any:
            more = {"buckets": buckets} if buckets else {}
            return kind(f"laocoon_guard_{name}", text, labels, registry=self.registry, **more)

        self.requests = named(Counter, "requests_total", "Requests for an answer, by HTTP status.", ("status",))
        self.scored = named(Counter, "inputs_scored_total", "Samples that the guard judged.", ("verdict",))
        self.decided = named(Counter, "inputs_decided_total", "Samples by what the policy did.", ("decision",))
        self.unauthenticated = named(Counter, "unauthenticated_total", "Requests without a valid key.")
        self.audit_failures = named(Counter, "audit_failures_total", "Answers withheld for want of an audit line.")
        self.reloads = named(Counter, "reloads_total", "Reloads, by how they ended.", ("outcome",))
        self.latency = named(Histogram, "latency_seconds", "From a request's arrival to its answer.", buckets=BUCKETS)
        self.judging = named(Histogram, "judging_seconds", "A batch in the guard, model included.", buckets=BUCKETS)
        self.batch = named(Histogram, "batch_inputs", "Samples judged together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
        self.p_value = named(Histogram, "p_value", "p-values; uniform on undrifted traffic.", buckets=P_BUCKETS)
        self.busy = named(Gauge, "requests_in_progress", "Requests being read or judged.")
        self.waiting = named(Gauge, "requests_waiting", "Requests in the queue.")
        self.drift = named(Gauge, "drift_log10_evidence", "Evidence that the traffic has drifted from calibration.")
        self.alarm = named(Gauge, "drift_alarm", "1 once the evidence has passed the alarm.")
        self.ready = named(Gauge, "ready", "1 where requests are answered.")
        self.model = named(Info, "model", "The model and the guard that answer.")
        for verdict in VERDICTS:
            self.scored.labels(verdict)
        for decision in DECISIONS:
            self.decided.labels(decision)

    def describe(self, name: str, version: str, model: str, guard: str, policy: str) -> None:
        self.model.info({"name": name, "version": version, "model_sha256": model, "guard_sha256": guard,
                         "policy": policy, "laocoon": __version__})

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
