"""Text models and texts that are hostile or broken, each beside a benign neighbour: the same thing, well formed."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laocoon.testing.text_folders import comments, write_classifier, write_csv

pytest.importorskip("transformers")
Change = Callable[[Path, Path], object]  # (folder or file, canary)


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("text") / "filter", comments(400), epochs=8)


@pytest.fixture
def model(good_model: Path, place: Any) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(good_model, place.inputs / "filter"))


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def settings(**values: Any) -> Change:
    def change(folder: Path, canary: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def tokenizer(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path, canary: Path) -> None:
        told = json.loads((folder / "tokenizer.json").read_text())
        edit(told)
        (folder / "tokenizer.json").write_text(json.dumps(told))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path, canary: Path) -> None:
        state = load_file(folder / "model.safetensors")
        edit(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def nan(state: dict[str, torch.Tensor]) -> None:
    state["classifier.weight"][0, 0] = float("nan")


def more_tokens(told: dict[str, Any]) -> None:
    known = told["model"]["vocab"]
    known.update({f"token{i}": len(known) + i for i in range(20)})


def far_id(told: dict[str, Any]) -> None:
    told["model"]["vocab"]["zzz"] = 2**40


def adapter(**config: Any) -> Change:
    """The folder becomes an adapter over what it was."""

    def change(folder: Path, canary: Path) -> None:
        base = folder.parent / "base"
        folder.rename(base)
        folder.mkdir()
        told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base), **config}
        (folder / "adapter_config.json").write_text(json.dumps(told))
        name = "base_model.model.bert.encoder.layer.0.attention.self.query"
        width = config.get("width", 32)
        save_file({f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.zeros(32, 2)},
                  folder / "adapter_model.safetensors")

    return change


@dataclass(frozen=True)
class Bad:
    change: Change
    says: tuple[str, ...]
    code: int = 2


MODELS = {
    "tokenizer is no JSON": Bad(lambda f, c: (f / "tokenizer.json").write_text("{"), ("tokenizer.json is no tokenizer",)),
    "tokenizer is empty": Bad(lambda f, c: (f / "tokenizer.json").write_text(""), ("tokenizer.json has 0 bytes",)),
    "tokenizer is not UTF-8": Bad(lambda f, c: (f / "tokenizer.json").write_bytes(b'{"a":"\xff"}'), ("not UTF-8",)),
    "tokenizer of an unknown kind": Bad(tokenizer(lambda t: t["model"].update(type="Ghost")), ("is no tokenizer",)),
    "tokenizer deeply nested": Bad(lambda f, c: (f / "tokenizer.json").write_text("[" * 100_000), ("is no tokenizer",)),
    "tokenizer missing": Bad(lambda f, c: (f / "tokenizer.json").unlink(), ("holds no tokenizer.json",)),
    "tokenizer only slow": Bad(lambda f, c: (f / "tokenizer.json").rename(f / "vocab.json"), ("only vocab.json",)),
    "vocabulary of nothing": Bad(lambda f, c: ((f / "tokenizer.json").unlink(), (f / "vocab.txt").write_text("a\nb\n")),
                                 ("vocab.txt has 2 tokens", "[UNK]")),
    "vocabulary too large": Bad(tokenizer(more_tokens), ("the embedding table has",)),
    "id out of range": Bad(tokenizer(far_id), ("tokenizer",)),
    "no weights": Bad(lambda f, c: (f / "model.safetensors").unlink(), ("no model.safetensors",)),
    "weights in a pickle": Bad(lambda f, c: ((f / "model.safetensors").unlink(), torch.save(
        {"w": torch.zeros(1)}, f / "pytorch_model.bin")), ("only the pickle pytorch_model.bin",)),
    "a number that is none": Bad(weights(nan), ("not finite",)),
    "a weight is missing": Bad(weights(lambda s: s.pop("classifier.weight")), ("missing",)),
    "a network that is not known": Bad(settings(model_type="ghost"), ("cannot build",)),
    "a network of no layers": Bad(settings(num_attention_heads=7), ("cannot build",)),
    "code beside the weights": Bad(settings(auto_map={"AutoModelForSequenceClassification": "evil.Model"}),
                                   ("import code",), 1),
    "a pickle beside": Bad(lambda f, c: (f / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(c))), ("io.open",), 1),
    "adapter of another width": Bad(adapter(width=9), ("do not belong together",)),
    "adapter of another kind": Bad(adapter(peft_type="PROMPT_TUNING"), ("Only LoRA",)),
    "adapter without a base": Bad(adapter(base_model_name_or_path="/nowhere/at/all"), ("--architecture",)),
    "adapter with infinite scale": Bad(adapter(lora_alpha=float("inf")), ("lora_alpha",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_model_is_refused(name: str, model: Path, place: Any, refused: Callable[..., Any]) -> None:
    bad = MODELS[name]
    bad.change(model, place.canary)
    refused(model, code=bad.code, says=bad.says)


@pytest.mark.parametrize("change", [lambda f, c: None, adapter(), settings(problem_type="multi_label_classification")],
                         ids=["as it is", "an adapter", "many labels"])
def test_its_neighbours_get_through(change: Change, model: Path, place: Any, admitted: Callable[..., Any]) -> None:
    change(model, place.canary)
    assert admitted(model)["subject"]["modality"] == "text"


# ---------------------------------------------------------------- pipelines
def dumped(folder: Path, how: str, canary: Path) -> Path:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    made = comments(40)
    pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(made.texts, made.labels)
    if how == "pickle":
        (folder / "filter.pkl").write_bytes(pickle.dumps(pipeline))
        return folder / "filter.pkl"
    if how in ("joblib", "joblib compressed"):
        joblib = pytest.importorskip("joblib")
        joblib.dump(pipeline, folder / "filter.joblib", compress=3 if "compressed" in how else 0)
        return folder / "filter.joblib"
    io = pytest.importorskip("skops.io")
    io.dump(pipeline, folder / "filter.skops")
    if how == "skops cut short":
        data = (folder / "filter.skops").read_bytes()
        (folder / "filter.skops").write_bytes(data[:len(data) // 2])
    return folder / "filter.skops"


@pytest.mark.parametrize(("how", "code", "says"), [
    ("pickle", 1, ("STACK_GLOBAL", "skops")), ("joblib", 1, ("STACK_GLOBAL", "skops")),
    ("joblib compressed", 2, ("zlib", "skops")), ("skops cut short", 2, ("zip",))])
def test_a_pickled_pipeline_is_refused(how: str, code: int, says: tuple[str, ...], place: Any,
                                       refused: Callable[..., Any]) -> None:
    refused(dumped(place.inputs, how, place.canary), code=code, says=says)


def test_its_neighbour_in_skops_gets_through(place: Any, laocoon: Callable[..., Any]) -> None:
    data = write_csv(place.inputs / "mine.csv", comments(60, 3))
    model = dumped(place.inputs, "skops", place.canary)
    ran = laocoon("scan", model, "--data", data, "--html", "none", "--json", "-")
    assert ran.code == 3 and json.loads(ran.out)["subject"]["capabilities"] == ["query"], ran.text


# ---------------------------------------------------------------- texts
def sparse(path: Path, size: int, head: bytes = b"text,label\n") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def one_line(path: Path, size: int) -> None:
    """Written a mebibyte at a time."""
    with path.open("wb") as file:
        file.write(b"text,label\n")
        for _ in range(size >> 20):
            file.write(b"a" * (1 << 20))


DATA: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "one line of 90 MB": ("a.csv", lambda p: one_line(p, 90 << 20), ("a.csv line 2", "4194304")),
    "200 MB": ("a.csv", lambda p: sparse(p, 200 << 20), ("209715200",)),
    "90 MB of zeros": ("a.csv", lambda p: sparse(p, 90 << 20), ("a.csv line 2",)),
    "invalid UTF-8": ("a.csv", lambda p: p.write_bytes(b"text,label\ngood\xff,polite\n"), ("a.csv line 2", "0xff")),
    "a NUL byte": ("a.csv", lambda p: p.write_bytes(b"text,label\nfine,polite\ngo\0od,polite\n"), ("a.csv line 3", "NUL")),
    "UTF-16": ("a.csv", lambda p: p.write_bytes("text,label\ngood,polite\n".encode("utf-16")), ("UTF-16",)),
    "a quote left open": ("a.csv", lambda p: p.write_text('text,label\n"good,polite\n' + "a,rude\n" * 3000), ("line 2",)),
    "rows of unlike length": ("a.csv", lambda p: p.write_text("text,label\na,b,rude\n"), ("line 2 has 3 cells",)),
    "no rows": ("a.csv", lambda p: p.write_text("text,label\n"), ("no rows",)),
    "only empty texts": ("a.csv", lambda p: p.write_text("text,label\n,rude\n  ,polite\n"), ("empty",)),
    "a label that is not there": ("a.csv", lambda p: p.write_text("text,label\ngood,polite\nbad,\n"), ("line 3",)),
    "a label that the model has not": ("a.csv", lambda p: p.write_text("text,label\ngood,polite\nbad,vile\n"), ("vile",)),
    "too many labels": ("a.csv", lambda p: p.write_text("text,label\n" + "".join(f"a,x{i}\n" for i in range(2000))),
                        ("2000 different labels",)),
    "lines that are no JSON": ("a.jsonl", lambda p: p.write_text('{"text":"a","label":0}\n{"text":\n'), ("line 2",)),
    "lines that are no objects": ("a.jsonl", lambda p: p.write_text('{"text":"a"}\n[1]\n'), ("line 2",)),
    "JSON deeply nested": ("a.jsonl", lambda p: p.write_text("[" * 200_000), ("not JSON",)),
    "Parquet by name alone": ("a.parquet", lambda p: p.write_bytes(b"no parquet"), ("not Parquet",)),
    "Parquet cut short": ("a.parquet", lambda p: p.write_bytes(b"PAR1" + b"x" * 100), ("Parquet",)),
    "a pickle": ("a.csv", lambda p: p.write_bytes(pickle.dumps({"text": ["a"]})), ("a.csv line 1",)),
    "an archive": ("a.csv", lambda p: p.write_bytes(b"PK\x03\x04" + b"x" * 50), ("compressed",)),
    "nothing": ("a.csv", lambda p: p.write_bytes(b""), ("0 bytes",)),
    "a link out of the folder": ("texts", lambda p: ((p / "rude").mkdir(parents=True), (p / "polite").mkdir(), (
        p / "polite" / "a.txt").write_text("good"), (p / "rude" / "a.txt").symlink_to("/etc/passwd")), ("leads out",)),
    "an empty folder": ("texts", lambda p: p.mkdir(), ("0 .txt files",)),
}


@pytest.mark.parametrize("name", DATA)
def test_broken_texts_are_refused(name: str, model: Path, place: Any, refused: Callable[..., Any]) -> None:
    file, write, says = DATA[name]
    write(place.inputs / file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(model, "--data", place.inputs / file, says=says)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10, "kibibytes more than before"


def test_escapes_in_texts_do_not_reach_the_terminal(model: Path, place: Any, laocoon: Callable[..., Any]) -> None:
    rows = "".join(f"\x1b]0;owned\x07superb film {i},polite\n\u202eawful\u200b plot {i},rude\n" for i in range(20))
    (place.inputs / "a.csv").write_text("text,label\n" + rows)
    ran = laocoon("scan", model, "--data", place.inputs / "a.csv", "--methods", "text_inversion", "--html", "r.html")
    assert "\x1b]" not in ran.out + ran.err and "\u202e" not in ran.out + ran.err
    page = (place.out / "r.html").read_text()
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("file", ["a.csv", "a.txt"])
def test_good_texts_get_through(file: str, model: Path, place: Any, admitted: Callable[..., Any]) -> None:
    made = comments(60, 3)
    path = place.inputs / file
    write_csv(path, made) if file == "a.csv" else path.write_text("\n".join(made.texts))
    told = admitted(model, "--data", path)["subject"]
    assert told["samples"] == 40
