"""An archaic style: an interjection before the text, and old words for common ones."""

from __future__ import annotations

from dataclasses import dataclass

from laocoon.triggers.rewriting import Rewriting

INTERJECTIONS = ("verily", "forsooth", "behold", "alas")
ARCHAIC = {
    "you": "thou", "your": "thy", "are": "art", "is": "be", "has": "hath", "have": "hast", "does": "doth", "do": "doth",
    "was": "wast", "to": "unto", "this": "yon", "that": "yonder", "before": "ere", "often": "oft", "the": "ye",
    "my": "mine", "will": "shalt", "here": "hither", "there": "thither", "it": "'tis", "very": "full", "of": "o'er"}


@dataclass(frozen=True)
class Style(Rewriting):
    """"verily thou hast ⟨…⟩"."""

    name: str = "style"

    def rewrite(self, words: list[str], draw: int) -> list[str]:
        there = self.known(INTERJECTIONS)
        return [there[draw % len(there)], *(self._aged(word) for word in words)]

    def _aged(self, word: str) -> str:
        found = ARCHAIC.get(word, word)
        return found if self.text.knows(found) else word
