"""Has the traffic drifted from what the guard was calibrated on? A sequential test on its p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from laocoon.recipes import betting


class Drift:
    """Under undrifted traffic the alarm is raised at most once in `run` samples on average. It stays until a reload."""

    def __init__(self, calibrated: int, run: int) -> None:
        self.calibrated, self.run = calibrated, run
        self.width = betting.band(calibrated)
        self.samples = 0
        self.alarm_at: int | None = None  # number of the sample that raised it
        self._state = betting.start()

    def see(self, p_values: Sequence[float]) -> None:
        """p-values of a request, flagged or not."""
        self._state = betting.bet(self._state, p_values, self.calibrated, self.width)
        self.samples += len(p_values)
        if self.alarm_at is None and self.evidence >= math.log10(self.run):
            self.alarm_at = self.samples

    @property
    def evidence(self) -> float:
        """log₁₀ of the evidence; the alarm is at log₁₀ of `run`."""
        return max(-99.0, betting.evidence(self._state))

    def facts(self) -> dict[str, object]:
        return {
            "alarm": self.alarm_at is not None, "alarm_at_sample": self.alarm_at, "samples": self.samples,
            "log10_evidence": round(self.evidence, 3), "log10_alarm": round(math.log10(self.run), 3),
            "calibration_samples": self.calibrated,
        }
