"""What a static check says about a file: why it must not be loaded."""

from __future__ import annotations

from dataclasses import dataclass

from laocoon.core.errors import UnsafeFile
from laocoon.core.report import Finding


@dataclass(frozen=True)
class Danger:
    """`rule` is stable; `details` name the opcodes, paths or layers."""

    rule: str
    problem: str
    details: tuple[str, ...] = ()
    remedy: str = "Do not load this file."
    score: float = 1.0

    def finding(self, where: str) -> Finding:
        shown = "; ".join(self.details[:8])
        return Finding(self.rule, where, self.score, f"{self.problem}{f' ({shown})' if shown else ''}", conclusive=True)

    def error(self, where: str) -> UnsafeFile:
        shown = "; ".join(self.details[:4])
        return UnsafeFile(f"{where}: {self.problem}{f' ({shown})' if shown else ''}.", self.remedy, rule=self.rule,
                          details=self.details)
