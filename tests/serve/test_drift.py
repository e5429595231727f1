"""The alarm holds its rate on undrifted traffic, for this calibration set, and comes soon on drifted traffic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laocoon.recipes import betting
from laocoon.serve.drift import Drift


def conformal(scores, calibration):
    return [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]


def slow_evidence(p_values, calibrated, width):
    """R ← (R + 1) · b(p), one number at a time, no logarithms."""
    sums = {(side, e): 0.0 for side in (0, 1) for e in betting.POWERS}
    for p in p_values:
        for side, e in sums:
            q = min(1.0, (p if side == 0 else 1 - p + 1 / (calibrated + 1)) + width)
            sums[side, e] = (sums[side, e] + 1) * e * q ** (e - 1)
    return math.log10(sum(sums.values()) / len(sums))


def test_as_the_slow_way():
    p = np.random.default_rng(0).integers(1, 101, 200) / 100
    state = betting.bet(betting.start(), p, 99, 0.05)
    assert betting.evidence(state) == pytest.approx(slow_evidence(p, 99, 0.05), abs=1e-9)


@pytest.mark.parametrize("power", betting.POWERS)
@pytest.mark.parametrize("width", [0.0, 0.1])
def test_a_bet_is_fair(power, width):
    """The mean gain under uniform p is at most 1, by numerical integration."""
    p = (np.arange(200_000) + 0.5) / 200_000
    gain = power * np.minimum(1, p + width) ** (power - 1)
    assert gain.mean() <= 1 + 1e-6
    assert width or gain.mean() > 0.9


def test_the_band_covers():
    """p + δ is larger than uniform for all but a share of calibration sets."""
    rng, n, misses = np.random.default_rng(1), 50, 0
    width = betting.band(n, 0.1)
    levels = np.linspace(0, 1, 201)
    for _ in range(400):
        calibration = np.sort(rng.random(n))
        scores = rng.random(4000)
        p = (1 + n - np.searchsorted(calibration, scores)) / (n + 1)
        below = (p[:, None] + width <= levels).mean(0)
        misses += bool((below > levels + 0.035).any())  # 0.035: of 4000 draws
    assert misses <= 0.1 * 400


@pytest.mark.parametrize("seed", range(5))
def test_undrifted_traffic_stays_quiet(seed):
    """20 000 samples against one calibration set of 200, far more than a plain test against uniform would bear."""
    rng = np.random.default_rng(seed)
    calibration = np.sort(rng.normal(size=200))
    scores = rng.normal(size=20_000)
    p = ((1 + 200 - np.searchsorted(calibration, scores)) / 201).tolist()
    drift = Drift(200, 1_000_000)
    drift.see(p)
    assert drift.alarm_at is None


@pytest.mark.parametrize(("shift", "soon"), [(1.5, 300), (-1.5, 300), (0.8, 3000)])
def test_drift_is_found_in_either_direction_and_late(shift, soon):
    rng = np.random.default_rng(7)
    calibration = rng.normal(size=300).tolist()
    drift = Drift(300, 1_000_000)
    drift.see(conformal(rng.normal(size=3000), calibration))
    assert drift.alarm_at is None
    drift.see(conformal(rng.normal(shift, size=soon), calibration))
    assert drift.alarm_at is not None and 3000 < drift.alarm_at <= 3000 + soon


def test_traffic_through_the_service(serve):
    served = serve("log", drift_run=1000)
    facts = served.get("/v2/health").json()["drift"]
    assert facts["samples"] == 0 and facts["alarm"] is False and facts["calibration_samples"] == 99
    from tests.serve.conftest import pictures
    served.infer(pictures(64))
    assert served.get("/v2/health").json()["drift"]["samples"] == 64
    assert served.metric("laocoon_guard_drift_log10_evidence") < 3
    for _ in range(8):
        served.infer(pictures(64, triggered=tuple(range(64))))
    assert served.get("/v2/health").json()["drift"]["alarm"] is True
