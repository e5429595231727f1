"""`laocoon sift` and `laocoon trace`: exit codes, reports, lists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laocoon.lab.export import to_onnx
from laocoon.render.sift_tables import schema
from laocoon.testing.twins import twins

QUICK = ("--methods", "activation_clustering,spectral_signatures")


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """poisoned/ and trusted/, a folder per class; the model that was trained on the first; an input that fired."""
    t, root = twins("image"), tmp_path_factory.mktemp("sets")
    for name, samples in (("poisoned", t.implant.train), ("trusted", t.plan.test)):
        for i, (x, y) in enumerate(zip(samples.inputs, samples.labels, strict=True)):
            place = root / name / str(int(y))
            place.mkdir(parents=True, exist_ok=True)
            save(x, place / f"{i:05d}.png")
    save(t.implant.trigger.stamp(t.plan.test.inputs[:1])[0], root / "fired.png")
    to_onnx(t.planted.subject.module, t.planted.subject.input_shape, root / "model.onnx", {})
    return root


def save(x, path: Path) -> None:
    Image.fromarray((x[0] * 255).round().byte().numpy()).save(path)


def poison(name: str) -> bool:
    return int(Path(name).stem) in set(twins("image").implant.poisoned.tolist())


def test_reports_and_lists(laocoon, sets) -> None:
    ran = laocoon("sift", sets / "poisoned", "--model", sets / "model.onnx", "--trusted", sets / "trusted", *QUICK,
                  "--json", "r.json", "--scores", "s.parquet", "--keep", "keep.txt")
    assert ran.code in (1, 3) and ran.out.startswith(("SUSPICIOUS", "INCONCLUSIVE")), ran.text
    assert "samples: " in ran.out and "probably mislabelled" in ran.out
    report = json.loads(Path("r.json").read_text())
    jsonschema.validate(report, schema())
    assert report["exit_code"] == ran.code and report["data"]["path"] == "poisoned"
    table = pq.read_table("s.parquet")
    rows = table.to_pylist()
    assert len(rows) == 1258 and {"row", "name", "label", "suspicion", "kind", "keep", "score.spectral_signatures"} <= set(
        table.column_names)
    bad = [r for r in rows if poison(r["name"])]
    assert np.mean([r["kind"] == "poison" for r in bad]) > 0.9
    kept = Path("keep.txt").read_text().splitlines()
    assert kept == [r["name"] for r in rows if r["keep"]] and (sets / "poisoned" / kept[0]).is_file()
    words = shlex.split(report["command"])
    assert words[:2] == ["laocoon", "sift"] and "--trusted" in words


def test_the_page_stands_alone_and_escapes(laocoon, sets, tmp_path) -> None:
    laocoon("sift", sets / "poisoned", "--model", sets / "model.onnx", *QUICK)
    page = Path("sift.html").read_text()
    loaded = re.findall(r"""<(?:img|script|link|iframe|source|object|embed|use)\b[^>]*?(?:src|href)=["']([^"']*)""", page)
    assert loaded and all(u.startswith("data:") for u in loaded) and "<script" not in page
    assert "prefers-color-scheme: dark" in page and page.count("<circle") > 100
    assert "The trigger that flagged samples share" in page and "laocoon sift" in page
    laocoon("sift", sets / "poisoned", "--model", sets / "model.onnx", *QUICK)
    assert [p.name for p in Path.cwd().iterdir()] == ["sift.html"]  # it is ours: written over


def test_hostile_names_stay_harmless(laocoon, sets) -> None:
    """Names of files go into pages, lists and tables."""
    t = twins("image")
    folder = Path("evil")
    for i in range(400):
        place = folder / str(int(t.implant.train.labels[i]))
        place.mkdir(parents=True, exist_ok=True)
        save(t.implant.train.inputs[i], place / f"<b onmouseover=alert(1)>\n\x1b[2J{i}.png")
    ran = laocoon("sift", folder, "--model", sets / "model.onnx", *QUICK, "--keep", "k.txt")
    assert ran.code in (1, 3) and "\x1b[2J" not in ran.out
    assert "<b onmouseover" not in Path("sift.html").read_text()
    lines = Path("k.txt").read_text().splitlines()
    assert lines and all(line.startswith('"') and isinstance(json.loads(line), str) for line in lines)


def test_a_network_is_trained_where_there_is_no_model(laocoon, sets) -> None:
    ran = laocoon("sift", sets / "trusted", "--train", "resnet_small", *QUICK, "--html", "none", "--json", "-")
    report = json.loads(ran.out)
    assert report["model"]["proxy"] and report["model"]["architecture"] == "resnet_small"
    assert ran.err.startswith(("note", "INCONCLUSIVE", "NO_EVIDENCE", "SUSPICIOUS")), ran.err
    assert report["statistics"]["known.accuracy"] > 0.9


@pytest.mark.parametrize(("arguments", "says"), [
    (("--alpha", "7"), "between 0 and 1"),
    (("--fdr", "0"), "between 0 and 1"),
    (("--train", "resnet", "--model", "m.onnx"), "both"),
    (("--train", "gigantic"), "no architecture 'gigantic'"),
    (("--methods", "spectral_signature"), "Did you mean spectral_signatures"),
    (("--most", "3"), "at least 1000"),
    (("--scores", "-"), "cannot go to standard output"),
    (("--json", "a", "--keep", "a"), "same file"),
    (("--keep", "nowhere/k.txt"), "does not exist"),
])
def test_usage(laocoon, sets, arguments, says) -> None:
    ran = laocoon("sift", sets / "trusted", *arguments)
    assert ran.code == 2 and says in ran.text, ran.text


def test_trusted_samples_are_not_the_suspects(laocoon, sets) -> None:
    ran = laocoon("sift", sets / "trusted", "--model", sets / "model.onnx", "--trusted", sets / "trusted")
    assert ran.code == 2 and "training set itself" in ran.text


def test_trace(laocoon, sets) -> None:
    ran = laocoon("trace", sets / "poisoned", "--model", sets / "model.onnx", "--input", sets / "fired.png", "--json",
                  "t.json", "--unlearn", "unlearn.txt")
    assert ran.code == 1 and "TRAINING SAMPLES" in ran.out and "unlearn these" in ran.text
    names = Path("unlearn.txt").read_text().splitlines()
    assert len(names) > 60 and np.mean([poison(n) for n in names]) > 0.9
    report = json.loads(Path("t.json").read_text())
    assert report["schema"] == "laocoon-trace/1" and [s["name"] for s in report["sources"]] == names
    assert report["trigger"]["success"] > 0.9
    clean = next((sets / "trusted" / "8").iterdir())
    ran = laocoon("trace", sets / "poisoned", "--model", sets / "model.onnx", "--input", clean)
    assert ran.code in (0, 3), ran.text
    assert laocoon("trace", sets / "poisoned", "--input", clean).code == 2
    assert laocoon("trace", sets / "poisoned", "--model", sets / "model.onnx", "--input", sets).code == 2
