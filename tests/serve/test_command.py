"""`laocoon guard fit | check | serve`, with the real guard and a bundled model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from laocoon.cli.demo import clean_digits
from laocoon.cli.main import app
from laocoon.core.errors import InputError
from laocoon.serve.assemble import load_engine
from laocoon.serve.settings import ServeOptions

DEMO = Path(str(files("laocoon").joinpath("demo")))
MODEL = DEMO / "backdoored.onnx"


def run(*arguments):
    ran = CliRunner().invoke(app, ["guard", *map(str, arguments)])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clean digits, a guard fitted on half of them."""
    place = tmp_path_factory.mktemp("guard")
    images, labels = clean_digits(per_class=60)
    rows = np.arange(len(images)) % 2 == 0
    np.savez(place / "clean.npz", images=images[rows], labels=labels[rows])
    np.savez(place / "new.npz", images=images[~rows], labels=labels[~rows])
    (place / "flat").mkdir()
    for i, image in enumerate(images[~rows][:10]):
        Image.fromarray(image).save(place / "flat" / f"{i}.png")
    noise = np.random.default_rng(0).random(images.shape[1:]) > 0.5
    Image.fromarray(noise.astype(np.uint8) * 255).save(place / "flat" / "odd.png")
    ran = run("fit", MODEL, "--data", place / "clean.npz", "--alpha", "0.02", "-o", place / "guard")
    assert ran.exit_code == 0 and "calibrated on 150" in ran.output, ran.output
    return place


def test_check_says_which(folder):
    ran = run("check", MODEL, "--guard", folder / "guard", "--data", folder / "flat", "--json", folder / "out.jsonl")
    assert ran.exit_code == 1 and "odd.png" in ran.output, ran.output
    rows = [json.loads(k) for k in (folder / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 11 and [r["flagged"] for r in rows if r["image"].endswith("odd.png")] == [True]
    assert all(r["flagged"] == (r["p_value"] <= 0.02) for r in rows)


def test_check_holds_its_rate(folder):
    ran = run("check", MODEL, "--guard", folder / "guard", "--data", folder / "new.npz", "--json", "-")
    rows = [json.loads(k) for k in ran.stdout.splitlines() if k.startswith("{")]
    assert len(rows) == 300 and sum(r["flagged"] for r in rows) <= 18  # 0.02 and what 150 calibration samples allow


def test_a_guard_belongs_to_its_model(folder):
    ran = run("check", DEMO / "clean.onnx", "--guard", folder / "guard", "--data", folder / "flat")
    assert ran.exit_code == 2 and ran.output.startswith("error: ")


@pytest.mark.parametrize("arguments", [
    ("fit", MODEL), ("fit", MODEL, "--data", "x.npz"), ("check", MODEL, "--data", "x"), ("serve", MODEL, "--open"),
    ("fit", "http://127.0.0.1:1", "--data", "x.npz", "-o", "g"), ("fit", MODEL, "--data", "x", "-o", "g", "--alpha", "2"),
    ("check", MODEL, "--guard", "none", "--data", "x"), ("serve", MODEL, "--guard", "none", "--open"),
    ("serve", MODEL, "--guard", "none", "--open", "--policy", "shrug"),
], ids=lambda a: " ".join(str(k).rsplit("/", 1)[-1] for k in a))
def test_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments)
    assert ran.exit_code == 2 and "error: " in ran.output, ran.output
    assert not list(tmp_path.iterdir())


def test_serve_wants_keys(folder, monkeypatch):
    monkeypatch.chdir(folder)
    ran = run("serve", MODEL, "--guard", folder / "guard")
    assert ran.exit_code == 2 and "no API keys" in ran.output and not (folder / "audit.jsonl").exists()


def served(folder, *arguments):
    environment = {**os.environ, "LAOCOON_GUARD_KEYS": "alice user-secret-0123456789"}
    process = subprocess.Popen(
        [sys.executable, "-m", "laocoon", "guard", "serve", *map(str, arguments), "--port", "0"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if " at http" not in line:
        raise AssertionError(process.communicate()[1])
    return process, line.split(" at ")[1].split("/v2")[0]


def ask(address, x, **headers):
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}
    return httpx.post(f"{address}/v2/models/model/infer", json=body, headers=headers, timeout=30)


def test_the_service_and_a_gateway_before_it(folder):
    """The whole of it: model and guard in one process, and another guard before that as its upstream."""
    key = {"authorization": "Bearer user-secret-0123456789"}
    x = np.load(folder / "new.npz")["images"][:4].astype(np.float32).reshape(4, 1, 8, 8) / 255
    odd = (np.random.default_rng(0).random((1, 1, 8, 8)) > 0.5).astype(np.float32)
    inner, address = served(folder, MODEL, "--guard", folder / "guard", "--policy", "log", "--audit", "inner.jsonl")
    outer = None
    try:
        assert ask(address, x).status_code == 401
        plain = ask(address, x, **key)
        assert plain.status_code == 200 and len(plain.json()["outputs"][1]["data"]) == 4
        assert ask(address, odd, **key).json()["parameters"]["laocoon_decision"] == "logged"
        os.environ["LAOCOON_UPSTREAM_KEY"] = "user-secret-0123456789"
        outer, front = served(folder, MODEL, "--guard", folder / "guard", "--policy", "abstain", "--upstream", address,
                              "--upstream-model", "model", "--audit", "outer.jsonl")
        through = ask(front, x, **key)
        assert through.status_code == 200
        assert np.allclose(through.json()["outputs"][0]["data"], plain.json()["outputs"][0]["data"], atol=1e-4)
        both = ask(front, np.concatenate([x, odd]), **key).json()
        assert both["outputs"][1]["data"][-1] == -1 and both["parameters"]["laocoon_decision"].endswith("abstained")
        inner.terminate()
        assert inner.wait(30) == 0
        gone = ask(front, x, **key)
        assert gone.status_code == 502 and "outputs" not in gone.json()
    finally:
        os.environ.pop("LAOCOON_UPSTREAM_KEY", None)
        for process in (inner, outer):
            if process is not None:
                process.kill()
                process.communicate()
    assert "user-secret" not in (folder / "inner.jsonl").read_text() + (folder / "outer.jsonl").read_text()


def test_purifying_needs_nothing_more(folder):
    engine = load_engine(str(MODEL), folder / "guard", ServeOptions(policy="purify"))
    assert engine.purify is not None and engine.facts.calibrated == 150 and engine.facts.alpha == 0.02
    engine.warm()


def test_an_upstream_of_another_shape(folder, monkeypatch):
    from laocoon.serve import assemble

    class Other:
        shape, classes = (3, 32, 32), 10

    monkeypatch.setattr(assemble, "Remote", lambda *_, **__: Other())
    with pytest.raises(InputError, match="same model"):
        load_engine(str(MODEL), folder / "guard", ServeOptions(upstream="http://there:1"))
