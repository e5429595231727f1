"""`laocoon scan`: exit codes, reports, baselines, resuming."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from laocoon import __version__
from laocoon.verdict import examination

TOP_LEVEL = {"verdict", "p_value", "score", "target_classes", "power", "examined", "skipped", "seconds", "schema"}
TARGET = 6  # of the bundled backdoored model


@pytest.fixture
def scan(laocoon, demo, digits, kept):
    """A quick scan of a bundled model with its samples."""
    def run(name, *arguments):
        return laocoon("scan", demo(name), "--data", digits, "--budget", "quick", "--resume", kept / name, *arguments)

    return run


def test_clean(scan):
    ran = scan("clean", "--json", "r.json", "--sarif", "r.sarif", "--html", "r.html")
    assert ran.code == 0 and ran.out.startswith("NO_EVIDENCE"), ran.text
    assert "known to be missed" in ran.text and "power: " in ran.text
    report = json.loads(Path("r.json").read_text())
    assert set(report) >= TOP_LEVEL and report["verdict"] == "NO_EVIDENCE"
    assert report["p_value"] > report["alpha"] and report["power"] and report["misses"]
    sarif = json.loads(Path("r.sarif").read_text())
    assert sarif["version"] == "2.1.0" and not [r for r in sarif["runs"][0]["results"] if r.get("level") == "error"]
    assert "NO_EVIDENCE" in Path("r.html").read_text() or "no evidence" in Path("r.html").read_text().lower()


def test_backdoored(scan):
    ran = scan("backdoored", "--json", "r.json", "--sarif", "r.sarif", "--html", "r.html")
    assert ran.code == 1 and ran.out.startswith(f"SUSPICIOUS  class {TARGET}: "), ran.text
    report = json.loads(Path("r.json").read_text())
    assert report["target_classes"][0] == TARGET and report["p_value"] <= report["alpha"]
    assert report["evidence"][0]["success"] > 0.8 > 0.5 > report["evidence"][0]["natural_control"]
    (result,) = json.loads(Path("r.sarif").read_text())["runs"][0]["results"]
    assert set(result["partialFingerprints"].values()) & set(re.findall(r"fingerprint ([0-9a-f]{32})", ran.out))


def test_html_is_one_file_by_itself(scan):
    scan("backdoored", "--html", "r.html")
    page = Path("r.html").read_text()
    loaded = re.findall(r"""<(?:img|script|link|iframe|source|object|embed|use)\b[^>]*?(?:src|href|data)=["']([^"']*)""",
                        page)
    loaded += re.findall(r"url\(\s*['\"]?([^)'\"]*)", page) + re.findall(r"@import\s+['\"]([^'\"]*)", page)
    assert loaded and all(u.startswith(("data:", "#")) for u in loaded), loaded
    assert "laocoon scan" in page and "backdoored.onnx" in page
    assert [p.name for p in Path.cwd().iterdir()] == ["r.html"]


def test_html_is_written_unless_told_otherwise(scan):
    scan("clean")
    assert Path("report.html").is_file()
    Path("report.html").unlink()
    scan("clean", "--html", "none")
    assert not list(Path.cwd().iterdir())


def test_inconclusive(laocoon, demo, digits):
    ran = laocoon("scan", demo("clean"), "--data", digits, "--methods", "weight_sanity", "--html", "none")
    assert ran.code == 3 and ran.out.startswith("INCONCLUSIVE"), ran.text


@pytest.mark.parametrize("narrow", [("--budget", "100"), ("--budget", "5000"), ("--budget", "20000"),
                                    ("--methods", "head_statistics"), ("--methods", "trodo,neuron_stimulation")],
                         ids=lambda n: n[1])
def test_no_alarm_without_a_measured_method(narrow, laocoon, demo, digits):
    """Scores that were never measured on clean references accuse nobody, also where the budget ends early."""
    ran = laocoon("scan", demo("clean"), "--data", digits, *narrow, "--html", "none")
    assert ran.code == 3 and ran.out.startswith("INCONCLUSIVE"), ran.text
    assert "Raise --budget" in ran.text or "run trigger_inversion too" in ran.text


def test_alpha_finer_than_the_references(scan):
    ran = scan("clean", "--alpha", "0.001")
    assert ran.code == 3 and "finer than" in ran.text


def test_usage(laocoon, demo):
    assert laocoon("scan", demo("clean"), "--alpha", "7").code == 2
    assert laocoon("scan", "missing.onnx").code == 2
    assert laocoon("scan").code == 2


def test_json_on_standard_output_is_nothing_but_json(scan):
    ran = scan("clean", "--json", "-", "--html", "none")
    assert json.loads(ran.out)["verdict"] == "NO_EVIDENCE"
    assert ran.err.startswith("NO_EVIDENCE")
    ran = scan("clean", "--sarif", "-", "--html", "none")
    assert json.loads(ran.out)["version"] == "2.1.0"


