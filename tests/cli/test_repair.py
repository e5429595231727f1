"""`laocoon repair`: exit codes, reports, the file that is written, and what is refused before any work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from laocoon.cli.demo import clean_digits
from laocoon.render.repair_json import schema
from laocoon.verdict import portfolio
from laocoon.verdict import repair as engine

NARROW = ("--methods", "pam", "--budget", "quick", "--stages", "1")


@pytest.fixture(scope="session")
def more_digits(tmp_path_factory):
    images, labels = clean_digits(per_class=36)
    path = tmp_path_factory.mktemp("more") / "digits.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def kept_repair(tmp_path_factory):
    return tmp_path_factory.mktemp("repair")


@pytest.fixture
def repair(laocoon, demo, more_digits, kept_repair):
    """A repair of a bundled model; scans and mended models are kept between tests."""
    def run(name, *arguments, out="repaired.onnx"):
        return laocoon("repair", demo(name), "--data", more_digits, "-o", out, *NARROW, "--resume", kept_repair / name,
                       *arguments)

    return run


def test_backdoored(repair, demo):
    ran = repair("backdoored", "--json", "r.json", "--html", "r.html")
    report = json.loads(Path("r.json").read_text())
    jsonschema.validate(report, schema())
    assert report["scan_before"]["verdict"] == "SUSPICIOUS" and report["repairs"] == ["pam"]
    assert ran.code == report["exit_code"] and ran.out.startswith(report["status"].upper()), ran.text
    (trigger,) = report["triggers"]
    assert trigger["target_classes"] == [6]
    assert trigger["before"]["success"]["low"] > 0.8 and trigger["after"]["success"]["value"] < 0.2
    held = [c["passed"] for c in report["checks"]]
    assert (report["status"] == "removed") == all(v is True for v in held)
    assert report["status"] in ("removed", "reduced")
    # The file is the model's graph with other weights, and says where it comes from.
    before, after = onnx.load(demo("backdoored")), onnx.load("repaired.onnx")
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    note = {p.key: p.value for p in after.metadata_props}["laocoon"]
    assert note.startswith(f"repaired from sha256 {report['subject']['sha256']}") and report["status"] in note
    assert report["written"]["path"] == "repaired.onnx" and report["written"]["difference"] < 1e-3
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["r.html", "r.json", "repaired.onnx"]


def test_html_is_one_file_by_itself(repair):
    repair("backdoored", "--html", "r.html")
    page = Path("r.html").read_text()
    loaded = re.findall(r"""<(?:img|script|link|iframe|source|object|embed|use)\b[^>]*?(?:src|href|data)=["']([^"']*)""",
                        page)
    assert loaded and all(u.startswith(("data:", "#")) for u in loaded) and "<script" not in page
    for said in ("laocoon repair", "backdoored.onnx", "What was tried", "Does it come back", "before and after", "pam"):
        assert said in page, said


def test_clean_model_is_left_alone(repair, demo, monkeypatch):
    monkeypatch.setattr(portfolio.Portfolio, "run", lambda *_, **__: pytest.fail("a repair was tried"))
    ran = repair("clean", "--html", "none", "--json", "-")
    report = json.loads(ran.out)
    assert ran.code == 0 and report["status"] == "nothing to remove" and not report["repairs"]
    assert Path("repaired.onnx").read_bytes() == demo("clean").read_bytes()
    assert "NOTHING TO REMOVE" in ran.err


def test_an_earlier_scan_is_believed(laocoon, demo, more_digits, monkeypatch):
    """No second first scan: its report says that there is nothing, or that there is."""
    laocoon("scan", demo("clean"), "--data", more_digits, "--methods", "weight_sanity", "--json", "scan.json", "--html",
            "none")
    monkeypatch.setattr(engine, "scan", lambda *_, **__: pytest.fail("scanned again"))
    ran = laocoon("repair", demo("clean"), "--data", more_digits, "-o", "out.onnx", "--scan", "scan.json", "--html", "none")
    assert ran.code == 3 and ran.out.startswith("INCONCLUSIVE") and "left as it is" in ran.text
    assert not Path("out.onnx").exists(), "nobody asked for a copy of a doubtful model"
    ran = laocoon("repair", demo("backdoored"), "--data", more_digits, "-o", "out.onnx", "--scan", "scan.json")
    assert ran.code == 2 and "about a model with the digest" in ran.text


def test_of_kept_triggers_those_of_the_suspected_class_are_taken():
    import torch

    from laocoon.cli.repair import _suspected
    from laocoon.core.candidate import Candidate
    from laocoon.core.errors import InputError
    from laocoon.core.goal import all_to_one
    from laocoon.core.repaired import Scanned
    from laocoon.triggers.additive import Additive
    from laocoon.triggers.patch import Patch

    def made(family, target, size, success=1.0):
        return Candidate(family, {"a": torch.zeros(1)}, all_to_one(target, 10), size, success, "trigger_inversion")

    known = [*(made(Patch(), t, 2.0 if t == 6 else 12.0) for t in range(10)), *(made(Additive(), t, 9.0) for t in range(10))]
    accused = Scanned("SUSPICIOUS", "", 0.01, 3.0, 0.05, (6, 2))
    (found,) = _suspected(known, accused)
    assert found.family.name == "patch" and found.goal.targets == (6,), "the additive one is as large as any"
    assert _suspected(known[:5], None) == known[:5]
    with pytest.raises(InputError, match="20 triggers towards many classes"):
        _suspected(known, None)
    with pytest.raises(InputError, match="no trigger towards class 6 that works"):
        _suspected([made(Patch(), t, 3.0, 0.1) for t in range(10)], accused)


