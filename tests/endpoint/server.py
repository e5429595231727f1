"""A small server of the Open Inference Protocol v2 on loopback, in a thread, that can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from laocoon.files.protocol import HEADER, Asked, read_request, write_response
from laocoon.files.tensors import Named

SHAPE, CLASSES = (1, 6, 6), 4
Model = Callable[[np.ndarray], dict[str, np.ndarray]]
Spoil = Callable[["Handler", str], bool]  # request handler and "metadata" or "infer"; True: it was answered
TYPES = {"f": "FP32", "i": "INT64"}


def quarters(x: np.ndarray) -> dict[str, np.ndarray]:
    """Scores are the means of the picture's quarters."""
    h, w = x.shape[2] // 2, x.shape[3] // 2
    parts = [x[:, :, :h, :w], x[:, :, :h, w:], x[:, :, h:, :w], x[:, :, h:, w:]]
    return {"scores": np.stack([10 * p.mean((1, 2, 3)) for p in parts], 1).astype(np.float32)}


def labels(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"label": quarters(x)["scores"].argmax(1)}


def of(module: torch.nn.Module, *, only_labels: bool = False) -> Model:
    """A network as a server shows it: probabilities, or the number of the class."""
    def answer(x: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            shares = module(torch.from_numpy(np.array(x))).softmax(1).numpy()
        return {"label": shares.argmax(1)} if only_labels else {"probabilities": shares}

    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(("GET", self.path, dict(self.headers)))
        if self.path == "/v2":
            self.say({"name": "test", "version": "1", "extensions": ["binary_tensor_data"] * self.server.binary})
        elif self.path != "/v2/models/there":
            self.say({"error": "no such model"}, 404)
        elif not self.spoiled("metadata"):
            self.say(self.server.metadata)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append(("POST", self.path, dict(self.headers)))
        if self.path == "/v2/repository/index":
            self.say([{"name": "there"}, {"name": "other"}] if self.server.lists else {}, 200 if self.server.lists else 404)
        elif self.path != "/v2/models/there/infer":
            self.say({"error": "no such model"}, 404)
        else:
            self.sent = read_request(body, self.headers.get(HEADER), 10**7)
            x = self.sent.inputs[0].array
            self.server.samples += len(x)
            if not self.spoiled("infer"):
                self.answer({n: Named(n, TYPES[v.dtype.kind], v) for n, v in self.server.model(x).items()})

    def spoiled(self, what: str) -> bool:
        return self.server.spoil is not None and self.server.spoil(self, what)

    def answer(self, outputs: dict[str, Named]) -> None:
        asked = Asked(None, (), (), self.sent.binary)
        written = write_response(asked, "there", "1", list(outputs.values()), {})
        self.raw(200, written.body, dict(written.headers))

    def say(self, message: Any, status: int = 200) -> None:
        self.raw(status, json.dumps(message).encode(), {"content-type": "application/json"})

    def raw(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """`with Server(...) as s:` and ask `s.address`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, model: Model = quarters, *, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES,
                 spoil: Spoil | None = None, binary: bool = True, lists: bool = False, **metadata: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.spoil, self.binary, self.lists = model, spoil, binary, lists
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.samples = 0
        found = model(np.zeros((2, *shape), np.float32))
        outputs = [{"name": n, "datatype": TYPES[v.dtype.kind], "shape": [-1, *v.shape[1:]]} for n, v in found.items()]
        self.metadata = {"name": "there", "versions": ["1"], "platform": "test", "outputs": outputs, "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, *shape]}]} | metadata
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        self.address = f"{self.base}/v2/models/there"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
