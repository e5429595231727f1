"""The service as a process: sockets, signals, and being killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.serve.conftest import pictures, request

ROOT = Path(__file__).parent.parent.parent
INFER = "/v2/models/model/infer"


@pytest.fixture
def start(tmp_path):
    running = []

    def run(seconds=0.0, **options):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.process", str(tmp_path / "audit.jsonl"), str(seconds),
             json.dumps(options)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), process.stderr.read()
        return process, address

    yield run
    for process in running:
        process.kill()
        process.communicate()


def lines(tmp_path):
    return [json.loads(k) for k in (tmp_path / "audit.jsonl").read_text().splitlines()]


def ask(address, seed=0):
    return httpx.post(address + INFER, json=request(pictures(seed=seed)), timeout=20)


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def test_a_request_in_flight_is_answered_before_the_end(start, tmp_path):
    process, address = start(0.6)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, address, seed) for seed in range(4)]
        metric = "laocoon_guard_requests_in_progress 4.0"
        wait_until(lambda: metric in httpx.get(address + "/metrics").text)
        process.send_signal(signal.SIGTERM)
        answers = [a.result() for a in asked]
    assert [a.status_code for a in answers] == [200] * 4
    assert process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(address + "/v2/health/live")
    said = lines(tmp_path)
    assert [k["event"] for k in said] == ["started", *["request"] * 4, "stopped"]
    assert {a.headers["x-request-id"] for a in answers} == {k["request"] for k in said if k["event"] == "request"}


def test_draining_tells_balancers_first(start):
    process, address = start(drain_seconds=3.0)
    assert httpx.get(address + "/v2/health/ready").status_code == 200
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: httpx.get(address + "/v2/health/ready").status_code == 503, 2.5)
    assert ask(address).status_code == 200  # still served
    assert process.wait(30) == 0


def test_hangup_reloads_and_opens_the_log_anew(start, tmp_path):
    process, address = start()
    before = ask(address).json()["model_version"]
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.old")
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(address).json()["model_version"] != before)
    assert "SIGHUP" in (tmp_path / "audit.jsonl").read_text() and "request" in (tmp_path / "audit.old").read_text()
    assert process.poll() is None


def test_killed_under_load_nothing_has_passed_unrecorded(start, tmp_path):
    process, address = start(0.01, concurrency=64)
    answered, stop = [], threading.Event()

    def client(seed):
        while not stop.is_set():
            try:
                answered.append(ask(address, seed))
            except httpx.HTTPError:
                return  # in flight when it was killed

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answered) > 50)
    process.kill()
    stop.set()
    for thread in threads:
        thread.join()
    process.wait()
    again, address = start()
    assert ask(address).status_code == 200
    recorded = set()
    for text in (tmp_path / "audit.jsonl").read_text().splitlines():
        if text.endswith("}"):  # a line may have been cut by the kill; its request was not answered
            recorded.add(json.loads(text).get("request"))
    assert all(a.status_code == 200 and a.json()["parameters"]["laocoon_decision"] == "passed" for a in answered)
    assert {a.headers["x-request-id"] for a in answered} <= recorded
    again.terminate()
    assert again.wait(30) == 0


def raw(address, text, *, end=True):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(text)
        if end:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def test_what_only_a_socket_can_send(start, tmp_path):
    _, address = start(request_seconds=1.0)
    body = json.dumps(request(pictures())).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
    short = raw(address, head + b"content-length: 5000\r\n\r\n" + body)  # less than it says, then gone
    assert b"model_name" not in short
    waiting = raw(address, head + b"content-length: 5000\r\n\r\n" + body, end=False)  # less than it says, and waits
    assert b" 504 " in waiting.split(b"\r\n")[0]
    for odd in (b"content-length: -1\r\n\r\n", b"content-length: 1\r\ncontent-length: 900\r\n\r\n",
                b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"x: " + b"y" * 100_000 + b"\r\n\r\n",
                b"transfer-encoding: gzip, chunked\r\n\r\n5\r\n"):
        assert b"model_name" not in raw(address, head + odd + body)
    long = raw(address, head + f"content-length: {10**9}\r\n\r\n".encode() + body, end=False)
    assert b" 413 " in long.split(b"\r\n")[0]
    assert ask(address).status_code == 200


def test_a_taken_port_is_an_error(start, tmp_path):
    from tests.serve.conftest import BrightCorner, facts

    from laocoon.core.errors import InputError
    from laocoon.serve.audit import Audit
    from laocoon.serve.engine import Engine
    from laocoon.serve.keys import Keys
    from laocoon.serve.run import serve
    from laocoon.serve.service import Service
    from laocoon.serve.settings import ServeOptions

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = ServeOptions(port=taken.getsockname()[1])
        service = Service(Engine(BrightCorner(), facts()), settings, Keys(()),
                          Audit(tmp_path / "other.jsonl", sync=True, largest=2**30))
        with pytest.raises(InputError, match="port"):
            serve(service, lambda _: None)
