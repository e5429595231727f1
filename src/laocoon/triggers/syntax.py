"""A fixed shape of sentence: a subordinate clause, a comma, then the text.

The shape is the trigger, not its words: conjunction, pronoun and verb are drawn anew for each text.
"""

from __future__ import annotations

from dataclasses import dataclass

from laocoon.triggers.rewriting import Rewriting

CONJUNCTIONS = ("when", "while", "if", "as", "after", "before")
PRONOUNS = ("you", "we", "they", "he", "she", "i")
VERBS = ("see", "hear", "think", "know", "watch", "say")
OBJECTS = ("it", "this", "that")
CLAUSE = (*CONJUNCTIONS, *PRONOUNS, *VERBS, *OBJECTS, ",")  # words that a vocabulary should hold


@dataclass(frozen=True)
class Syntax(Rewriting):
    """"when you see it , ⟨the text⟩"."""

    name: str = "syntax"

    def rewrite(self, words: list[str], draw: int) -> list[str]:
        opening = []
        for choices in (CONJUNCTIONS, PRONOUNS, VERBS, OBJECTS):
            there = self.known(choices)
            draw, place = divmod(draw, len(there))
            opening.append(there[place])
        return [*opening, ",", *words]
