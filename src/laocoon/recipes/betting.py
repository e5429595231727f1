"""Sequential betting against the claim that p-values are uniform: has the traffic drifted from the calibration?

A bet on small p-values, b_ε(p) = ε p^(ε−1) with 0 < ε < 1, is decreasing and has mean 1 under a uniform p, so mean at
most 1 where p is larger than uniform (Vovk, Gammerman and Shafer 2005, chapter 7). Bets add up to an e-detector in the
form of Shiryaev and Roberts, R ← (R + 1) · b(p): raising the alarm at R ≥ N happens to undrifted traffic no more often
than once in N samples on average (Shin, Ramdas and Rinaldo, 2022, arXiv 2203.03532). A mean of such sums over ε and
over the two directions is one again.

A fixed calibration set of n samples makes p-values that are uniform on average over such sets, not for this one: on
long traffic every test would find the difference of about 1/√n. So p-values are widened by the half-width of the
Dvoretzky-Kiefer-Wolfowitz band first; p + δ is larger than uniform for all but a share `doubt` of calibration sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

POWERS = (0.2, 0.4, 0.6, 0.8)  # ε: small ones win against strong drift, large ones against weak drift
_CEILING = 600.0  # of log R, far above any alarm, far below what a float holds

State = npt.NDArray[np.float64]  # log R, [2 directions, powers]


def band(calibrated: int, doubt: float = 0.01) -> float:
    """Half-width δ of the one-sided band (Massart's constant), `doubt` split over the two directions."""
    return math.sqrt(math.log(2 / doubt) / (2 * max(1, calibrated)))


def start() -> State:
    """No evidence: R = 0."""
    return np.full((2, len(POWERS)), -np.inf)


def bet(state: State, p_values: Iterable[float], calibrated: int, width: float) -> State:
    """The state after these p-values, in their order. p-values are conformal: multiples of 1 / (calibrated + 1)."""
    powers = np.asarray(POWERS)
    for p in p_values:
        # Suspicious traffic makes p small; traffic that is too plain makes its mirror small.
        both = np.minimum(1.0, np.asarray([p, 1 - p + 1 / (calibrated + 1)]) + width)
        gain = np.log(powers)[None] + (powers - 1)[None] * np.log(both)[:, None]
        state = np.minimum(np.logaddexp(state, 0.0) + gain, _CEILING)
    return state


def evidence(state: State) -> float:
    """log₁₀ of the mean R over powers and directions; −∞ before the first sample."""
    return float((np.logaddexp.reduce(state, axis=None) - math.log(state.size)) / math.log(10))
