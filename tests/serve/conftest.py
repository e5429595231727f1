"""A service around a guard that anybody can follow: a bright first pixel is the trigger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

from laocoon.serve.app import application
from laocoon.serve.audit import Audit
from laocoon.serve.engine import Engine, Facts, Judged
from laocoon.serve.keys import Keys, read_keys
from laocoon.serve.service import Service
from laocoon.serve.settings import ServeOptions

SHAPE, CLASSES, CALIBRATED = (1, 4, 4), 3, 99
USER, ADMIN = "user-secret-0123456789", "admin-secret-0123456789"


class BrightCorner:
    """Scores are the first pixel; class scores are the means of three parts of the picture."""

    def __init__(self, before: Callable[[Tensor], None] = lambda _: None) -> None:
        self.before, self.seen = before, 0

    def check(self, batch: Tensor) -> Judged:
        self.before(batch)
        self.seen += len(batch)
        flat = batch.flatten(1)
        logits = 10 * torch.stack([flat[:, 1:6].mean(1), flat[:, 6:11].mean(1), flat[:, 11:].mean(1)], 1)
        scores = flat[:, 0].double()
        p = 1 - scores.mul(CALIBRATED).floor() / (CALIBRATED + 1)
        return Judged(logits, scores > 0.9, p, scores, torch.where(scores > 0.5, 2, 1))


def facts(**other: Any) -> Facts:
    return Facts(**{"model": "a" * 64, "guard": "b" * 64, "shape": SHAPE, "classes": CLASSES, "class_names": (),
                    "alpha": 0.1, "calibrated": CALIBRATED, **other})


def corner_off(batch: Tensor) -> Tensor:
    batch = batch.clone()
    batch[:, 0, 0, 0] = 0
    return batch


def pictures(count: int = 1, *, triggered: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Pictures whose first pixel is at most 0.9, and 1 where triggered."""
    x = np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)
    x[:, 0, 0, 0] *= 0.9
    x[list(triggered), 0, 0, 0] = 1
    return x


def request(x: np.ndarray, **other: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
            **other}


@dataclass
class Served:
    service: Service
    runner: asyncio.Runner
    app: Any
    headers: dict[str, str] = field(default_factory=dict)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://guard", headers=self.headers)

    async def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # tests may catch all
        async with self.client() as client:
            return await client.request(method, path, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.runner.run(self.ask("GET", path, **arguments))

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.runner.run(self.ask("POST", path, **arguments))

    def infer(self, x: np.ndarray, **other: Any) -> httpx.Response:
        return self.post("/v2/models/model/infer", json=request(x, **other))

    def raw(self, body: bytes, **headers: str) -> httpx.Response:
        return self.post("/v2/models/model/infer", content=body,
                         headers={k.replace("_", "-"): v for k, v in headers.items()})

    def metric(self, name: str) -> float:
        text = self.get("/metrics").text
        (line,) = [k for k in text.splitlines() if k.startswith(f"{name} ")]
        return float(line.rsplit(" ", 1)[1])

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(k) for k in self.service.record.audit.path.read_text().splitlines()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(policy: str = "log", *, watcher: Any = None, keys: Keys | None = None, load: Any = None, renew: Any = None,
              engine: Engine | None = None, traces: Any = None, audit: Path | None = None, **options: Any) -> Served:
        place = audit or tmp_path / f"audit-{len(made)}.jsonl"
        settings = ServeOptions(policy=policy, audit=str(place), **options)
        log = Audit(place, sync=settings.audit_sync == "always", largest=settings.audit_bytes)
        engine = engine or Engine(watcher or BrightCorner(), facts(), corner_off)
        service = Service(engine, settings, keys or Keys(()), log, load=load, renew=renew, traces=traces)
        served = Served(service, asyncio.Runner(), application(service))
        made.append(served)
        return served

    yield start
    for served in made:
        served.service.close()
        served.runner.close()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").write_text(f"# who may ask\nalice {USER}\nops {ADMIN} admin\n")
    return read_keys(tmp_path / "keys", anybody=False)
