"""Bodies that nobody sends by accident: refused with a sentence, without an answer, and the next request is served."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from tests.serve.conftest import SHAPE, facts, pictures, request

from laocoon.serve.intake import enough


def changed(**other):
    body = request(pictures())
    body["inputs"][0].update(other)
    return json.dumps(body).encode()


def headed(tail=b"", length=None, **parameters):
    head = request(pictures())
    del head["inputs"][0]["data"]
    head["inputs"][0]["parameters"] = parameters
    text = json.dumps(head).encode()
    return text + tail, {"inference_header_content_length": str(len(text) if length is None else length)}


RAW = pictures().tobytes()
HOSTILE = {
    "empty": (b"", {}),
    "no json": (b"\x00\xff\xfe", {}),
    "a list": (b"[]", {}),
    "deep": (b'{"inputs":' + b"[" * 50_000, {}),
    "deep data": (changed(data=[]).replace(b'"data": []', b'"data":' + b"[" * 2000 + b"]" * 2000), {}),
    "no inputs": (b'{"inputs": []}', {}),
    "many inputs": (json.dumps({"inputs": request(pictures())["inputs"] * 17}).encode(), {}),
    "the same input twice": (json.dumps({"inputs": request(pictures())["inputs"] * 2}).encode(), {}),
    "another input": (changed(name="other"), {}),
    "huge shape, few data": (changed(shape=[2**40, *SHAPE]), {}),
    "huger shape": (changed(shape=[10**30]), {}),
    "zeros times huge": (changed(shape=[2**62, 0, 2**62], data=[]), {}),
    "negative": (changed(shape=[-1, *SHAPE]), {}),
    "two negatives": (changed(shape=[-1, -1, 4, 4]), {}),
    "shape of texts": (changed(shape=["1", "1", "4", "4"]), {}),
    "shape of booleans": (changed(shape=[True, 1, 4, 4]), {}),
    "no shape": (changed(shape=[]), {}),
    "twenty dimensions": (changed(shape=[1] * 20), {}),
    "no samples": (changed(shape=[0, *SHAPE], data=[]), {}),
    "transposed": (changed(shape=[1, 4, 4, 1]), {}),
    "too few data": (changed(data=[0.5] * 15), {}),
    "too many data": (changed(data=[0.5] * 17), {}),
    "ragged": (changed(data=[[0.5] * 8, [0.5] * 7]), {}),
    "texts": (changed(data=["0.5"] * 16), {}),
    "booleans": (changed(data=[True] * 16), {}),
    "nulls": (changed(data=[None] * 16), {}),
    "objects": (changed(data=[{}] * 16), {}),
    "large numbers": (changed(data=[10**400] * 16), {}),
    "NaN": (changed(data=[float("nan")] * 16), {}),
    "infinity": (changed(data=[float("inf")] * 16), {}),
    "overflow": (changed(data=[1e300] * 16), {}),
    "out of range": (changed(data=[255.0] * 16), {}),
    "wrong datatype": (changed(datatype="INT64", data=[1] * 16), {}),
    "unknown datatype": (changed(datatype="FP7"), {}),
    "bytes": (changed(datatype="BYTES", data=["a"] * 16), {}),
    "long name": (changed(name="n" * 10_000), {}),
    "long id": (json.dumps(request(pictures(), id="i" * 1000)).encode(), {}),
    "many outputs": (json.dumps(request(pictures(), outputs=[{"name": f"o{i}"} for i in range(100)])).encode(), {}),
    "binary size of text": headed(RAW, binary_data_size="64"),
    "binary size too large": headed(RAW, binary_data_size=10**12),
    "binary size negative": headed(RAW, binary_data_size=-1),
    "binary size of a truth": headed(RAW, binary_data_size=True),
    "binary too short": headed(RAW[:-4], binary_data_size=60),
    "binary left over": headed(RAW + b"more", binary_data_size=64),
    "binary NaN": headed(np.full(16, np.nan, np.float32).tobytes(), binary_data_size=64),
    "header beyond the body": headed(RAW, 10**6, binary_data_size=64),
    "header negative": headed(RAW, -5, binary_data_size=64),
    "header no number": headed(RAW, "0x10", binary_data_size=64),
    "header of zero": headed(RAW, 0, binary_data_size=64),
    "binary data beside data": (json.dumps({"inputs": [{**request(pictures())["inputs"][0],
                                                        "parameters": {"binary_data_size": 0}}]}).encode(), {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name, serve):
    served = serve()
    body, headers = HOSTILE[name]
    answer = served.raw(body, **headers)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) <= {"error", "parameters"} and len(answer.content) < 3000
    assert served.service.live.engine.watcher.seen == 0, "it came as far as the guard"
    assert served.lines[-1]["decision"] == "refused" and served.lines[-1]["status"] == 400
    assert served.infer(pictures()).status_code == 200


def test_compressed_bodies_are_not_unpacked(serve):
    served = serve()
    bomb = gzip.compress(b"[" * 50_000_000)
    answer = served.raw(bomb, content_encoding="gzip")
    assert answer.status_code == 415 and len(bomb) < 100_000
    assert served.raw(gzip.compress(changed()), content_encoding="identity").status_code == 400


def test_a_body_over_the_limit(serve):
    served = serve(max_body=1000)
    assert served.raw(b" " * 1001).status_code == 413
    assert served.raw(b"", content_length="99999999999999999999").status_code == 413

    async def endless():
        for _ in range(10**9):
            yield b" " * 100
    assert served.post("/v2/models/model/infer", content=endless()).status_code == 413  # counted, not believed


def test_a_batch_over_the_limit(serve):
    served = serve(max_batch=4)
    assert served.infer(pictures(4)).status_code == 200
    answer = served.infer(pictures(5))
    assert answer.status_code == 400 and "4" in answer.json()["error"]


def test_control_characters_do_not_reach_log_or_answer(serve):
    served = serve()
    answer = served.infer(pictures(), id="a\x1b[2J\nb")
    assert answer.status_code == 200 and "\x1b" not in served.service.record.audit.path.read_text()
    refused = served.post("/v2/models/model/infer", json=request(pictures(), outputs=[{"name": "\x1b[2J"}]))
    assert "\x1b" not in refused.json()["error"]


@pytest.mark.parametrize(("shape", "batch"), [((3, 224, 224), 1000), ((1, 4, 4), 8), ((3, 2000, 2000), 4)])
def test_the_usual_limit_has_room_for_a_sample_but_an_end(shape, batch):
    one, most = 32 * int(np.prod(shape)), enough(batch, facts(shape=shape))
    assert one < most <= 65536 + max(one, min(16 * 2**20, one * batch))
