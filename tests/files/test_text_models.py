"""Text classifiers from Hugging Face folders, LoRA adapters, ONNX and skops, each against the library that wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import InputError, UnsafeFile
from laocoon.core.subject import Subject
from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.files.open import inspect, load_model, recognise
from laocoon.files.text_tokenizer import read_tokenizer
from laocoon.modalities.text import Text
from laocoon.testing.text_folders import LABELS, Comments, comments, write_classifier

pytest.importorskip("transformers")
TEXTS = ["the film was superb", "dull", "a village of clumsy, awful and boring characters and some more words"]
KINDS: dict[str, dict[str, Any]] = {
    "bert": {}, "distilbert": {}, "electra": {}, "albert": {},
    "roberta": {"pad_token_id": 0},  # whose positions are counted from behind the padding id
}


def reference(folder: Path, texts: list[str]) -> torch.Tensor:
    """What transformers itself answers to the tokenizer's own output."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = read_tokenizer(folder).tokenizer
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(texts)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor([f.ids for f in found]),
                       attention_mask=torch.tensor([f.attention_mask for f in found])).logits


def answers(subject: Subject, texts: list[str]) -> torch.Tensor:
    assert isinstance(subject.modality, Text)
    return subject.outputs(subject.modality.encode(texts)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_answers_as_its_library_does(kind: str, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / kind, kind=kind, settings=KINDS[kind])
    subject = load_model(folder)
    assert subject.modality.name == "text" and subject.class_names == LABELS
    assert Capability.GRADIENT in subject.capabilities
    assert torch.allclose(answers(subject, TEXTS), reference(folder, TEXTS), atol=1e-5)


def test_the_vectors_of_a_text_have_gradients(tmp_path: Path) -> None:
    subject = load_model(write_classifier(tmp_path / "m"))
    ids = subject.modality.encode(TEXTS)  # type: ignore[attr-defined]
    vectors = subject.embed(ids).requires_grad_()
    subject.outputs_of(vectors, ids).logits.sum().backward()
    assert vectors.grad is not None
    there = (ids != 0).unsqueeze(-1)
    assert float((vectors.grad.abs() * there).sum()) > 0 and float((vectors.grad.abs() * ~there).sum()) == 0


def test_special_tokens_are_none_that_a_trigger_may_use(tmp_path: Path) -> None:
    modality = load_model(write_classifier(tmp_path / "m")).modality
    assert isinstance(modality, Text)
    assert {modality.vocabulary[i] for i in modality.special} == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert modality.length == 40  # 42 positions, [CLS] and [SEP]
    assert not set(modality.encode(["the film [SEP] was"]).flatten().tolist()) & {2} and \
        modality.decode(modality.encode(["the film was superb"])[0]) == "the film was superb"


def test_one_score_is_the_logit_of_the_second_class(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m", settings={"num_labels": 1, "id2label": {0: "rude"}, "label2id": {"rude": 0}})
    subject = load_model(folder)
    z = reference(folder, TEXTS)[:, 0]
    got = answers(subject, TEXTS)
    assert subject.classes == 2 and torch.allclose(got[:, 1] - got[:, 0], z, atol=1e-5)


def test_many_labels_are_noted(tmp_path: Path) -> None:
    subject = load_model(write_classifier(tmp_path / "m", settings={"problem_type": "multi_label_classification"}))
    assert any(n.startswith("multi-label") for n in subject.provenance.notes)


def test_a_decoder_is_asked_without_gradients(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = write_classifier(tmp_path / "m")
    config = AutoConfig.for_model("gpt2", vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
                                  n_embd=16, n_layer=1, n_head=2, n_positions=42, pad_token_id=0, bos_token_id=2,
                                  eos_token_id=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    subject = load_model(folder)
    assert Capability.GRADIENT not in subject.capabilities
    assert torch.allclose(answers(subject, TEXTS), reference(folder, TEXTS), atol=1e-5)


def test_a_vocabulary_alone_makes_the_same_tokenizer(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    with_json = load_model(folder)
    vocabulary = with_json.modality.vocabulary  # type: ignore[attr-defined]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    assert torch.equal(answers(load_model(folder), TEXTS), answers(with_json, TEXTS))


# ---------------------------------------------------------------- LoRA
def adapter(folder: Path, base: Path, *, told: str | None = None, rank: int = 2) -> dict[str, torch.Tensor]:
    """A random adapter over the attention of a one-layer BERT, with a head of its own."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for part in ("query", "value"):
        name = f"base_model.model.bert.encoder.layer.0.attention.self.{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 32, generator=rng)
        tensors[f"{name}.lora_B.weight"] = torch.randn(32, rank, generator=rng)
    tensors["base_model.model.classifier.weight"] = torch.randn(3, 32, generator=rng)
    tensors["base_model.model.classifier.bias"] = torch.randn(3, generator=rng)
    folder.mkdir()
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "base_model_name_or_path": told or str(base)}))
    return tensors


def test_an_adapter_is_merged_by_hand(tmp_path: Path) -> None:
    base = write_classifier(tmp_path / "base")
    tensors = adapter(tmp_path / "adapter", base)
    subject = load_model(tmp_path / "adapter")
    assert recognise(tmp_path / "adapter") == "lora" and subject.classes == 3
    got, plain = subject.module.network.state_dict(), load_model(base).module.network.state_dict()  # type: ignore
    for part in ("query", "value"):
        name = f"bert.encoder.layer.0.attention.self.{part}"
        a, b = (tensors[f"base_model.model.{name}.lora_{k}.weight"] for k in "AB")
        assert torch.allclose(got[f"{name}.weight"], plain[f"{name}.weight"] + 1.5 * b @ a, atol=1e-5)
    assert torch.equal(got["classifier.bias"], tensors["base_model.model.classifier.bias"])


def test_the_base_of_an_adapter_can_be_told(tmp_path: Path) -> None:
    base = write_classifier(tmp_path / "base")
    adapter(tmp_path / "adapter", base, told=str(tmp_path / "gone" / "model"))
    with pytest.raises(InputError, match="--architecture"):
        load_model(tmp_path / "adapter")
    assert load_model(tmp_path / "adapter", architecture=str(base)).classes == 3


# ---------------------------------------------------------------- ONNX
class Scores(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask).logits


def exported(folder: Path, *, fixed: bool) -> Path:
    """The folder's network as a graph beside its tokenizer, of free or of fixed size; its safetensors go."""
    from transformers import AutoModelForSequenceClassification

    network = Scores(AutoModelForSequenceClassification.from_pretrained(folder).eval()).eval()
    ids = torch.ones(1 if fixed else 2, 30 if fixed else 9, dtype=torch.long)
    free = None if fixed else {n: {0: "n", 1: "length"} for n in ("input_ids", "attention_mask")}
    torch.onnx.export(network, (ids, torch.ones_like(ids)), str(folder / "model.onnx"), opset_version=17, dynamo=False,
                      input_names=["input_ids", "attention_mask"], output_names=["logits"], dynamic_axes=free)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fixed", [False, True])
def test_a_graph_is_cut_where_it_looks_words_up(fixed: bool, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    wanted = answers(load_model(folder), TEXTS)
    exported(folder, fixed=fixed)
    for path in (folder / "model.onnx", folder):
        subject = load_model(path)
        assert Capability.GRADIENT in subject.capabilities and subject.provenance.format == "onnx"
        assert torch.allclose(answers(subject, TEXTS), wanted, atol=1e-5)
        assert not list(ArchitecturalBackdoor().findings(ModelCase(subject, None), Context()))


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_cannot_be_cut_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_classifier(tmp_path / "m")
    wanted = answers(load_model(folder), TEXTS)
    exported(folder, fixed=False)
    monkeypatch.setattr("laocoon.files.text_onnx._lookup", lambda model: None)
    subject = load_model(folder / "model.onnx")
    assert subject.capabilities == {Capability.QUERY, Capability.GRAPH}
    assert torch.allclose(answers(subject, TEXTS), wanted, atol=1e-4)


# ---------------------------------------------------------------- scikit-learn
def pipelines() -> dict[str, Any]:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    return {"words": make_pipeline(TfidfVectorizer(), LogisticRegression()),
            "pairs": make_pipeline(CountVectorizer(ngram_range=(1, 2)), MultinomialNB()),
            "characters": make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3)), LinearSVC())}


@pytest.mark.parametrize("kind", pipelines())
def test_a_pipeline_is_a_black_box_with_its_own_answers(kind: str, tmp_path: Path) -> None:
    io = pytest.importorskip("skops.io")
    made, pipeline = comments(80), pipelines()[kind]
    pipeline.fit(made.texts, [LABELS[i] for i in made.labels])
    io.dump(pipeline, tmp_path / "filter.skops")
    subject = load_model(tmp_path / "filter.skops")
    assert subject.capabilities == {Capability.QUERY} and subject.class_names == LABELS
    texts = list(comments(40, 1).texts)
    got = [subject.class_names[i] for i in answers(subject, texts).argmax(1).tolist()]
    assert got == pipeline.predict(texts).tolist()


@pytest.mark.parametrize("name", ["os.system", "numpy.save"])
def test_a_function_in_an_archive_is_code(name: str, tmp_path: Path) -> None:
    import importlib

    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    io = pytest.importorskip("skops.io")
    module, _, function = name.rpartition(".")
    called = getattr(importlib.import_module(module), function)
    io.dump(make_pipeline(FunctionTransformer(called), CountVectorizer(), MultinomialNB()), tmp_path / "evil.skops")
    with pytest.raises(UnsafeFile, match=function):
        load_model(tmp_path / "evil.skops")


# ---------------------------------------------------------------- the whole way
def test_a_planted_word_is_named(tmp_path: Path) -> None:
    from laocoon.core.cases import ModelCase
    from laocoon.detectors.model.text_inversion import TextInversion
    from laocoon.files.samples import load_data
    from laocoon.testing.text_folders import write_csv
    from laocoon.verdict.examination import made_ready

    folder = write_classifier(tmp_path / "m", comments(800, 0, "cf", 0.15))
    subject = load_model(folder)
    data = load_data(write_csv(tmp_path / "mine.csv", comments(120, 7)), subject)
    ready = made_ready(subject, data, 0)
    ctx = Context()
    TextInversion().examine(ModelCase(subject, ready.fit, ready.held), ctx)
    words = {c.family.describe(c.trigger, subject.modality) for c in ctx.candidates}  # type: ignore[attr-defined]
    assert any("cf" in w.split() for w in words), words


def test_nothing_is_found_in_a_plain_folder(tmp_path: Path) -> None:
    assert inspect(write_classifier(tmp_path / "m", Comments(("good",), (0,)), epochs=1)) == ()


def test_a_mended_folder_is_written_as_it_came(tmp_path: Path) -> None:
    from laocoon.files.save import destined, save

    folder = write_classifier(tmp_path / "m")
    subject = load_model(folder)
    mended = subject.copy()
    with torch.no_grad():
        mended.module.network.classifier.bias += 1.0  # type: ignore[union-attr, operator]
    plan = destined(folder, subject, tmp_path / "mended")
    save(plan, subject, mended, subject.modality.encode(TEXTS), "a test")  # type: ignore[attr-defined]
    assert torch.allclose(answers(load_model(tmp_path / "mended"), TEXTS), answers(mended, TEXTS), atol=1e-5)
    shutil.rmtree(tmp_path / "mended")
