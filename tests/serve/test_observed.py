"""What Prometheus and OpenTelemetry are told; both leave out what must not be told."""

from __future__ import annotations

import re
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from tests.serve.conftest import USER, pictures

from laocoon.serve.traces import Traces


def test_metrics_follow_the_conventions(serve):
    served = serve("block")
    served.infer(pictures(2))
    served.infer(pictures(2, triggered=(0,)))
    served.raw(b"{")
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert all(re.fullmatch(r"laocoon_guard_[a-z0-9_]+", name) for name in families)
    assert all(f.documentation for f in families.values())
    samples = {(s.name, tuple(s.labels.values())): s.value for f in families.values() for s in f.samples}
    assert samples["laocoon_guard_inputs_scored_total", ("clear",)] == 3
    assert samples["laocoon_guard_inputs_scored_total", ("flagged",)] == 1
    assert samples["laocoon_guard_inputs_decided_total", ("passed",)] == 2
    assert samples["laocoon_guard_inputs_decided_total", ("blocked",)] == 1
    for status in ("200", "403", "400"):
        assert samples["laocoon_guard_requests_total", (status,)] == 1
    assert samples["laocoon_guard_latency_seconds_count", ()] == 3
    assert samples["laocoon_guard_p_value_count", ()] == 4 and samples["laocoon_guard_ready", ()] == 1
    (model,) = [s for f in families.values() for s in f.samples if s.name == "laocoon_guard_model_info"]
    assert model.value == 1 and model.labels["model_sha256"] == "a" * 64 and model.labels["policy"] == "block"


def test_two_services_in_one_process_have_their_own(serve):
    one, two = serve("log"), serve("log")
    one.infer(pictures())
    assert two.metric('laocoon_guard_inputs_scored_total{verdict="clear"}') == 0


def test_spans_continue_the_callers_trace(serve, keys):
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    served = serve("block", keys=keys, traces=Traces(provider))
    served.headers = {"authorization": f"Bearer {USER}",
                      "traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}
    assert served.infer(pictures(3)).status_code == 200
    assert served.infer(pictures(3, triggered=(0,))).status_code == 403
    spans = kept.get_finished_spans()
    whole = [s for s in spans if s.name == "laocoon.guard.infer"]
    assert [s.attributes["http.response.status_code"] for s in whole] == [200, 403]
    assert whole[0].attributes["laocoon.samples"] == 3
    assert {f"{s.context.trace_id:032x}" for s in spans} == {"0123456789abcdef0123456789abcdef"}
    judging = [s for s in spans if s.name == "laocoon.guard.judge"]
    assert judging[0].parent.span_id == whole[0].context.span_id
    assert USER not in str([s.to_json() for s in spans])


def test_without_opentelemetry(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    served = serve("log", traces=Traces())
    assert served.infer(pictures()).status_code == 200


def test_nothing_is_exported_by_default():
    from opentelemetry import trace
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
