"""`laocoon scan http://…`: the bundled models behind a server of the protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.endpoint.server import Server, of

from laocoon.files.open import load_model

FAST = ("--rate", "100000", "--per-request", "256", "--html", "none")


@pytest.fixture(scope="module")
def vendor() -> Callable[..., Server]:
    from importlib.resources import files

    def serve(name: str, **options) -> Server:
        subject = load_model(str(files("laocoon").joinpath("demo", f"{name}.onnx")))
        return Server(of(subject.module, only_labels=options.pop("only_labels", False)), shape=subject.input_shape,
                      **options)

    return serve


@pytest.mark.parametrize("only_labels", [False, True])
def test_the_backdoored_model_is_suspicious(laocoon, vendor, digits, only_labels):
    with vendor("backdoored", only_labels=only_labels) as server:
        ran = laocoon("scan", server.address, "--data", digits, "--classes", 10, *FAST, "--json", "report.json")
    assert ran.code == 1, ran.text
    report = json.loads(Path("report.json").read_text())
    assert report["verdict"] == "SUSPICIOUS" and report["p_value"] <= 0.05
    assert report["evidence"][0]["success"] > 0.8 and report["evidence"][0]["method"] == "sparse_rs"
    assert report["calibration"]["references"] >= 40
    assert report["subject"]["path"] == server.address and report["subject"]["queries"] <= 20000
    assert report["subject"]["queries"] <= server.samples <= 20000
    assert [r["method"] for r in report["reports"]] == ["sparse_rs"]
    assert ("hard-label" in report["subject"]["capabilities"]) is only_labels


def test_silence_comes_with_its_power_and_its_limits(laocoon, vendor, digits):
    with vendor("clean") as server:
        ran = laocoon("scan", server.address, "--data", digits, *FAST, "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert ran.code == 0 and report["verdict"] == "NO_EVIDENCE", report["reason"]
    assert "nothing but small patches is looked for" in report["reason"]
    core = [row for row in report["power"] if row["core"]]
    rest = [row for row in report["power"] if not row["core"]]
    assert core and rest  # what is not found is told too
    assert sum(r["found"] for r in core) / sum(r["tried"] for r in core) > sum(r["found"] for r in rest) / sum(
        r["tried"] for r in rest)


def test_a_spent_budget_is_inconclusive(laocoon, vendor, digits):
    with vendor("clean") as server:
        ran = laocoon("scan", server.address, "--data", digits, *FAST, "--queries", 2000, "--json", "report.json")
        assert server.samples <= 2000
    report = json.loads(Path("report.json").read_text())
    assert ran.code == 3 and report["verdict"] == "INCONCLUSIVE" and "budget" in report["reason"]
    with vendor("clean") as server:
        ran = laocoon("scan", server.address, "--data", digits, *FAST, "--queries", 150)
    assert ran.code in (2, 3) and "--queries" in ran.text and "Traceback" not in ran.text


def test_an_interrupted_scan_goes_on_without_asking_again(laocoon, vendor, digits):
    with vendor("clean") as server:
        first = laocoon("scan", server.address, "--data", digits, *FAST, "--resume", "kept", "--json", "first.json")
        asked = server.samples
        again = laocoon("scan", server.address, "--data", digits, *FAST, "--resume", "kept", "--json", "again.json")
        assert server.samples - asked < 80  # the trial at the beginning and the checks; samples, methods: none
    one, two = (json.loads(Path(f"{n}.json").read_text()) for n in ("first", "again"))
    assert first.code == again.code and one["p_value"] == two["p_value"]


def test_a_server_that_fails_on_the_way_is_inconclusive(laocoon, vendor, digits):
    turns = iter(range(10**6))

    def fails(handler, what):
        if what == "infer" and next(turns) > 12:
            handler.say({"error": "out of memory"}, 500)
            return True
        return False

    with vendor("clean", spoil=fails) as server:
        ran = laocoon("scan", server.address, "--data", digits, *FAST)
    assert ran.code == 3 and "INCONCLUSIVE" in ran.text and "could not be asked again" in ran.text


def test_a_model_that_is_exchanged_is_inconclusive(laocoon, vendor, digits):
    with vendor("backdoored") as other, vendor("clean") as server:
        first = server.model
        server.model = lambda x: (other.model if server.samples > 1000 else first)(x)
        ran = laocoon("scan", server.address, "--data", digits, *FAST)
    assert ran.code == 3 and "changed while it was asked" in ran.text


def test_what_cannot_be(laocoon, vendor, digits):
    with vendor("clean") as server:
        ran = laocoon("scan", server.address, "--data", digits, *FAST, "--power", 2)
        assert ran.code == 2 and "can only be asked" in ran.text
        ran = laocoon("scan", server.base, *FAST)
        assert ran.code == 2 and "names no model" in ran.text
        ran = laocoon("scan", f"{server.base}/v2/models/elsewhere", *FAST)
        assert ran.code == 2 and "404" in ran.text
        ran = laocoon("scan", server.address, "--data", digits, "--rate", "0")
        assert ran.code == 2 and "--rate" in ran.text
    ran = laocoon("scan", server.address, *FAST, "--retries", "0")
    assert ran.code == 2 and "refuses connections" in ran.text
