"""Every answer has the schema of the Open Inference Protocol v2, as JSON and with binary tensors."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.conftest import BrightCorner, pictures, request

from laocoon.core.errors import InputError
from laocoon.files.protocol import HEADER, InferResponse, ModelMetadata, read_request, read_response, write_request
from laocoon.files.tensors import DATATYPES, Named, from_bytes, from_json, to_bytes, to_json

PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
TENSOR = {"type": "object", "required": ["name", "shape", "datatype"], "properties": {
    "name": {"type": "string"}, "shape": {"type": "array", "items": {"type": "integer"}},
    "datatype": {"enum": list(DATATYPES)}, "parameters": PARAMETERS, "data": {"type": "array"}},
    "additionalProperties": False}
RESPONSE = {"type": "object", "required": ["model_name", "outputs"], "additionalProperties": False, "properties": {
    "model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
    "parameters": PARAMETERS, "outputs": {"type": "array", "items": TENSOR}}}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}, "parameters": PARAMETERS},
         "additionalProperties": False}
SERVER = {"type": "object", "required": ["name", "version", "extensions"], "additionalProperties": False, "properties": {
    "name": {"type": "string"}, "version": {"type": "string"},
    "extensions": {"type": "array", "items": {"type": "string"}}}}
METADATA = {"type": "object", "required": ["name", "platform", "inputs", "outputs"], "properties": {
    **{k: {"type": "array", "items": {"type": "object", "required": ["name", "datatype", "shape"]}}
       for k in ("inputs", "outputs")}, "versions": {"type": "array", "items": {"type": "string"}}}}


def test_health_and_metadata(serve):
    served = serve()
    assert served.get("/v2/health/live").json() == {"live": True}
    ready = served.get("/v2/health/ready")
    assert ready.status_code == 200 and ready.json() == {"ready": True}
    jsonschema.validate(served.get("/v2").json(), SERVER)
    metadata = served.get("/v2/models/model").json()
    jsonschema.validate(metadata, METADATA)
    version = ModelMetadata.model_validate(metadata).versions[0]
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert served.get(f"/v2/models/model/versions/{version}").json() == metadata
    for path in ("/v2/models/model/ready", f"/v2/models/model/versions/{version}/ready"):
        assert served.get(path).json() == {"name": "model", "ready": True}
    answer = served.post(f"/v2/models/model/versions/{version}/infer", json=request(pictures()))
    assert answer.status_code == 200 and answer.json()["model_version"] == version


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/ready", "/v2/models/model/versions/9", "/v3",
                                  "/v2/models/model/versions/9/ready", "/v2/models/model/", "/openapi.json", "/docs"])
def test_what_is_not_there(serve, path):
    answer = serve().get(path)
    assert answer.status_code == 404
    jsonschema.validate(answer.json(), ERROR)


def test_wrong_method_and_version(serve):
    served = serve()
    for answer in (served.get("/v2/models/model/infer"), served.post("/v2/models/model/versions/9/infer", json={}),
                   served.post("/v2/models/other/infer", json=request(pictures()))):
        assert answer.status_code in (404, 405)
        jsonschema.validate(answer.json(), ERROR)


def test_an_answer(serve):
    x = pictures(3)
    answer = serve().infer(x, id="mine")
    body = answer.json()
    jsonschema.validate(body, RESPONSE)
    InferResponse.model_validate(body)
    logits, label = body["outputs"]
    wanted = BrightCorner().check(torch.from_numpy(x)).logits.numpy()
    assert np.allclose(np.reshape(logits["data"], logits["shape"]), wanted, atol=1e-5)
    assert label["data"] == wanted.argmax(1).tolist() and label["datatype"] == "INT64" and label["shape"] == [3]
    assert body["id"] == "mine" and body["parameters"]["laocoon_decision"] == "passed,passed,passed"
    assert len(body["parameters"]["laocoon_p_value"].split(",")) == 3
    assert answer.headers["x-request-id"] == body["parameters"]["laocoon_request"]


def test_outputs_that_are_asked_for(serve):
    served = serve()
    body = served.infer(pictures(2), outputs=[{"name": "label"}]).json()
    assert [o["name"] for o in body["outputs"]] == ["label"]
    answer = served.infer(pictures(2), outputs=[{"name": "secret"}])
    assert answer.status_code == 400
    jsonschema.validate(answer.json(), ERROR)


def test_nested_data(serve):
    served, x = serve(), pictures(2)
    nested = request(x)
    nested["inputs"][0]["data"] = x.tolist()
    flat = served.infer(x).json()["outputs"]
    assert served.post("/v2/models/model/infer", json=nested).json()["outputs"] == flat


def binary(x, **other):
    head = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape),
                        "parameters": {"binary_data_size": x.nbytes}}], **other}
    head = json.dumps(head).encode()
    return head + x.tobytes(), {"inference_header_content_length": str(len(head))}


def test_binary_tensors_both_ways(serve):
    served, x = serve(), pictures(2)
    plain = served.infer(x).json()["outputs"]
    body, headers = binary(x)
    assert served.raw(body, **headers).json()["outputs"] == plain
    for wish in ({"parameters": {"binary_data_output": True}},
                 {"outputs": [{"name": "logits", "parameters": {"binary_data": True}},
                              {"name": "label", "parameters": {"binary_data": True}}]}):
        body, headers = binary(x, **wish)
        answer = served.raw(body, **headers)
        length = int(answer.headers[HEADER])
        assert answer.headers["content-type"] == "application/octet-stream"
        jsonschema.validate(json.loads(answer.content[:length]), RESPONSE)
        logits, label = read_response(answer.content, str(length), 1000)
        assert np.allclose(logits.array.ravel(), plain[0]["data"]) and label.array.tolist() == plain[1]["data"]
    body, headers = binary(x, outputs=[{"name": "label"}, {"name": "logits", "parameters": {"binary_data": True}}])
    answer = served.raw(body, **headers)
    head = json.loads(answer.content[: int(answer.headers[HEADER])])
    assert head["outputs"][0]["data"] == plain[1]["data"]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 2 * 3 * 4} and "data" not in head["outputs"][1]


NUMBERS = {"b": st.booleans(), "u": st.integers(0, 200), "i": st.integers(-100, 100),
           "f": st.floats(-100, 100, width=16), "O": st.text("ab é", max_size=5)}


@given(st.data(), st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_tensors_survive_the_way(data, datatype, shape):
    count = int(np.prod(shape))
    values = data.draw(st.lists(NUMBERS[DATATYPES[datatype].kind], min_size=count, max_size=count))
    tensor = from_json("t", datatype, shape, values, 100)
    assert to_json(tensor) == values
    back = from_bytes("t", datatype, shape, to_bytes(tensor), 100)
    assert to_json(back) == values and back.array.shape == tuple(shape)


@given(st.binary(max_size=300), st.one_of(st.none(), st.text("09-x", max_size=5), st.integers(0, 300).map(str)))
def test_arbitrary_bytes_are_read_or_refused(body, header):
    try:
        read_request(body, header, 100)
    except InputError:
        return
    raise AssertionError("random bytes are no request")


def test_what_we_ask_upstream_is_a_request():
    written = write_request([Named("input", "FP32", pictures(2))])
    asked = read_request(written.body, written.headers[HEADER], 32)
    assert asked.binary and np.array_equal(asked.inputs[0].array, pictures(2))
