"""In front of another server: what is flagged does not reach it, what it says is checked."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
import torch
from tests.serve.conftest import CLASSES, SHAPE, BrightCorner, corner_off, facts, pictures

from laocoon.core.cases import Samples
from laocoon.core.errors import InputError, LaocoonError
from laocoon.files.protocol import HEADER, Asked, read_request, write_response
from laocoon.files.tensors import Named
from laocoon.serve import assemble
from laocoon.serve.engine import Engine
from laocoon.serve.refusal import Refused
from laocoon.serve.settings import ServeOptions
from laocoon.serve.upstream import VARIABLE, Remote, black_box
from laocoon.verdict.guard import Guarded

METADATA = {"name": "there", "versions": ["1"], "platform": "x", "parameters": {},
            "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, *SHAPE]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]},
                        {"name": "rank", "datatype": "INT32", "shape": [-1, 1]}]}


class There:
    """A server of the protocol, as a transport; `spoil` changes its answer."""

    def __init__(self, spoil=None, metadata=METADATA):
        self.seen, self.spoil, self.metadata, self.headers = [], spoil, metadata, None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers = request.headers
        if request.method == "GET":
            assert request.url.path == "/v2/models/there"
            return httpx.Response(200, json=self.metadata)
        assert request.url.path == "/v2/models/there/infer"
        asked = read_request(request.content, request.headers[HEADER], 10_000)
        x = torch.from_numpy(np.array(asked.inputs[0].array))
        self.seen.append(x)
        logits = BrightCorner().check(x).logits
        outputs = [Named("scores", "FP32", logits.numpy()),
                   Named("rank", "INT32", logits.argmax(1, keepdim=True).int().numpy())]
        if self.spoil is not None:
            answer = self.spoil(outputs)
            if isinstance(answer, httpx.Response):
                return answer
            outputs = answer
        written = write_response(Asked(None, (), (), True), "there", "1", outputs, {})
        return httpx.Response(200, content=written.body, headers=dict(written.headers))


def remote(there):
    def streamed(request):  # as from a socket: not read yet
        answer = there(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)
    return Remote("http://there:1", "there", seconds=1.0, transport=httpx.MockTransport(streamed))


def engine(there):
    return Engine(BrightCorner(), facts(), corner_off, remote(there))


def test_its_outputs_are_passed_on_with_decisions(serve):
    there = There()
    served, x = serve("abstain", engine=engine(there)), pictures(3, triggered=(1,))
    body = served.infer(x).json()
    scores, rank = body["outputs"]
    wanted = BrightCorner().check(torch.from_numpy(x)).logits
    assert np.allclose(scores["data"][:3] + scores["data"][6:], wanted[[0, 2]].ravel()) and scores["data"][3:6] == [None] * 3
    assert rank["shape"] == [3, 1] and rank["data"][1] == -1
    assert body["parameters"]["laocoon_decision"] == "passed,abstained,passed"
    (seen,) = there.seen
    assert not seen[1].any() and torch.equal(seen[[0, 2]], torch.from_numpy(x)[[0, 2]])
    assert served.get("/v2/models/model").json()["outputs"] == METADATA["outputs"]


def test_a_blocked_request_does_not_reach_it(serve):
    there = There()
    assert serve("block", engine=engine(there)).infer(pictures(2, triggered=(0,))).status_code == 403
    assert not there.seen


def test_purified_inputs_are_what_it_sees(serve):
    there = There()
    body = serve("purify", engine=engine(there)).infer(pictures(2, triggered=(0,))).json()
    assert body["parameters"]["laocoon_decision"] == "purified,passed" and there.seen[0][0, 0, 0, 0] == 0


def test_another_model_there_is_noticed(serve):
    def turned(outputs):
        return [Named("scores", "FP32", outputs[0].array[:, ::-1].copy() * 10), outputs[1]]

    x = pictures(1)
    x[0, 0, 2:] = 1  # a clear case of one class
    answer = serve("block", engine=engine(There(turned))).infer(x)
    assert answer.status_code == 502 and "another class" in answer.json()["error"] and "outputs" not in answer.text
    body = serve("abstain", engine=engine(There(turned))).infer(x).json()
    assert body["parameters"]["laocoon_decision"] == "abstained" and body["outputs"][1]["data"] == [-1]
    assert serve("log", engine=engine(There(turned))).infer(x).json()["parameters"]["laocoon_decision"] == "logged"


SPOILT = {
    "an error": lambda o: httpx.Response(500, json={"error": "no"}),
    "a redirection": lambda o: httpx.Response(302, headers={"location": "http://elsewhere/"}),
    "no json": lambda o: httpx.Response(200, content=b"<html>"),
    "another schema": lambda o: httpx.Response(200, json={"outputs": [{"name": "scores"}]}),
    "compressed": lambda o: httpx.Response(200, headers={"content-encoding": "gzip"}, content=b""),
    "too few rows": lambda o: [Named("scores", "FP32", o[0].array[:1]), o[1]],
    "too few rows beside": lambda o: [o[0], Named("rank", "INT32", o[1].array[:1])],
    "NaN": lambda o: [Named("scores", "FP32", o[0].array * np.nan), o[1]],
    "no scores": lambda o: [o[1]],
    "other classes": lambda o: [Named("scores", "FP32", o[0].array[:, :2].copy()), o[1]],
    "a huge shape": lambda o: httpx.Response(200, json={"model_name": "x", "outputs": [
        {"name": "scores", "datatype": "FP32", "shape": [2**60], "data": [1]}]}),
    "endless": lambda o: httpx.Response(200, content=iter([b"x" * 2**20] * 100)),
}


@pytest.mark.parametrize("policy", ["log", "abstain"])
@pytest.mark.parametrize("name", SPOILT)
def test_what_it_says_is_checked(name, policy, serve):
    served = serve(policy, engine=engine(There(SPOILT[name])))
    answer = served.infer(pictures(2))
    assert answer.status_code == 502, answer.text
    assert "outputs" not in answer.json() and served.lines[-1]["decision"] == "refused"


def test_nobody_there(serve):
    def refuse(request):
        if request.method == "GET":
            return httpx.Response(200, json=METADATA)
        raise httpx.ConnectError("refused")
    assert serve("log", engine=engine(refuse)).infer(pictures()).status_code == 502


@pytest.mark.parametrize("change", [{"inputs": []}, {"outputs": METADATA["outputs"][1:]}, {"platform": None},
                                    {"inputs": [{"name": "t", "datatype": "INT64", "shape": [-1, 5]}]}])
def test_models_that_cannot_be_guarded(change):
    with pytest.raises(LaocoonError):
        remote(There(metadata={**METADATA, **change}))


@pytest.mark.parametrize("address", ["there", "ftp://there", "http://", "http://user:pw@there", "file:///etc"])
def test_addresses(address):
    with pytest.raises(InputError, match="--upstream"):
        Remote(address, "there", seconds=1.0)


def test_as_a_black_box(monkeypatch):
    monkeypatch.setenv(VARIABLE, "their-secret")
    there = There()
    subject = black_box(remote(there), "http://there:1")
    x = torch.from_numpy(pictures(2))
    assert torch.allclose(subject.outputs(x).logits, BrightCorner().check(x).logits)
    assert there.headers["authorization"] == "Bearer their-secret"

    def shares(outputs):
        p = torch.from_numpy(outputs[0].array).softmax(1).numpy()
        return [Named("scores", "FP32", p), outputs[1]]
    said = black_box(remote(There(shares)), "").outputs(x).logits
    assert torch.allclose(said.softmax(1), BrightCorner().check(x).logits.softmax(1), atol=1e-5)
    with pytest.raises(Refused):
        black_box(remote(There(SPOILT["NaN"])), "").outputs(x)


def test_json_of_the_metadata_is_not_trusted():
    def odd(request):
        return httpx.Response(200, content=json.dumps({**METADATA, "outputs": [[[]]]}).encode())
    with pytest.raises(LaocoonError, match="metadata"):
        remote(odd)


def test_a_guard_for_a_black_box(monkeypatch, serve, tmp_path):
    """Fitted, saved, loaded and served with nothing but the address."""
    there = There()
    monkeypatch.setattr(assemble, "Remote", lambda *_, **__: remote(there))
    subject = assemble.subject_of("http://there:1", architecture=None, options=None, device="cpu", upstream_model="there")
    x = torch.from_numpy(pictures(80))
    Guarded.fit(subject, Samples(x, subject.outputs(x).logits.argmax(1)), alpha=0.1).save(tmp_path / "guard")
    engine = assemble.load_engine("http://there:1", tmp_path / "guard", ServeOptions(upstream_model="there"))
    there.seen.clear()
    served = serve("log", engine=engine)
    body = served.infer(pictures(3, seed=5)).json()
    assert [o["name"] for o in body["outputs"]] == ["scores", "rank"] and len(there.seen) > 3  # many questions
    assert max(map(len, there.seen)) <= 32
    with pytest.raises(InputError, match="upstream-model"):
        assemble.subject_of("http://there:1", architecture=None, options=None, device="cpu", upstream_model=None)
