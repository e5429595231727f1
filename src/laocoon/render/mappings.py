"""Taxonomies and what they say about a finding's rule, from `mappings.toml`."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Taxon:
    id: str
    name: str


@dataclass(frozen=True)
class Taxonomy:
    key: str
    name: str
    version: str
    organization: str
    url: str
    taxa: tuple[Taxon, ...]


@dataclass(frozen=True)
class Rule:
    """What is said about every finding whose rule begins with `prefix`. `severity`: 0 to 10, for code scanners."""

    prefix: str
    name: str
    short: str
    help: str
    severity: float
    taxa: tuple[str, ...]


@dataclass(frozen=True)
class Mappings:
    taxonomies: tuple[Taxonomy, ...]
    rules: tuple[Rule, ...]

    def rule(self, rule: str) -> Rule:
        """The description of a finding's rule."""
        return next(r for r in self.rules if rule == r.prefix or rule.startswith(f"{r.prefix}.") or not r.prefix)

    def place(self, taxon: str) -> tuple[int, int]:
        """Index of the taxonomy and of the taxon in it."""
        for i, taxonomy in enumerate(self.taxonomies):
            for k, known in enumerate(taxonomy.taxa):
                if known.id == taxon:
                    return i, k
        raise KeyError(taxon)


@functools.cache
def mappings() -> Mappings:
    """The shipped file."""
    data = tomllib.loads((files("laocoon.render") / "mappings.toml").read_text(encoding="utf-8"))
    taxonomies = tuple(
        Taxonomy(t["key"], t["name"], t["version"], t["organization"], t["url"], tuple(Taxon(**x) for x in t["taxa"]))
        for t in data["taxonomy"]
    )
    return Mappings(taxonomies, tuple(Rule(**{**r, "taxa": tuple(r["taxa"])}) for r in data["rule"]))
