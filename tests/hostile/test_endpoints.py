"""Servers that lie, drip, flood or fail: each ends in one sentence that names the thing, the value and the remedy."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.endpoint.asked import QUICK, complaint, hasty, outputs, says
from tests.endpoint.server import SHAPE, Handler, Server

from laocoon.files.endpoint_http import LARGEST
from laocoon.files.tensors import Named

__all__ = ["hasty"]


def with_nan(scores):
    return np.where(np.arange(scores.shape[1]) == 1, np.nan, scores)


def drip(handler: Handler, what: str) -> bool:
    """A header, then a byte now and then, for ever."""
    if what == "infer":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        for _ in range(400):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    return what == "infer"


def drip_headers(handler: Handler, what: str) -> bool:
    if what == "metadata":
        for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
    return what == "metadata"


def flood(handler: Handler, what: str) -> bool:
    if what == "infer":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        for _ in range(10 * 1024):
            handler.wfile.write(b" " * 2**20)
    return what == "infer"


def hang(handler: Handler, what: str) -> bool:
    if what == "infer":
        time.sleep(3)
    return False


HOSTILE = {
    "500": (says(500, b"oh no"), "status 500: oh no"),
    "401": (says(401), "asks for a key"),
    "403": (says(403, when="metadata"), "asks for a key"),
    "429 for ever": (says(429), "Lower --rate"),
    "503 for ever": (says(503), "status 503"),
    "413": (says(413), "--per-request"),
    "redirect": (says(302, when="metadata", location="http://169.254.169.254/"), "redirects to http://169.254.169.254/"),
    "web page": (says(200, b"<!DOCTYPE html><p>hello", when="metadata"), "web page"),
    "web page instead of an answer": (says(200, b"<html>"), "web page"),
    "nothing": (says(200, b""), "answers with nothing"),
    "not JSON": (says(200, b"\xff\xfe{"), "cannot be used"),
    "JSON of something else": (says(200, b'{"predictions": [1]}'), "cannot be used"),
    "deep JSON": (says(200, b"[" * 200_000), "cannot be used"),
    "no metadata": (says(200, b"[]", when="metadata"), "does not answer as the Open Inference Protocol v2"),
    "compressed": (says(200, b"x", content_encoding="gzip"), "compressed"),
    "announces 10 GB": (says(200, b"x", content_length=str(10 * 2**30)), "announces an answer of"),
    "more classes than promised": (outputs(lambda s: np.concatenate([s, s], 1)), "its metadata promise [-1, 4]"),
    "a row too few": (outputs(lambda s: s[1:] if len(s) > 1 else np.repeat(s, 2, 0)), "samples"),
    "one row for all": (outputs(lambda s: s[:1].repeat(5, 0)), "for 1 samples"),
    "NaN": (outputs(with_nan), "no finite numbers"),
    "infinite": (outputs(lambda s: s / 0 + 1), "no finite numbers"),
    "flat": (outputs(lambda s: s.reshape(-1)), "shape"),
    "another output": (lambda h, w: w == "infer" and (h.answer({"z": Named("z", "FP32", np.zeros((1, 4), "f4"))}) or True),
                       "lacks the output 'scores'"),
    "text instead of numbers": (says(200, json.dumps({"model_name": "there", "outputs": [
        {"name": "scores", "datatype": "BYTES", "shape": [1, 4], "data": ["a", "b", "c", "d"]}]}).encode()), "as BYTES"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_server_that_misbehaves(name):
    spoil, expected = HOSTILE[name]
    assert expected in complaint(Server(spoil=spoil))


@pytest.mark.parametrize("spoil", [drip, drip_headers, hang])
def test_slowness_ends_at_the_deadline(spoil):
    start = time.monotonic()
    assert "did not answer in 0.4 s" in complaint(Server(spoil=spoil), replace(QUICK, timeout=0.4, retries=1))
    assert time.monotonic() - start < 4


def test_an_endless_answer_is_cut():
    assert f"more than {LARGEST} bytes" in complaint(Server(spoil=flood), replace(QUICK, timeout=60))


METADATA = {
    "two inputs": ({"inputs": [{"name": n, "datatype": "FP32", "shape": [-1, *SHAPE]} for n in "ab"]}, "takes 2 inputs"),
    "texts": ({"inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]}, "takes texts"),
    "whole numbers": ({"inputs": [{"name": "t", "datatype": "INT64", "shape": [-1, 5]}]}, "takes INT64"),
    "five axes": ({"inputs": [{"name": "t", "datatype": "FP32", "shape": [-1, 3, 4, 5, 6]}]}, "takes the shape"),
    "no size": ({"inputs": [{"name": "t", "datatype": "FP32", "shape": [-1, 0, 4]}]}, "takes the shape"),
    "huge": ({"inputs": [{"name": "t", "datatype": "FP32", "shape": [-1, 3, 10**9, 10**9]}]}, "takes the shape"),
    "no outputs": ({"outputs": []}, "has 0 outputs"),
    "outputs of texts": ({"outputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]}, "are no numbers"),
    "a lie about the classes": ({"outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 7]}]},
                                "its metadata promise [-1, 7]"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_cannot_be(name):
    change, expected = METADATA[name]
    assert expected in complaint(Server(**change))


def test_other_classes_from_one_answer_to_the_next():
    open_ended = [{"name": "scores", "datatype": "FP32", "shape": [-1, -1]}]
    turns = iter(range(10**6))
    assert "before it was [[4]]" in complaint(
        Server(outputs=open_ended, spoil=outputs(lambda s: s if next(turns) == 0 else s[:, :3])))
