"""A scikit-learn text pipeline as a black box: it takes strings, so ids are turned back to words before each query."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files.wording import first_line, printable
from laocoon.modalities.text import PADDING, UNKNOWN, Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 64  # words of a text that a pipeline is asked about
LONGEST_CHARACTERS = 256  # where its features are made of characters
SMALLEST = 1e-7
_FAILURES = (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, NotImplementedError,
             AssertionError, OverflowError, ZeroDivisionError, MemoryError)


class Pipeline(nn.Module):
    """Ids in, logits out: logarithms of probabilities, margins, or a score of 1 for the class that is named."""

    def __init__(self, pipeline: Any, modality: Text, way: str) -> None:
        super().__init__()
        self.pipeline, self.modality, self.way = pipeline, modality, way
        self.named = {c: i for i, c in enumerate(np.asarray(pipeline.classes_).tolist())}

    def forward(self, batch: Tensor) -> Tensor:
        texts = [self.modality.decode(row[row != UNKNOWN]) for row in batch.cpu()]
        if self.way == "predict":
            said = torch.tensor([self.named[c] for c in np.asarray(self.pipeline.predict(texts)).tolist()])
            return nn.functional.one_hot(said, len(self.named)).float().to(batch.device)
        values = torch.as_tensor(np.asarray(getattr(self.pipeline, self.way)(texts)), dtype=torch.float32)
        if self.way == "predict_proba":
            values = values.clamp_min(SMALLEST).log()
        elif values.dim() == 1:  # the margin of the second class against the first
            values = torch.stack([torch.zeros_like(values), values], 1)
        return values.to(batch.device)


def is_text(estimator: Any) -> bool:
    """Does a pipeline begin with something that takes strings?"""
    return vectoriser(estimator) is not None


def vectoriser(estimator: Any) -> Any | None:
    """The step that turns strings into numbers; in a union of several the first."""
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer

    steps = getattr(estimator, "steps", None)
    if not steps:
        return None
    first = steps[0][1]
    for _, inner in [("", first), *(getattr(first, "transformer_list", None) or [])]:
        if isinstance(inner, CountVectorizer | HashingVectorizer):
            return inner
    return None


def adapted(pipeline: Any, provenance: Provenance) -> Subject:
    """A Subject that can only be asked."""
    where = provenance.path
    modality = _modality(vectoriser(pipeline), where)
    classes = getattr(pipeline, "classes_", None)
    if classes is None or np.ndim(classes) != 1 or len(classes) < 2:
        raise InputError(f"{where} ends in a {type(pipeline.steps[-1][1]).__name__} that names no classes.",
                         "Only fitted classifiers are examined.")
    way = next(w for w in ("predict_proba", "decision_function", "predict") if hasattr(pipeline, w))
    module = Pipeline(pipeline, modality, way)
    try:
        answer = module(torch.tensor([[PADDING + 2] + [PADDING] * (modality.length - 1)] * 2))
    except _FAILURES as error:
        raise BrokenFile(f"{where} fails on a text ({first_line(error, 120)}).",
                         "Check that it was fitted, and by which version of scikit-learn.") from error
    if answer.shape != (2, len(classes)) or not bool(torch.isfinite(answer).all()):
        raise BrokenFile(f"{where} answers {list(answer.shape)} numbers for 2 texts and {len(classes)} classes.",
                         "A classifier scores each class.")
    told = {"predict_proba": "the logarithms of its probabilities are used as logits",
            "decision_function": "its decision values are used as logits",
            "predict": "it names a class and gives no scores"}[way]
    capabilities = {Capability.QUERY} | ({Capability.HARD_LABEL} if way == "predict" else set())
    notes = (*provenance.notes, "a scikit-learn pipeline: it can be asked, its weights are not examined", told)
    return Subject(module, modality, len(classes), (modality.length,), frozenset(capabilities),
                   replace(provenance, notes=notes), tuple(printable(c, 80) for c in classes))


def _modality(step: Any, where: str) -> Text:
    """Words or characters that the pipeline knows."""
    known = getattr(step, "vocabulary_", None)
    analyser = getattr(step, "analyzer", "")
    if not isinstance(known, dict) or not known or analyser not in ("word", "char", "char_wb"):
        raise InputError(f"{where}: the vocabulary of its {type(step).__name__} cannot be read (analyzer "
                         f"{printable(analyser, 40)!r}).", "It must be a fitted CountVectorizer or TfidfVectorizer.")
    by_word = analyser == "word"
    parts = sorted({part for feature in known for part in (str(feature).split() if by_word else str(feature))})
    vocabulary = ("<pad>", "<unk>", *parts)
    length = LENGTH if by_word else LONGEST_CHARACTERS
    return Text(vocabulary, length, (PADDING, UNKNOWN), _tokenizer(vocabulary, step, by_word))


def _tokenizer(vocabulary: tuple[str, ...], step: Any, by_word: bool) -> Tokenizer:
    """Splits a text as the vectoriser does: runs of word characters, or single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    if getattr(step, "lowercase", True):
        tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    if by_word:
        pattern = r"\b\w\w+\b" if getattr(step, "token_pattern", "") == r"(?u)\b\w\w+\b" else r"\w+"
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)  # type: ignore[assignment]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
        tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return tokenizer


