"""`laocoon train` and `laocoon certify`, end to end on 8 × 8 digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from laocoon.cli.networks import KEY
from laocoon.core.card import Capability
from laocoon.files import safetensors
from laocoon.files.open import load_model
from laocoon.testing.corpora import digits as corpus


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Three classes of digits, 20 of each to train on."""
    found = corpus(8).train
    rows = [i for c in range(3) for i in (found.labels == c).nonzero().flatten()[:40].tolist()]
    place = tmp_path_factory.mktemp("small") / "digits.npz"
    np.savez(place, images=(found.inputs[rows, 0].numpy() * 255).round().astype(np.uint8),
             labels=found.labels[rows].numpy())
    return place


def trained(laocoon, small: Path, *words: str):
    return laocoon("train", small, "--architecture", "cnn", "-o", "m.safetensors", "--json", "r.json", *words)


@pytest.mark.parametrize("command", ["train", "certify"])
def test_help(laocoon, command):
    ran = laocoon(command, "--help")
    assert ran.code == 0 and "Exit codes:" in ran.text and "--set" in ran.text


def test_train_then_certify(laocoon, small):
    ran = trained(laocoon, small, "--set", "epochs=6", "--held", "0.2", "--keep", "keep.txt")
    assert ran.code == 0, ran.text
    report = json.loads(Path("r.json").read_text())
    assert report["method"] == "plain" and report["params"]["epochs"] == 6 and report["held_accuracy"] > 0.8
    assert report["samples"] + report["held"] == 120 == len(Path("keep.txt").read_text().split()) + report["held"]
    assert str(report["held"]) in ran.out
    told = laocoon("certify", "m.safetensors", "--data", small, "--set", "side=1,row=0,column=0,inputs=4", "--json", "-")
    found = json.loads(told.out)
    assert told.code == 0 and found["holds"] is True and found["assumptions"] and "HOLDS" in told.err


@pytest.mark.parametrize("network", ["cnn", "timm:resnet10t"])
def test_what_was_trained_is_opened_without_a_word(laocoon, small, network):
    """The file names its network, where that is one of ours or of timm: nothing else has to be said of it."""
    if network.startswith("timm:"):
        pytest.importorskip("timm")
    ran = laocoon("train", small, "--architecture", network, "-o", "m.safetensors", "--json", "r.json", "--held", "0.3",
                  "--set", "epochs=6")
    assert ran.code == 0, ran.text
    report, subject = json.loads(Path("r.json").read_text()), load_model("m.safetensors")
    assert subject.input_shape == tuple(report["shape"]) and subject.classes == 3
    assert Capability.GRADIENT in subject.capabilities and not any("assumed" in n for n in subject.provenance.notes)
    with np.load(small) as data:
        images = torch.from_numpy(data["images"]).float()[:, None] / 255
        labels = torch.from_numpy(data["labels"])
    images = images.expand(-1, subject.input_shape[0], -1, -1)
    right = float((subject.outputs(images).logits.argmax(1) == labels).float().mean())
    assert right > report["held_accuracy"] - 0.25  # the weights are those that were trained
    assert laocoon("scan", "m.safetensors", "--data", small, "--methods", "head_statistics").code in (0, 1, 3)


def test_a_name_of_code_in_a_file_is_not_run(laocoon, small):
    assert trained(laocoon, small, "--set", "epochs=1").code == 0
    facts = json.loads(safetensors.check(Path("m.safetensors"))[KEY])
    state = load_file("m.safetensors")
    for name in ("os:getcwd", "timm:no_such_network", "castle"):
        save_file(state, "m.safetensors", metadata={KEY: json.dumps({**facts, "architecture": name})})
        assert laocoon("scan", "m.safetensors", "--data", small).code == 2


def test_same_seed_same_model(laocoon, small):
    digests = []
    for _ in range(2):
        assert trained(laocoon, small, "--set", "epochs=2", "--seed", "4").code == 0
        digests.append(json.loads(Path("r.json").read_text())["sha256"])
    assert digests[0] == digests[1]


def test_an_ensemble_is_certified(laocoon, small):
    assert trained(laocoon, small, "--method", "dpa", "--set", "parts=5,epochs=8").code == 0
    ran = laocoon("certify", "m.safetensors", "--method", "dpa_votes", "--data", small, "--json", "c.json")
    assert ran.code in (0, 3) and "insertion or removal" in ran.out
    assert json.loads(Path("c.json").read_text())["values"]["certified_accuracy"][0]["share"] > 0.6
    # what is no ensemble cannot be certified as one
    assert trained(laocoon, small, "--set", "epochs=1").code == 0
    assert laocoon("certify", "m.safetensors", "--method", "dpa_votes", "--data", small).code == 3


