"""One line a request, on disk before the answer; no line, no answer."""

from __future__ import annotations

import asyncio
import datetime
import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from tests.serve.conftest import pictures, request

from laocoon.core.errors import InputError
from laocoon.serve.audit import Audit
from laocoon.serve.refusal import AuditFailed


def test_a_line_says_what_happened(serve, keys):
    served = serve("abstain", keys=keys)
    served.headers = {"x-api-key": "user-secret-0123456789"}
    x = pictures(2, triggered=(1,))
    answer = served.infer(x, id="mine")
    (line,) = served.lines
    assert line["request"] == answer.headers["x-request-id"] and line["client_request"] == "mine"
    assert (line["key"], line["status"], line["decision"], line["policy"]) == ("alice", 200, "answered", "abstain")
    assert line["model_sha256"] == "a" * 64 and line["guard_sha256"] == "b" * 64
    assert datetime.datetime.fromisoformat(line["time"]).utcoffset() == datetime.timedelta(0)
    for row, sample in zip(x, line["samples"], strict=True):
        assert sample["sha256"] == hashlib.sha256(row.tobytes()).hexdigest()
        assert set(sample) == {"sha256", "p_value", "score", "tier", "flagged", "decision"}
    assert [s["decision"] for s in line["samples"]] == ["passed", "abstained"]


def test_the_line_is_there_before_the_answer(serve, monkeypatch):
    served = serve("log")
    order = []
    write, sync = Audit.write, os.fdatasync
    monkeypatch.setattr(Audit, "write", lambda self, lines: (write(self, lines), order.append("written"))[0])
    monkeypatch.setattr(os, "fdatasync", lambda fd: (sync(fd), order.append("synced"))[0])

    async def watched():
        async def send(message):
            order.append(message["type"])
        body = json.dumps(request(pictures())).encode()
        scope = {"type": "http", "method": "POST", "path": "/v2/models/model/infer", "raw_path": b"", "headers": [],
                 "query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("h", 1), "root_path": ""}
        await served.app(scope, lambda: asyncio.sleep(0, {"type": "http.request", "body": body}), send)
    served.runner.run(watched())
    assert order == ["synced", "written", "http.response.start", "http.response.body"]


@pytest.mark.parametrize("policy", ["log", "block", "abstain", "purify"])
def test_a_full_disk_means_no_answer(policy, serve, monkeypatch):
    served = serve(policy)
    real = os.write
    full = True

    def write(file, data):
        if full and file == served.service.record.audit._file:
            real(file, bytes(data[:10]))  # what a full disk does: a little fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)
    monkeypatch.setattr(os, "write", write)
    for _ in range(2):
        answer = served.infer(pictures(2))
        assert answer.status_code == 503 and "audit" in answer.json()["error"] and "output" not in answer.text
        assert answer.headers["retry-after"]
        assert served.get("/v2/health/ready").status_code == 503 and served.get("/v2/health/live").status_code == 200
    assert served.metric("laocoon_guard_audit_failures_total") == 2
    assert served.service.record.audit.path.read_bytes() == b""  # no half lines
    full = False
    assert served.get("/v2/health/ready").status_code == 200  # a probe finds out, nobody else would come
    assert served.infer(pictures()).status_code == 200
    assert [k["event"] for k in served.lines] == ["audit tried again", "request"]


def test_a_real_limit_on_the_file(tmp_path):
    """The same with the system's own refusal."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    audit = Audit(tmp_path / "a.jsonl", sync=True, largest=2**30)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
        audit.write([{"n": 1}])
        with pytest.raises(AuditFailed):
            audit.write([{"n": 2}, {"long": "x" * 200}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    audit.write([{"n": 3}])
    audit.close()
    assert [json.loads(k)["n"] for k in (tmp_path / "a.jsonl").read_text().splitlines()] == [1, 3]


def test_a_full_log_is_set_aside_not_deleted(tmp_path):
    audit = Audit(tmp_path / "a.jsonl", sync=False, largest=200)
    for n in range(100):
        audit.write([{"n": n}])
    audit.close()
    files = sorted(tmp_path.glob("a*.jsonl"))
    assert len(files) > 3 and all(f.stat().st_size <= 200 for f in files)
    assert sorted(json.loads(k)["n"] for f in files for k in f.read_text().splitlines()) == list(range(100))


def test_a_moved_log_is_opened_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    audit = Audit(path, sync=True, largest=2**30)
    audit.write([{"n": 1}])
    path.rename(tmp_path / "old")
    audit.write([{"n": 2}])
    audit.reopen()
    audit.write([{"n": 3}])
    audit.reopen()  # still ours: nothing to do
    audit.close()
    assert "2" in (tmp_path / "old").read_text() and json.loads(path.read_text()) == {"n": 3}


def test_half_a_line_of_a_killed_process_is_closed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "hal')
    audit = Audit(path, sync=True, largest=2**30)
    audit.write([{"n": 3}])
    audit.close()
    assert path.read_text().splitlines() == ['{"n": 1}', '{"n": 2, "hal', '{"n":3}']


def test_one_process_writes(tmp_path):
    path = tmp_path / "a.jsonl"
    audit = Audit(path, sync=True, largest=2**30)
    code = f"from laocoon.serve.audit import Audit; from pathlib import Path; Audit(Path({str(path)!r}), sync=True, largest=9)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and "another process" in other.stderr
    audit.close()


def test_a_log_that_cannot_be(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "a.jsonl"):
        with pytest.raises(InputError, match="audit log"):
            Audit(path, sync=True, largest=9)
