"""What a client of `guard_load.py` does, for locust: ask as fast as it is answered, and write down what came of it."""

from __future__ import annotations

import json
import os
import random
import uuid
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task

LINES = Path(os.environ["GUARD_LOAD_BODIES"]).read_text().splitlines()
BODIES: list[dict[str, Any]] = [json.loads(line) for line in LINES]
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {os.environ['GUARD_LOAD_KEY']}"}
OUTCOMES: list[dict[str, Any]] = []


class Client(FastHttpUser):
    wait_time = constant(0)
    connection_timeout = network_timeout = 15.0

    @task
    def infer(self) -> None:
        sent = uuid.uuid4().hex
        body = {**random.choice(BODIES), "id": sent}
        with self.client.post("/v2/models/model/infer", data=json.dumps(body), headers=HEADERS, name="infer",
                              catch_response=True) as answer:
            said = answer.json() if answer.status_code and answer.text else {}
            OUTCOMES.append({"sent": sent, "status": answer.status_code, "samples": body["inputs"][0]["shape"][0],
                             "request": said.get("parameters", {}).get("laocoon_request"),
                             "decision": said.get("parameters", {}).get("laocoon_decision"),
                             "answered": "outputs" in said})
            if answer.status_code in (200, 403):  # blocking is what the guard is for
                answer.success()
        if not answer.status_code:
            gevent.sleep(0.2)  # nobody there: do not take the cores from who is starting


@events.quitting.add_listener
def write(environment: Any, **_: Any) -> None:
    total = environment.stats.total
    facts = {"requests_per_second": total.total_rps, "median_ms": total.median_response_time,
             "p95_ms": total.get_response_time_percentile(0.95), "outcomes": OUTCOMES}
    Path(os.environ["GUARD_LOAD_OUT"]).write_text(json.dumps(facts))