def test_one_sample_more_does_not_move_the_held_out_ones(laocoon, small):
    """Else a single poisoned sample could exchange many, and no count of them could be certified."""
    rows = []
    with np.load(small) as data:
        images, labels = data["images"], data["labels"]
    extra = np.concatenate([np.full((1, 8, 8), 7, np.uint8), images])
    np.savez("more.npz", images=extra, labels=np.concatenate([[0], labels]))
    for place, shift in ((small, 0), ("more.npz", 1)):
        assert trained(laocoon, place, "--set", "epochs=1", "--keep", "k.txt").code == 0
        rows.append({int(r) - shift for r in Path("k.txt").read_text().split()} - {-1})
    assert rows[0] == rows[1]


def test_a_counter_example_is_shown(laocoon, small):
    """A model that answers 1 wherever its corner is bright."""
    assert trained(laocoon, small, "--set", "epochs=1").code == 0
    with np.load(small) as data:
        images, labels = data["images"].copy(), data["labels"].copy()
    images[::2, -3:, -3:] = 255
    labels[::2] = 1
    np.savez("poisoned.npz", images=images, labels=labels)
    assert trained(laocoon, Path("poisoned.npz"), "--set", "epochs=25").code == 0
    ran = laocoon("certify", "m.safetensors", "--data", small, "--set", "target=1,side=3,row=-3,column=-3,inputs=8",
                  "--counterexample", "patch.npz")
    assert ran.code == 1 and "COUNTER-EXAMPLE" in ran.out, ran.text
    with np.load("patch.npz", allow_pickle=False) as kept:
        assert kept["patch"].shape == (1, 3, 3)


@pytest.mark.parametrize(("words", "said"), [
    (["--method", "magic"], "no method 'magic'"),
    (["--set", "epoch=3"], "no parameter of plain"),
    (["--set", "epochs=many"], "no int"),
    (["--set", "rate=nan"], "no float"),
    (["--held", "0"], "--held is 0.0"),
    (["--seed", "-1"], "--seed is -1"),
    (["--device", "abacus"], "not there"),
    (["--architecture", "castle"], "no architecture 'castle'"),
    (["--architecture", "nowhere:net"], "cannot be imported"),
    (["--method", "dpa", "--out", "m.onnx"], "ensemble"),
    (["--out", "m.pkl"], "ends in .safetensors"),
    (["--json", "m.safetensors"], "same file"),
])
def test_bad_words_are_told_before_training(laocoon, small, words, said):
    start = ["train", small, "--architecture", "cnn"]
    ran = laocoon(*start, *words, *([] if "--out" in words else ["--out", "m.safetensors"]))
    assert ran.code == 2 and said in ran.text, ran.text
    assert not Path("m.safetensors").exists()


def test_a_spent_budget_is_told(laocoon, small):
    ran = trained(laocoon, small, "--budget", "10")
    assert ran.code == 3 and "not trained" in ran.err and not Path("m.safetensors").exists()
    assert json.loads(Path("r.json").read_text())["report"]["complete"] is False


@pytest.mark.parametrize("change", [
    {"members": 10**9}, {"shape": [1, 10**6, 10**6]}, {"classes": "x"}, {"shape": 3}, {"architecture": "os:system"}])
def test_a_file_may_not_say_anything_it_likes(laocoon, small, change):
    assert trained(laocoon, small, "--set", "epochs=1").code == 0
    own = {"architecture": "cnn", "shape": [1, 8, 8], "classes": 3, "members": 0, **change}
    save_file(load_file("m.safetensors"), "evil.safetensors", metadata={KEY: json.dumps(own)})
    ran = laocoon("certify", "evil.safetensors", "--data", small)
    assert ran.code == 2 and "error:" in ran.err


def test_a_factory_of_ones_own(laocoon, small, monkeypatch):
    Path("mine.py").write_text("from torch import nn\n"
                               "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
                               "def wrong():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    ran = laocoon("train", small, "--architecture", "mine:net", "-o", "m.safetensors", "--set", "epochs=3")
    assert ran.code == 0, ran.text
    assert laocoon("certify", "m.safetensors", "--data", small).code == 2  # the file may not have code imported
    assert laocoon("certify", "m.safetensors", "--data", small, "--architecture", "mine:net",
                   "--set", "side=1,inputs=3").code in (0, 1, 3)
    assert "gives [4]" in laocoon("train", small, "--architecture", "mine:wrong", "-o", "m.safetensors").text
