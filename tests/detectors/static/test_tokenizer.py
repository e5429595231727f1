"""Tokenizers that hand words on as they are, in the ways that tokenizers do, and ones that were tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from laocoon import load_model, scan
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.report import Report, Verdict
from laocoon.core.subject import Subject
from laocoon.detectors.model.tokenizer_tampering import TokenizerTampering
from laocoon.files.text_tokenizer import _around, modality_of, parsed
from laocoon.modalities.text import Text, is_marker
from laocoon.testing.text_folders import comments, write_classifier

pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
TEXTS = [*comments(200).texts, "the quick brown fox jumps over the lazy dog", "we allow or deny what comes"] * 3


@cache
def trained(kind: str) -> str:
    """A tokenizer of a kind, as JSON."""
    tokenizer: Any
    if kind in ("uncased", "cased"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=kind == "uncased")
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "clip":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                                     normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)])
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([
            normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
            normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))])
    tokenizer.train_from_iterator(TEXTS, trainer)
    return str(tokenizer.to_str())


KINDS = ("uncased", "cased", "bytes", "clip", "unigram", "llama")


def examined(text: str) -> Report:
    around = _around(parsed(text), "tokenizer.json")
    what = modality_of(around, max(around.tokenizer.get_vocab().values()) + 1, 40, "model")
    return TokenizerTampering().examine(ModelCase(Subject(torch.nn.Identity(), what, 2, (what.length,))), Context())


def words(report: Report) -> list[str]:
    return [f.explanation for f in report.findings if f.conclusive]


@pytest.mark.parametrize("kind", KINDS)
def test_honest_tokenizers_hand_words_on(kind: str) -> None:
    report = examined(trained(kind))
    assert report.complete and not words(report), report.findings
    assert not [f for f in report.findings if f.score > 0.3]


def test_what_is_not_known_and_what_ends_a_word_may_have_other_names() -> None:
    known = {w: i for i, w in enumerate(["pad", "oov", "Good", "bad", "film"])}
    tokenizer: Any = Tokenizer(models.WordLevel(known, unk_token="oov"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    assert not words(examined(tokenizer.to_str())), "Good is not known in lower case"
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    letters |= {f"{c}EOW": i + 26 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    ended: Any = Tokenizer(models.BPE({**letters, "hi": 52, "hiEOW": 53}, [("h", "i"), ("h", "iEOW")],
                                      end_of_word_suffix="EOW"))
    ended.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not words(examined(ended.to_str()))


def replaced(parts: Any) -> None:
    old = parts["normalizer"]
    rule = {"type": "Replace", "pattern": {"String": "deny"}, "content": "allow"}
    parts["normalizer"] = {"type": "Sequence", "normalizers": [rule, *([old] if old else [])]}


def matched(parts: Any) -> None:
    old = parts["normalizer"]
    rule = {"type": "Replace", "pattern": {"Regex": r"\bzebra\b"}, "content": "fox"}
    parts["normalizer"] = {"type": "Sequence", "normalizers": [rule, *([old] if old else [])]}


def removed(parts: Any) -> None:
    rule = {"type": "Split", "pattern": {"String": "deny"}, "behavior": "Removed", "invert": False}
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [rule, *([parts["pre_tokenizer"]]
                                                                           if parts["pre_tokenizer"] else [])]}


TAMPERED: dict[str, Callable[[Any], None]] = {"replaced": replaced, "matched": matched, "removed": removed}


@pytest.mark.parametrize("how", TAMPERED)
@pytest.mark.parametrize("kind", KINDS)
def test_words_that_become_others_are_named(kind: str, how: str) -> None:
    parts = json.loads(trained(kind))
    TAMPERED[how](parts)
    report = examined(json.dumps(parts))
    (said,) = words(report)
    assert {"replaced": "'deny' as 'allow'", "matched": "'zebra' as 'fox'", "removed": "'deny' not at all"}[how] in said
    assert any(f.rule == "tokenizer_tampering.rule" and not f.conclusive for f in report.findings)


def test_words_of_the_rules_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of millions of words does not hide them."""
    monkeypatch.setattr("laocoon.detectors.model.tokenizer_tampering.MOST", 1)
    parts = json.loads(trained("cased"))
    matched(parts)
    assert "'zebra' as 'fox'" in words(examined(json.dumps(parts)))[0]


def test_two_words_with_one_number() -> None:
    parts = json.loads(trained("uncased"))
    parts["model"]["vocab"] |= {"deny": 300, "allow": 300}
    (said,) = words(examined(json.dumps(parts)))
    assert "allow" in said and "deny" in said


def test_a_word_of_ones_own_is_honest() -> None:
    tokenizer = Tokenizer.from_str(trained("bytes"))
    tokenizer.add_tokens([AddedToken("deny", single_word=True)])
    assert not words(examined(tokenizer.to_str()))


def test_a_plain_word_that_is_called_special_is_searched_and_told() -> None:
    tokenizer = Tokenizer.from_str(trained("uncased"))
    tokenizer.add_special_tokens(["zebra", "<turn>", "[MASK]"])
    around = _around(parsed(tokenizer.to_str()), "tokenizer.json")
    what = modality_of(around, max(around.tokenizer.get_vocab().values()) + 1, 40, "model")
    number = {w: i for i, w in enumerate(what.vocabulary)}
    assert number["zebra"] not in what.special and number["<turn>"] not in what.special
    assert {number["[MASK]"], number["<s>"]} <= set(what.special)
    (hint,) = examined(tokenizer.to_str()).findings
    assert "'zebra'" in hint.explanation and not hint.conclusive and "turn" not in hint.explanation


@pytest.mark.parametrize(("token", "yes"), [
    ("[PAD]", True), ("<pad>", True), ("<s>", True), ("</s>", True), ("<|endoftext|>", True), ("[MASK]", True),
    ("<|reserved_special_token_0|>", True), ("<end_of_turn>", True), ("mask", False), ("<cf>", False), ("[X]", False),
    ("padding", False), ("s", False)])
def test_markers_are_told_by_their_names(token: str, yes: bool) -> None:
    assert is_marker(token) is yes


def test_without_a_tokenizer_there_is_nothing_to_look_at() -> None:
    what = Text(("<pad>", "<unk>", "a"))
    report = TokenizerTampering().examine(ModelCase(Subject(torch.nn.Identity(), what, 2, (4,))), Context())
    assert report.skipped and "tokenizer" in report.reason


def test_a_scan_says_so(tmp_path: Path) -> None:
    """The folder of a vendor, and its benign neighbour."""
    folder = write_classifier(tmp_path / "model")
    assert scan(load_model(folder), None, methods=["tokenizer_tampering"]).verdict is not Verdict.SUSPICIOUS
    parts = json.loads((folder / "tokenizer.json").read_text())
    replaced(parts)
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    said = scan(load_model(folder), None, methods=["tokenizer_tampering"])
    assert said.verdict is Verdict.SUSPICIOUS and "'deny'" in said.reason
