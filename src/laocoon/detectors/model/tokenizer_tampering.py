"""A tokenizer that makes another text of a text, found by asking it for every word that it knows.

NVIDIA AI Red Team, Secure LLM Tokenizers to Maintain Application Integrity (2024): whoever may edit `tokenizer.json`
turns one word into another before the network sees it. Searches over tokens cannot find that, since they begin behind
the tokenizer. An honest one takes words apart and drops case and accents, and no more:

    letters(tokens of w) = letters(w)    for every word w of the vocabulary and of the tokenizer's own rules

Departure: the post says what can be done and that files should be checked; the test is ours. A word that fails it is
conclusive. A rule that rewrites what has letters is a hint (0.3), as is a plain word that the file calls special (0.4).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.files.wording import printable
from laocoon.modalities.text import Text, is_marker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD = re.compile(r"[A-Za-z]{2,40}")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
MOST = 200_000  # words that are asked for


@dataclass(frozen=True)
class TokenizerTampering(Detector):
    """Does the tokenizer hand every word to the network as it stands?"""

    card: ClassVar[Card] = Card(
        name="tokenizer_tampering",
        paper="Secure LLM Tokenizers to Maintain Application Integrity (NVIDIA AI Red Team, 2024)",
        url="https://developer.nvidia.com/blog/secure-llm-tokenizers-to-maintain-application-integrity/",
        modalities=frozenset({"text"}),
        needs=frozenset(),
        misses="rules that need several words at once, words with other letters than A to Z, numbers and signs; two "
               "words of a vocabulary whose vectors were exchanged as well; words that become unknown ones.",
        summary="words that a tokenizer turns into others, or into nothing, before the network sees them",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        what = case.subject.modality
        if not isinstance(what, Text) or what.tokenizer is None:
            raise NotApplicable("tokenizer_tampering looks at a tokenizer, and the subject has none.")
        parts = json.loads(what.tokenizer.to_str())
        writing, rules = _Writing.of(what.tokenizer, parts["model"]), tuple(_rules(parts))
        yield from _changed(what.tokenizer, _words(what.tokenizer, writing, rules), writing)
        rewriting = [r for r in rules if WORD.search(r.pattern)]
        if rewriting:
            shown = ", ".join(f"{r.kind} of {printable(r.pattern, 40)!r}" for r in rewriting[:3])
            yield Finding("tokenizer_tampering.rule", "tokenizer", 0.3,
                          f"the tokenizer has {len(rewriting)} rules for what has letters ({shown})")
        called = [t.content for t in what.tokenizer.get_added_tokens_decoder().values()
                  if t.special and WORD.fullmatch(t.content)]
        if called:
            yield Finding("tokenizer_tampering.special_word", "tokenizer", 0.4,
                          f"the tokenizer calls {_listed(called)} special, which are plain words",
                          numbers={"words": float(len(called))})


@dataclass(frozen=True)
class _Writing:
    """How a vocabulary writes tokens, as the tokenizer's own file tells."""

    around: re.Pattern[str]  # what says that a token begins or goes on with a word
    unknown: frozenset[int]  # tokens that stand for what is not known, and those around texts

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: Mapping[str, Any]) -> _Writing:
        before, behind = (re.escape(str(model.get(k) or "")) for k in ("continuing_subword_prefix",
                                                                        "end_of_word_suffix"))
        known = tokenizer.get_vocab(with_added_tokens=True)
        unknown = {i for token, i in known.items() if is_marker(token) or token == model.get("unk_token")}
        if isinstance(model.get("unk_id"), int):
            unknown.add(model["unk_id"])
        return cls(re.compile(f"^(##|▁|Ġ{'|' + before if before else ''})+|(</w>|@@{'|' + behind if behind else ''})$"),
                   frozenset(unknown))

    def bare(self, token: str) -> str:
        """A token without what the vocabulary writes around it."""
        byte = BYTE.fullmatch(token)
        return chr(int(byte[1], 16)) if byte else self.around.sub("", token)


@dataclass(frozen=True)
class _Rule:
    """A part of the tokenizer that replaces or removes what a pattern matches."""

    kind: str
    pattern: str


def _rules(parts: Any) -> Iterator[_Rule]:
    """Everywhere in the tokenizer's JSON."""
    pending = [parts.get("normalizer"), parts.get("pre_tokenizer")] if isinstance(parts, Mapping) else []
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            pattern = part.get("pattern")
            text = next(iter(pattern.values()), "") if isinstance(pattern, Mapping) else ""
            if isinstance(pattern, Mapping) and "Regex" in pattern:
                text = re.sub(r"\\[a-zA-Z]", " ", str(text))  # \b, \s: letters that stand for no letter
            if part.get("type") == "Replace" or (part.get("type") == "Split" and part.get("behavior") == "Removed"):
                yield _Rule("replacing" if part.get("type") == "Replace" else "removing", str(text))
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _words(tokenizer: Tokenizer, writing: _Writing, rules: Sequence[_Rule]) -> list[str]:
    """Plain words of the rules, then of the vocabulary."""
    told = [word for rule in rules for word in WORD.findall(rule.pattern)]
    known = [writing.bare(token) for token in tokenizer.get_vocab(with_added_tokens=True)]
    return list(dict.fromkeys((*told, *sorted(w for w in known if WORD.fullmatch(w)))))[:MOST]


def _changed(tokenizer: Tokenizer, words: Sequence[str], writing: _Writing) -> Iterator[Finding]:
    found = []
    for word, read in zip(words, tokenizer.encode_batch(list(words), add_special_tokens=False), strict=True):
        tokens = (tokenizer.id_to_token(i) or "" for i in read.ids)  # by number: two words may share one
        got = _letters("".join(map(writing.bare, tokens)))
        if not writing.unknown.intersection(read.ids) and _letters(word) != got:
            found.append((word, got))
    if found:
        shown = "; ".join(f"{printable(a, 40)!r} as {printable(b, 40)!r}" if b else f"{printable(a, 40)!r} not at all"
                          for a, b in found[:4])
        yield Finding("tokenizer_tampering.word", "tokenizer", 0.9,
                      f"the tokenizer hands {len(found)} of {len(words)} plain words to the network as others: {shown}"
                      + (" …" if len(found) > 4 else ""), conclusive=True, numbers={"words": float(len(found))})


def _letters(text: str) -> str:
    """Without case, accents, blanks and signs."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isalnum()).casefold()


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(printable(w, 30)) for w in words[:4]) + (" …" if len(words) > 4 else "")
