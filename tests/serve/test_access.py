"""Who may ask, how much, and how many at a time."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.serve.conftest import ADMIN, USER, BrightCorner, pictures, request

from laocoon.core.errors import InputError
from laocoon.serve.keys import VARIABLE, read_keys

CLOSED = [("GET", "/v2"), ("GET", "/v2/models/model"), ("GET", "/v2/models/model/ready"), ("GET", "/metrics"),
          ("POST", "/v2/models/model/infer"), ("POST", "/v2/models/other/infer"), ("POST", "/v2/admin/reload")]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong-secret-0123456789"}, {"x-api-key": USER[:-1]},
                                     {"authorization": f"Basic {USER}"}, {"authorization": "Bearer alice"},
                                     {"authorization": "Bearer \xff"}, {"authorization": "Bearer"}],
                         ids=["none", "wrong", "short", "basic", "name", "latin", "bare"])
def test_no_key_no_answer(method, path, headers, serve, keys):
    served = serve("log", keys=keys)
    answer = served.runner.run(served.ask(method, path, headers={k: v.encode("latin-1") for k, v in headers.items()}))
    assert answer.status_code == 401 and set(answer.json()) == {"error"}
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not served.lines and served.service.live.engine.watcher.seen == 0


def test_keys_open(serve, keys):
    served = serve("log", keys=keys)
    for headers in ({"authorization": f"Bearer {USER}"}, {"authorization": f"bearer {USER}"}, {"x-api-key": USER}):
        served.headers = headers
        assert served.infer(pictures()).status_code == 200
        assert served.get("/metrics").status_code == 200
    assert {line["key"] for line in served.lines} == {"alice"}
    assert USER not in served.service.record.audit.path.read_text() + served.get("/metrics").text
    assert served.post("/v2/admin/reload").status_code == 403
    served.headers = {"x-api-key": ADMIN}
    assert served.post("/v2/admin/reload").status_code == 501  # nothing to reload from


def test_health_is_open(serve, keys):
    served = serve("log", keys=keys)
    assert [served.get(p).status_code for p in ("/v2/health/live", "/v2/health/ready", "/v2/health")] == [200] * 3


def test_secrets_are_not_shown(keys):
    assert USER not in repr(keys)


@pytest.mark.parametrize("text", ["alice", "alice tiny-one", f"alice {USER} root", f"alice {USER}\nalice {ADMIN}",
                                  f"al:ice {USER}", ""], ids=range(6))
def test_bad_key_files(text, tmp_path):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError) as caught:
        read_keys(tmp_path / "keys", anybody=False)
    assert USER not in str(caught.value) and "tiny" not in str(caught.value)


def test_keys_from_the_environment(monkeypatch):
    with pytest.raises(InputError, match="no API keys"):
        read_keys(None, anybody=False)
    assert not read_keys(None, anybody=True).known
    monkeypatch.setenv(VARIABLE, f"alice {USER}; ops {ADMIN} admin")
    assert [(k.name, k.admin) for k in read_keys(None, anybody=False).known] == [("alice", False), ("ops", True)]
    with pytest.raises(InputError, match="--open"):
        read_keys(None, anybody=True)


def test_every_key_is_compared(keys, monkeypatch):
    """Also after a match, by the comparison that takes the same time whatever it is given."""
    import hmac
    count = []
    real = hmac.compare_digest
    monkeypatch.setattr("laocoon.serve.keys.hmac.compare_digest", lambda a, b: count.append(1) or real(a, b))
    keys.holder(f"Bearer {USER}", "")
    assert len(count) == 2


def flood(served, count):
    async def together():
        asks = (served.ask("POST", "/v2/models/model/infer", json=request(pictures(seed=i))) for i in range(count))
        return await asyncio.gather(*asks)
    return served.runner.run(together())


def test_a_full_queue_turns_requests_away_at_once(serve):
    served = serve("log", watcher=BrightCorner(lambda _: time.sleep(0.05)), concurrency=2, queue=3)
    answers = flood(served, 20)
    codes = [a.status_code for a in answers]
    assert codes.count(200) == 5 and codes.count(503) == 15
    assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code == 503)
    assert len(served.lines) == 20 and served.infer(pictures()).status_code == 200
    assert served.metric("laocoon_guard_requests_in_progress") == 0 == served.metric("laocoon_guard_requests_waiting")


def test_everybody_who_is_let_in_gets_their_own_answer(serve):
    served = serve("log", watcher=BrightCorner(lambda _: time.sleep(0.01)), concurrency=64, queue=64, max_batch=16)
    answers = flood(served, 64)
    for seed, answer in enumerate(answers):
        import torch
        wanted = BrightCorner().check(torch.from_numpy(pictures(seed=seed))).logits[0].tolist()
        assert answer.json()["outputs"][0]["data"] == pytest.approx(wanted, abs=1e-5)
    assert served.metric("laocoon_guard_batch_inputs_count") < 64  # some were judged together


def test_a_request_takes_no_longer_than_told(serve):
    served = serve("log", watcher=BrightCorner(lambda _: time.sleep(0.3)), request_seconds=0.1)
    began = time.monotonic()
    answer = served.infer(pictures())
    assert answer.status_code == 504 and time.monotonic() - began < 0.29 and "output" not in answer.text
    assert served.lines[-1]["decision"] == "refused"


def test_a_body_that_dribbles_in_is_given_up(serve):
    served = serve("log", request_seconds=0.2, concurrency=1)

    async def slow():
        while True:
            yield b" "
            await asyncio.sleep(0.02)
    assert served.post("/v2/models/model/infer", content=slow()).status_code == 504
    assert served.infer(pictures()).status_code == 200  # its place is free again


@pytest.mark.parametrize("options", [{"policy": "allow"}, {"port": 70000}, {"max_batch": 0}, {"name": "a/b"},
                                     {"request_seconds": 0.0}, {"audit_sync": "maybe"}, {"queue": -1}])
def test_settings_that_cannot_be(options):
    from laocoon.serve.settings import ServeOptions
    with pytest.raises(InputError):
        ServeOptions(**options)
