"""Conformal p-values and binomial intervals."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import beta


def rank(score: float, references: Sequence[float]) -> int:
    """How many references are at least as extreme, the subject itself included: 1 to len(references) + 1."""
    return 1 + sum(1 for r in references if r >= score)


def p_value(score: float, references: Sequence[float]) -> float:
    """(1 + #{reference ≥ score}) / (n + 1): valid when the subject is exchangeable with the references; ties count
    against it. Never below 1 / (n + 1). Vovk, Gammerman and Shafer (2005)."""
    return rank(score, references) / (len(references) + 1)


def binomial_interval(found: int, tried: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a proportion; (0, 1) when nothing was tried."""
    if tried == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if found == 0 else float(beta.ppf(tail, found, tried - found + 1))
    high = 1.0 if found == tried else float(beta.ppf(1 - tail, found + 1, tried - found))
    return low, high
