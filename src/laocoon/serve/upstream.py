"""Another server of the same protocol: the guard stands before it, or asks it as a black box.

What it answers is as untrusted as what clients send: size, schema, shapes and numbers are checked before any use.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.core.subject import Provenance, Subject
from laocoon.files.protocol import HEADER, ModelMetadata, TensorMetadata, read_response, write_request
from laocoon.files.tensors import Named
from laocoon.files.wording import printable
from laocoon.modalities.image import Image
from laocoon.serve.refusal import Refused

VARIABLE = "LAOCOON_UPSTREAM_KEY"  # sent as a bearer token
LARGEST = 64 * 2**20  # bytes of an answer
_MOST = 2**24  # elements of an output
_PART = 32  # samples asked about at a time where a guard has many questions; servers limit their batches


class Remote:
    """A model on another server. Blocking; safe to use from several threads."""

    def __init__(self, address: str, model: str, *, seconds: float, transport: Any = None) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx is not installed.", "pip install 'laocoon[serve]'") from None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InputError(f"--upstream is {printable(address, 80)!r}.", "Write it as http://HOST:PORT.")
        self.model = model
        self._errors = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
        self._address = f"{address.rstrip('/')}/v2/models/{quote(model, safe='')}"
        secret = os.environ.get(VARIABLE, "")
        self._client = httpx.Client(
            timeout=seconds, transport=transport, follow_redirects=False, trust_env=False,
            headers={"accept-encoding": "identity", **({"authorization": f"Bearer {secret}"} if secret else {})},
        )
        told = self._metadata()
        self._input, self._output = told.inputs[0].name, _scores(told)[0].name
        self.shape, self.classes = tuple(told.inputs[0].shape[1:]), _scores(told)[0].shape[1]
        self.outputs = tuple(told.outputs)

    def _metadata(self) -> ModelMetadata:
        """Of a model that takes one image in FP32 and gives class scores; InputError for others."""
        _, body = self._exchange("GET", "", b"", {})
        try:
            told = ModelMetadata.model_validate_json(body)
        except ValueError:
            raise BrokenFile(f"the upstream's metadata of {printable(self.model, 60)} are not those of the protocol.",
                             "Check --upstream and --upstream-model.") from None
        images = [i for i in told.inputs if i.datatype == "FP32" and len(i.shape) == 4 and min(i.shape[1:]) > 0]
        if len(told.inputs) != 1 or not images or not _scores(told):
            raise InputError(
                f"the upstream's model {printable(self.model, 60)} is no image classifier in FP32 (one input "
                "[-1, channels, height, width], an output [-1, classes]).", "The guard cannot stand before it.")
        return told

    def infer(self, batch: Tensor) -> tuple[Named, ...]:
        """Every output for a batch; each has a row a sample and finite numbers. Refused (502) otherwise."""
        array = np.ascontiguousarray(batch.detach().float().cpu().numpy())
        written = write_request([Named(self._input, "FP32", array)])
        header, body = self._exchange("POST", "/infer", written.body, dict(written.headers))
        try:
            outputs = read_response(body, header, _MOST)
        except InputError as error:
            raise Refused(502, f"the upstream's answer cannot be used: {error.problem}") from None
        for output in outputs:
            if output.array.shape[:1] != (len(batch),):
                raise Refused(502, f"the upstream's output {printable(output.name, 60)!r} has not one row a sample.")
            if output.array.dtype.kind == "f" and not np.isfinite(output.array).all():
                raise Refused(502, f"the upstream's output {printable(output.name, 60)!r} holds no numbers.")
        self.scores(outputs, len(batch))
        return outputs

    def scores(self, outputs: tuple[Named, ...], count: int) -> Tensor:
        """The class scores among the outputs, [count, classes]."""
        for output in outputs:
            if output.name == self._output and output.array.shape == (count, self.classes):
                return torch.from_numpy(np.array(output.array, np.float32))
        raise Refused(502, f"the upstream's answer lacks its class scores {printable(self._output, 60)!r}.")

    def _exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[str | None, bytes]:
        try:
            with self._client.stream(method, self._address + path, content=body, headers=headers) as answer:
                parts, size = [], 0
                for part in answer.iter_raw():
                    size += len(part)
                    if size > LARGEST:
                        raise Refused(502, f"the upstream's answer has more than {LARGEST} bytes.")
                    parts.append(part)
                if answer.status_code != 200:
                    raise Refused(502, f"the upstream answered with status {answer.status_code}.")
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise Refused(502, "the upstream's answer is compressed, which was not asked for.")
                return answer.headers.get(HEADER), b"".join(parts)
        except self._errors as error:
            raise Refused(502, f"the upstream cannot be reached ({type(error).__name__}).") from None

    def close(self) -> None:
        self._client.close()


def _scores(told: ModelMetadata) -> list[TensorMetadata]:
    kinds = ("FP16", "FP32", "FP64")
    return [o for o in told.outputs if o.datatype in kinds and len(o.shape) == 2 and o.shape[1] > 1]


class Asking(nn.Module):
    """A remote model as a network: class scores out, logarithms where they are probabilities."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self.remote = remote

    def forward(self, batch: Tensor) -> Tensor:
        parts = batch.split(_PART) if len(batch) else ()
        scores = torch.cat([torch.zeros(0, self.remote.classes),
                            *(self.remote.scores(self.remote.infer(part), len(part)) for part in parts)])
        shares = bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all())
        return scores.clamp_min(1e-30).log() if shares else scores


def black_box(remote: Remote, address: str) -> Subject:
    """A subject that can only be asked."""
    where = Provenance(path=printable(address), format="Open Inference Protocol v2")
    return Subject(Asking(remote), Image(), remote.classes, remote.shape, frozenset({Capability.QUERY}), where)
