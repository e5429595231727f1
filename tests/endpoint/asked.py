"""Servers that are asked, and what is said of those that misbehave."""

from __future__ import annotations

import numpy as np
import pytest
from tests.endpoint.server import Handler, Server, quarters

from laocoon.core.errors import InputError, LaocoonError
from laocoon.files.endpoint import endpoint_of
from laocoon.files.endpoint_http import VARIABLE
from laocoon.files.endpoint_options import EndpointOptions
from laocoon.files.open import load_model
from laocoon.files.tensors import Named
from laocoon.modalities.raw import ModelOptions

QUICK = EndpointOptions(rate=1e5, timeout=5.0, retries=2)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a server to recover."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("laocoon.files.endpoint_http._pause", lambda attempt, wished: 0.0)


def opened(server: Server, asking: EndpointOptions = QUICK, **options):
    return load_model(server.address, options=ModelOptions(**options), asking=asking)


def complaint(server: Server, asking: EndpointOptions = QUICK, **options) -> str:
    with server, pytest.raises(LaocoonError) as told:
        endpoint_of(opened(server, asking, **options)).close()
    assert isinstance(told.value, InputError) and told.value.remedy
    return str(told.value)


def says(status: int, body: bytes = b"{}", when: str = "infer", **headers: str):
    def spoil(handler: Handler, what: str) -> bool:
        if what == when:
            handler.raw(status, body, {"content-type": "text/plain", **{k.replace("_", "-"): v for k, v in headers.items()}})
        return what == when

    return spoil


def outputs(change):
    """Answers whose tensors were tampered with."""
    def spoil(handler: Handler, what: str) -> bool:
        if what == "infer":
            scores = quarters(handler.sent.inputs[0].array)["scores"]
            handler.answer({"scores": Named("scores", "FP32", change(scores).astype(np.float32))})
        return what == "infer"

    return spoil
