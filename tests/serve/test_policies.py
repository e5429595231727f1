"""What becomes of flagged samples, and that a guard which fails lets nothing through."""

from __future__ import annotations

import jsonschema
import numpy as np
import pytest
import torch
from tests.serve.conftest import CLASSES, BrightCorner, corner_off, facts, pictures, request
from tests.serve.test_protocol import ERROR, RESPONSE

from laocoon.core.errors import InputError
from laocoon.files.protocol import HEADER, read_response
from laocoon.serve.engine import Engine, Judged


def test_log_answers_and_says_so(serve):
    served = serve("log")
    body = served.infer(pictures(3, triggered=(1,))).json()
    assert body["parameters"]["laocoon_decision"] == "passed,logged,passed"
    assert len(body["outputs"][1]["data"]) == 3 and None not in body["outputs"][0]["data"]
    p = [float(v) for v in body["parameters"]["laocoon_p_value"].split(",")]
    assert p[1] == 0.01 and min(p[0], p[2]) > 0.05 and body["parameters"]["laocoon_tier"].split(",")[1] == "2"
    (line,) = served.lines
    assert [s["decision"] for s in line["samples"]] == ["passed", "logged", "passed"]
    assert [s["flagged"] for s in line["samples"]] == [False, True, False]
    assert served.metric('laocoon_guard_inputs_scored_total{verdict="flagged"}') == 1
    assert served.metric('laocoon_guard_inputs_decided_total{decision="logged"}') == 1


def test_block_tells_which_and_nothing_else(serve):
    served = serve("block")
    assert served.infer(pictures(2)).status_code == 200
    answer = served.infer(pictures(4, triggered=(1, 3)))
    assert answer.status_code == 403
    jsonschema.validate(answer.json(), ERROR)
    assert answer.json()["parameters"]["laocoon_blocked"] == "1,3"
    assert "output" not in answer.text and "p_value" not in answer.text  # nor a hint how near a trigger came
    assert [s["decision"] for s in served.lines[-1]["samples"]] == ["refused", "blocked", "refused", "blocked"]


def test_abstain_leaves_rows_out(serve):
    served, x = serve("abstain"), pictures(3, triggered=(2,))
    plain = serve("log").infer(x).json()["outputs"]
    body = served.infer(x).json()
    jsonschema.validate(body, RESPONSE)
    logits, label = body["outputs"]
    assert label["data"] == [*plain[1]["data"][:2], -1]
    assert logits["data"] == [*plain[0]["data"][:6], None, None, None]
    assert body["parameters"]["laocoon_decision"] == "passed,passed,abstained"
    wish = [{"name": "logits", "parameters": {"binary_data": True}}]
    answer = served.infer(x, outputs=wish)
    (raw,) = read_response(answer.content, answer.headers[HEADER], 100)
    assert np.isnan(raw.array[2]).all() and np.isfinite(raw.array[:2]).all()


def test_purify_answers_for_the_cleaned_input(serve):
    x = pictures(3, triggered=(0,))
    served = serve("purify")
    body = served.infer(x).json()
    assert body["parameters"]["laocoon_decision"] == "purified,passed,passed"
    wanted = BrightCorner().check(corner_off(torch.from_numpy(x[:1]))).logits[0]
    assert np.allclose(body["outputs"][0]["data"][:CLASSES], wanted, atol=1e-5)


def test_purify_abstains_where_the_trigger_stays(serve):
    engine = Engine(BrightCorner(), facts(), lambda batch: batch)
    body = serve("purify", engine=engine).infer(pictures(2, triggered=(0,))).json()
    assert body["parameters"]["laocoon_decision"] == "abstained,passed"
    assert body["outputs"][1]["data"][0] == -1


def test_purify_needs_a_purifier(serve):
    with pytest.raises(InputError, match="purifier"):
        serve("purify", engine=Engine(BrightCorner(), facts()))


class Broken(BrightCorner):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def check(self, batch):
        said = super().check(batch)
        return self.how(said)


def _raise(error):
    raise error


def swap(**other):
    return lambda said: Judged(**{k: other.get(k, lambda v: v)(getattr(said, k))
                                  for k in ("logits", "flagged", "p_values", "scores", "tier")})


FAILURES = {
    "an exception": lambda said: _raise(ZeroDivisionError("secret detail")),
    "an odd exception": lambda said: _raise(MemoryError()),
    "its own error": lambda said: _raise(RuntimeError("secret detail")),
    "too few": lambda said: Judged(said.logits[:1], said.flagged[:1], said.p_values[:1], said.scores[:1], said.tier[:1]),
    "no flags": swap(flagged=lambda v: v[:0]),
    "a score that is none": swap(scores=lambda v: v * float("nan")),
    "p-values that are none": swap(p_values=lambda v: v * float("nan")),
    "p-values above one": swap(p_values=lambda v: v + 1),
    "logits that are none": swap(logits=lambda v: v / 0),
    "logits of another model": swap(logits=lambda v: torch.cat([v, v], 1)),
    "nothing": lambda said: None,
}


@pytest.mark.parametrize("policy", ["log", "block", "abstain", "purify"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_guard_that_fails_lets_nothing_through(name, policy, serve):
    served = serve(policy, watcher=Broken(FAILURES[name]))
    answer = served.infer(pictures(2))
    assert answer.status_code == 500, answer.text
    jsonschema.validate(answer.json(), ERROR)
    assert "output" not in answer.text and "secret" not in answer.text
    assert served.lines[-1]["decision"] == "refused"


def test_a_guard_that_contradicts_itself_lets_nothing_through(serve):
    forgetful = Broken(swap(flagged=torch.zeros_like))
    served = serve("block", watcher=forgetful)
    assert served.infer(pictures(2)).status_code == 200  # nothing to flag
    assert served.infer(pictures(2, triggered=(1,))).status_code == 500


def test_one_bad_request_does_not_spoil_its_neighbours(serve):
    """Requests that come together are judged together; where that fails each is judged alone."""
    def choke(batch):
        if float(batch[:, 0, 3, 3].min()) == 0.125:
            raise RuntimeError("cannot")

    served = serve("log", watcher=BrightCorner(choke))
    good, bad = pictures(2), pictures(2)
    bad[:, 0, 3, 3] = 0.125

    async def together():
        import asyncio
        return await asyncio.gather(*(served.ask("POST", "/v2/models/model/infer", json=request(x))
                                      for x in (good, good, bad, good)))
    assert [a.status_code for a in served.runner.run(together())] == [200, 200, 500, 200]
