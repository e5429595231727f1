"""Does the guard hold under load, and when it is killed? 64 clients on loopback, made by locust (MIT).

    python benchmarks/guard_load.py [--seconds 20] [--clients 64]

Three claims, each checked against what the clients saw and what the audit log holds:

1. Nothing is answered unchecked: every answer carries a decision for each sample, and the log holds the same.
2. Nothing that was accepted is lost: every request ends in an answer or a refusal, and each has one line.
3. Killed (kill -9) and started again under load, requests in flight may fail, but 1 still holds for all others.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).parent
BATCHES = (1, 1, 1, 4, 16)  # samples a request, drawn alike


@dataclass
class Service:
    """`laocoon guard serve` as a process."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        log = (self.folder / "service.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "laocoon", "guard", "serve", "model.onnx", "--guard", "guard", "--keys", "keys",
             "--port", str(self.port), "--concurrency", "64", "--queue", "256"],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("guarding"), (self.folder / "service.log").read_text()
        address = line.split(" at ")[1].split("/v2")[0]
        self.port = int(address.rsplit(":", 1)[1])
        return address

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)


def prepared(folder: Path) -> str:
    """A model, a guard, requests to send, a key."""
    from laocoon.cli.demo import clean_digits

    images, labels = clean_digits(per_class=60)
    np.savez(folder / "clean.npz", images=images[..., None] if images.ndim == 3 else images, labels=labels)
    (folder / "model.onnx").write_bytes(files("laocoon").joinpath("demo", "backdoored.onnx").read_bytes())
    subprocess.run([sys.executable, "-m", "laocoon", "guard", "fit", "model.onnx", "--data", "clean.npz", "--alpha",
                    "0.02", "-o", "guard"], cwd=folder, check=True)
    key = secrets.token_hex(16)
    (folder / "keys").write_text(f"load {key}\n")
    rng, lines = np.random.default_rng(0), []
    for _ in range(200):
        chosen = images[rng.choice(len(images), rng.choice(BATCHES))]
        x = chosen.astype(np.float32).reshape(-1, 1, *images.shape[1:3]) / 255
        if rng.random() < 0.2:  # something that no digit looks like
            x[0] = rng.random(x.shape[1:]) > 0.5
        lines.append(json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape),
                                             "data": np.round(x, 4).ravel().tolist()}]}))
    (folder / "bodies").write_text("\n".join(lines))
    return key


def load(folder: Path, address: str, key: str, clients: int, seconds: int, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "GUARD_LOAD_BODIES": str(folder / "bodies"), "GUARD_LOAD_KEY": key,
                   "GUARD_LOAD_OUT": str(folder / f"{name}.json")}
    return subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", str(BENCHMARKS / "guard_user.py"), "--headless", "--host", address,
         "--users", str(clients), "--spawn-rate", str(clients), "--run-time", f"{seconds}s", "--stop-timeout", "15",
         "--only-summary", "--exit-code-on-error", "0", "--loglevel", "ERROR"],
        env=environment, stdout=subprocess.DEVNULL, stderr=(folder / "locust.log").open("a"))


def recorded(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Lines of requests by the client's own number, and how many lines a kill has cut."""
    found, cut = {}, 0
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            cut += 1
            continue
        if line["event"] == "request":
            assert line["client_request"] not in found, "two lines for one request"
            found[line["client_request"]] = line
    return found, cut


def compare(outcomes: list[dict[str, Any]], lines: dict[str, dict[str, Any]]) -> Counter[int]:
    """Claim 1, for every request that got an answer of any kind."""
    for seen in outcomes:
        if seen["status"] == 0:
            assert not seen["answered"]
            continue
        line = lines[seen["sent"]]
        assert line["request"] == seen["request"] and line["status"] == seen["status"], (seen, line)
        decisions = [s["decision"] for s in line["samples"]]
        if seen["answered"]:
            assert seen["status"] == 200 and seen["decision"] == ",".join(decisions), (seen, line)
            assert decisions == ["passed"] * seen["samples"] and not any(s["flagged"] for s in line["samples"])
        else:
            assert seen["status"] in (403, 503, 504), seen
            assert "passed" not in decisions and (seen["status"] != 403 or "blocked" in decisions)
    return Counter(seen["status"] for seen in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        key = prepared(folder)
        service = Service(folder)

        address = service.start()
        assert load(folder, address, key, told.clients, told.seconds, "steady").wait() == 0
        ask = urllib.request.Request(f"{address}/metrics", headers={"authorization": f"Bearer {key}"})
        metrics = urllib.request.urlopen(ask).read().decode()
        assert service.stop() == 0
        steady = json.loads((folder / "steady.json").read_text())
        lines, cut = recorded(folder / "audit.jsonl")
        codes = compare(steady["outcomes"], lines)
        assert not cut and 0 not in codes, f"requests without an end: {codes}"
        assert set(lines) == {o["sent"] for o in steady["outcomes"]}, "the log and the clients disagree"
        scored = sum(float(k.rsplit(" ", 1)[1]) for k in metrics.splitlines()
                     if k.startswith("laocoon_guard_inputs_scored_total"))
        assert scored == sum(len(k["samples"]) for k in lines.values() if "p_value" in (k["samples"] or [{}])[0])
        assert codes[200] > 100 and codes[403] > 10, codes
        print(f"steady: {len(lines)} requests of {told.clients} clients in {told.seconds} s, {dict(codes)}; "
              f"{steady['requests_per_second']:.0f} a second, median {steady['median_ms']:.0f} ms, 95 % under "
              f"{steady['p95_ms']:.0f} ms; none unchecked, none lost")

        address = service.start()
        running = load(folder, address, key, told.clients, 600, "killed")
        time.sleep(told.seconds / 2)
        service.kill()
        killed = len(recorded(folder / "audit.jsonl")[0])
        service.start()  # how long that takes is the machine's business; the clients go on asking
        time.sleep(told.seconds / 2)
        running.terminate()
        running.wait()
        assert service.stop() == 0
        broken = json.loads((folder / "killed.json").read_text())
        every, cut = recorded(folder / "audit.jsonl")
        codes = compare(broken["outcomes"], every)
        assert cut <= 1 and codes[0] > 0, f"the kill hit nobody: {codes}"
        assert len(every) > killed > len(lines), "it did not answer again after the restart, or not before the kill"
        print(f"killed and restarted: {dict(codes)} (0: failed in flight, or refused by the closed port); "
              f"{killed - len(lines)} recorded before the kill, {len(every) - killed} after; none unchecked")


if __name__ == "__main__":
    main()
