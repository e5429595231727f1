"""A new model or guard is swapped in whole, or not at all."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from tests.serve.conftest import ADMIN, USER, BrightCorner, facts, pictures, request

from laocoon.core.errors import BrokenFile
from laocoon.serve.engine import Engine
from laocoon.serve.keys import read_keys


def broken_file():
    raise BrokenFile("guard.json is truncated.", "Fit again.")


def crash():
    raise ZeroDivisionError("secret detail")


class Mute(BrightCorner):
    def check(self, batch):
        raise RuntimeError("cannot judge")


def test_the_new_one_answers(serve, keys):
    other = Engine(BrightCorner(), facts(guard="c" * 64), lambda b: b)
    served = serve("log", keys=keys, load=lambda: other)
    served.headers = {"x-api-key": ADMIN}
    assert served.infer(pictures()).json()["model_version"] == "aaaaaaaa-bbbbbbbb"
    answer = served.post("/v2/admin/reload")
    assert answer.status_code == 200 and answer.json() == {"version": "aaaaaaaa-cccccccc"}
    assert served.infer(pictures()).json()["model_version"] == "aaaaaaaa-cccccccc"
    assert served.get("/v2/models/model/versions/aaaaaaaa-bbbbbbbb").status_code == 404
    assert 'guard_sha256="' + "c" * 64 in served.get("/metrics").text
    assert [(k["event"], k["key"]) for k in served.lines if k["event"] != "request"] == [("reloaded", "ops")]
    served.headers = {"x-api-key": USER}
    assert served.post("/v2/admin/reload").status_code == 403


@pytest.mark.parametrize("load", [broken_file, crash, lambda: Engine(Mute(), facts()),
                                  lambda: Engine(BrightCorner(), facts())],
                         ids=["broken file", "crash", "cannot judge", "no purifier"])
def test_a_broken_one_keeps_the_old(load, serve, keys):
    served = serve("purify", keys=keys, load=load)
    served.headers = {"x-api-key": ADMIN}
    answer = served.post("/v2/admin/reload")
    assert answer.status_code == 422 and "secret" not in answer.text
    assert served.infer(pictures()).json()["model_version"] == "aaaaaaaa-bbbbbbbb"
    assert served.metric('laocoon_guard_reloads_total{outcome="kept"}') == 1
    assert served.get("/v2/health/ready").status_code == 200


def test_requests_in_flight_finish_on_the_old_one(serve, keys):
    begun, go = threading.Event(), threading.Event()

    def wait(batch):
        begun.set()
        assert go.wait(5)

    other = Engine(BrightCorner(), facts(guard="c" * 64), lambda b: b)
    served = serve("log", keys=keys, watcher=BrightCorner(wait), load=lambda: other)
    served.headers = {"x-api-key": ADMIN}

    async def both():
        ask = asyncio.create_task(served.ask("POST", "/v2/models/model/infer", json=request(pictures())))
        await asyncio.to_thread(begun.wait, 5)
        reload = asyncio.create_task(served.ask("POST", "/v2/admin/reload"))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(served.ask("POST", "/v2/models/model/infer", json=request(pictures())))
        await asyncio.sleep(0.05)
        go.set()
        return await asyncio.gather(ask, reload, late)

    first, reload, late = served.runner.run(both())
    assert reload.status_code == 200 and first.json()["model_version"] == "aaaaaaaa-bbbbbbbb"
    assert late.status_code == 200
    assert first.json()["outputs"][0]["data"] == pytest.approx(
        BrightCorner().check(torch.from_numpy(pictures())).logits[0].tolist(), abs=1e-5)
    assert served.infer(pictures()).json()["model_version"] == "aaaaaaaa-cccccccc"


def test_the_drift_alarm_starts_anew(serve, keys):
    served = serve("log", keys=keys, load=lambda: Engine(BrightCorner(), facts(), lambda b: b), drift_run=1000)
    served.headers = {"x-api-key": ADMIN}
    for _ in range(10):
        served.infer(pictures(64, triggered=tuple(range(64))))
    assert served.get("/v2/health").json()["drift"]["alarm"] is True
    assert served.metric("laocoon_guard_drift_alarm") == 1
    served.post("/v2/admin/reload")
    assert served.get("/v2/health").json()["drift"]["alarm"] is False
    assert served.metric("laocoon_guard_drift_alarm") == 0


def test_keys_are_renewed(serve, keys, tmp_path):
    def renew():
        return read_keys(tmp_path / "keys", anybody=False)

    served = serve("log", keys=keys, load=lambda: Engine(BrightCorner(), facts()), renew=renew)
    served.headers = {"x-api-key": USER}
    assert served.infer(pictures()).status_code == 200
    served.headers = {"x-api-key": ADMIN}
    (tmp_path / "keys").write_text("broken")
    assert served.post("/v2/admin/reload").status_code == 422 and served.get("/v2").status_code == 200
    (tmp_path / "keys").write_text(f"ops {ADMIN} admin")
    assert served.post("/v2/admin/reload").status_code == 200
    served.headers = {"x-api-key": USER}
    assert served.infer(pictures()).status_code == 401