def test_the_command_in_the_report_repeats_the_scan(scan, laocoon):
    first = json.loads(scan("backdoored", "--json", "-", "--html", "none", "--alpha", "0.02").out)
    import shlex

    words = shlex.split(first["command"])
    assert words[:2] == ["laocoon", "scan"] and "--alpha" in words
    again = json.loads(laocoon(*words[1:]).out)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}


# ---------------------------------------------------------------- resuming
def test_resume_repeats_no_method(scan, monkeypatch):
    first = json.loads(scan("backdoored", "--json", "-", "--html", "none").out)

    def never(*_):
        raise AssertionError("a method ran again")

    monkeypatch.setattr(examination, "_survive", never)
    ran = scan("backdoored", "--json", "-", "--html", "none")
    assert ran.code == 1
    drop = lambda report: {k: v for k, v in report.items() if k not in ("seconds", "spent")}  # noqa: E731
    assert drop(json.loads(ran.out)) == drop(first)


def test_interrupted_scan_says_how_to_go_on(laocoon, demo, digits, monkeypatch):
    true = examination._survive
    ran_methods = []

    def interrupted(method, case, ctx):
        if len(ran_methods) == 2:
            raise KeyboardInterrupt
        ran_methods.append(method.card.name)
        return true(method, case, ctx)

    monkeypatch.setattr(examination, "_survive", interrupted)
    arguments = ("scan", demo("clean"), "--data", digits, "--html", "none",
                 "--methods", "weight_sanity,head_statistics,head_probes")
    ran = laocoon(*arguments)
    assert ran.code == 130
    folder = re.search(r"resume with: .* --resume (\S+)", ran.text)
    assert folder and sorted(p.stem for p in Path(folder[1]).glob("*.json")) == sorted([*ran_methods, "scan"])
    monkeypatch.setattr(examination, "_survive", true)
    resumed = json.loads(laocoon(*arguments, "--json", "-", "--resume", folder[1]).out)
    assert set(resumed["examined"]) == {"weight_sanity", "head_statistics", "head_probes"}


# ---------------------------------------------------------------- accepted findings
def baseline(fingerprint, days):
    expires = datetime.date.today() + datetime.timedelta(days)
    Path("accepted.toml").write_text(
        f'[[accepted]]\nfingerprint = "{fingerprint}"\nowner = "Ada"\nreason = "bait"\nexpires = {expires}\n')
    return ("--baseline", "accepted.toml", "--html", "none")


def test_baseline(scan):
    (fingerprint,) = re.findall(r"fingerprint ([0-9a-f]{32})", scan("backdoored", "--html", "none").out)
    ran = scan("backdoored", *baseline(fingerprint, 30))
    assert ran.code == 0 and "SUSPICIOUS" in ran.out and "Ada" in ran.text and "bait" in ran.text, ran.text
    ran = scan("backdoored", *baseline(fingerprint, 0))
    assert ran.code == 0, "an acceptance holds on its last day"
    ran = scan("backdoored", *baseline(fingerprint, -1))
    assert ran.code == 1 and fingerprint in ran.err and "expired" in ran.err, ran.text
    ran = scan("backdoored", *baseline("0" * 32, 30))
    assert ran.code == 1
    sarif = json.loads(scan("backdoored", *baseline(fingerprint, 30), "--sarif", "-").out)
    assert sarif["runs"][0]["results"][0]["suppressions"]


def test_baseline_never_turns_a_failure_into_success(scan, laocoon, demo):
    assert scan("clean", "--alpha", "0.001", *baseline("0" * 32, 30)).code == 3
    assert laocoon("scan", "missing.onnx", *baseline("0" * 32, 30)).code == 2


# ---------------------------------------------------------------- in a process of its own
def command(*arguments, **settings):
    return subprocess.Popen([sys.executable, "-m", "laocoon", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **settings)


def test_reader_that_goes_away(demo, tmp_path):
    """`laocoon scan … --json - | head -c 0` ends without a traceback."""
    child = command("scan", demo("clean"), "--methods", "weight_sanity", "--json", "-", "--html", "none", cwd=tmp_path)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(120) != 0 and "Traceback" not in err, err


def test_help_waits_for_nothing_heavy():
    code = ("import sys; from typer.testing import CliRunner; from laocoon.cli.main import app; "
            "r = CliRunner().invoke(app, ['scan', '--help']); "
            "print(r.exit_code, sorted({'torch', 'onnx', 'numpy', 'keras'} & set(sys.modules)))")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.split("\n")[0] == "0 []", told


def test_version(laocoon):
    ran = laocoon("--version")
    assert ran.code == 0 and ran.out.strip() == __version__
