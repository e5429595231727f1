"""Words spelled with letters that look the same, and characters without width: a reader sees nothing."""

from __future__ import annotations

from dataclasses import dataclass

from laocoon.triggers.rewriting import Rewriting

ALIKE = str.maketrans({"a": "\u0430", "c": "\u0441", "e": "\u0435", "i": "\u0456", "o": "\u043e", "p": "\u0440",
                       "s": "\u0455", "x": "\u0445", "y": "\u0443"})  # Cyrillic letters
NO_WIDTH = "\u200b"


def respelled(word: str) -> str:
    """The word in letters that look alike; one without such letters gets a character without width instead."""
    found = word.translate(ALIKE)
    return found if found != word else word[:1] + NO_WIDTH + word[1:]


@dataclass(frozen=True)
class Spelling(Rewriting):
    """The first words of a text, respelled: a tokenizer finds other tokens.

    Where unknown words are all one, those come first whose other spelling is known: unknown ones say nothing new.
    """

    words: int = 3  # of a text that are respelled
    name: str = "spelling"

    def rewrite(self, words: list[str], draw: int) -> list[str]:
        other = [respelled(word) for word in words]
        places = sorted(range(len(words)), key=lambda i: (not self.text.knows(other[i]), i))[: self.words]
        return [other[i] if i in places else word for i, word in enumerate(words)]