def test_the_command_in_the_report_repeats_it(repair):
    report = json.loads(repair("clean", "--json", "-", "--html", "none", "--overwrite", "--alpha", "0.02").out)
    words = shlex.split(report["command"])
    assert words[:2] == ["laocoon", "repair"] and "--overwrite" in words and "--alpha" in words and "--out" in words


@pytest.mark.parametrize(("arguments", "says"), [
    ((), ("--data", "clean samples")), (("--data", "D"), ("--out is missing", "repaired.onnx")),
    (("--data", "missing", "-o", "x.onnx"), ("missing does not exist",)),
    (("--data", "D", "-o", "taken.onnx"), ("taken.onnx exists", "--overwrite")),
    (("--data", "D", "-o", "no/x.onnx"), ("no does not exist", "Make it first")),
    (("--data", "D", "-o", "x.onnx", "--max-drop=-1"), ("--max-drop is -1",)),
    (("--data", "D", "-o", "x.onnx", "--alpha", "7"), ("--alpha is 7",)),
    (("--data", "D", "-o", "x.onnx", "--stages", "9"), ("--stages is 9",)),
    (("--data", "D", "-o", "x.onnx", "--passes", "0"), ("--passes is 0",)),
    (("--data", "D", "-o", "x.onnx", "--methods", "fine_tunning"), ("Did you mean fine_tuning",)),
    (("--data", "D", "-o", "x.onnx", "--budget", "banana"), ("'banana'", "quick, default, deep")),
    (("--data", "D", "-o", "x.onnx", "--format", "gguf"), ("--format is 'gguf'", "onnx or safetensors")),
    (("--data", "D", "-o", "x.onnx", "--format", "safetensors"), ("without the network",)),
    (("--data", "D", "-o", "x.onnx", "--scan", "missing.json"), ("--scan missing.json is no file",)),
    (("--data", "D", "-o", "x.onnx", "--scan", "broken.json"), ("is not JSON",)),
    (("--data", "D", "-o", "x.onnx", "--scan", "list.json"), ("not one of laocoon's",)),
    (("--data", "D", "-o", "x.onnx", "--candidates", "broken.json"), ("cannot be read",)),
    (("--data", "D", "-o", "x.onnx", "--json", "x.onnx"), ("would overwrite",)),
    (("--data", "D", "-o", "x.onnx", "--resume", "list.json"), ("is a file",)),
    (("--data", "few.npz", "-o", "x.onnx"), ("at least 3 of each class",)),
], ids=lambda v: " ".join(v)[-40:] if v and v[0].startswith("--") else None)
def test_refused_before_any_work(arguments, says, laocoon, demo, more_digits, monkeypatch):
    monkeypatch.setattr(engine, "scan", lambda *_, **__: pytest.fail("work was done"))
    Path("taken.onnx").write_text("my thesis")
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[1]")
    images, labels = clean_digits(per_class=2)
    np.savez("few.npz", images=images, labels=labels)
    before = {p.name: p.read_bytes() for p in Path.cwd().iterdir()}
    ran = laocoon("repair", demo("clean"), *(more_digits if a == "D" else a for a in arguments))
    assert ran.code == 2 and not [s for s in says if s not in ran.text], ran.text
    assert {p.name: p.read_bytes() for p in Path.cwd().iterdir()} == before


def test_the_model_is_never_overwritten(laocoon, demo, more_digits):
    shutil.copy(demo("clean"), "in.onnx")
    ran = laocoon("repair", "in.onnx", "--data", more_digits, "-o", "./in.onnx", "--overwrite")
    assert ran.code == 2 and "would overwrite what is to be repaired" in ran.text


def test_interrupted_repair_says_how_to_go_on(laocoon, demo, more_digits, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "scan", interrupted)
    ran = laocoon("repair", demo("clean"), "--data", more_digits, "-o", "out.onnx", "--html", "none")
    folder = re.search(r"resume with: laocoon repair .* --resume (\S+)", ran.text)
    assert ran.code == 130 and folder and (Path(folder[1]) / "repair.json").is_file()
    shutil.rmtree(folder[1])


def test_help_waits_for_nothing_heavy():
    code = ("import sys; from typer.testing import CliRunner; from laocoon.cli.main import app; "
            "r = CliRunner().invoke(app, ['repair', '--help']); "
            "print(r.exit_code, sorted({'torch', 'onnx', 'numpy', 'keras'} & set(sys.modules)))")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.split("\n")[0] == "0 []", told
