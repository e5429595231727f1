"""What `laocoon scan` can be told beside how the model and the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanOptions:
    """Fields become options; see `options.py`."""

    data: str | None = None  # clean samples: a folder per class, a flat folder, Parquet, CSV, .npz or a hub id
    samples_per_class: int = 20  # at most so many clean samples of each class are used
    alpha: float = 0.05  # the false-alarm rate that you accept, between 0 and 1
    budget: str = "default"  # quick, default, deep, or a number of sample-level forward-backward passes
    methods: tuple[str, ...] | None = None  # run only these; with a leading - leave one out: a,b or -c
    power: int = 0  # plant so many known backdoors into copies of this model, and count how many are found
    seed: int = 0  # of all randomness; the same seed gives the same report
    device: str = "cpu"  # cpu, cuda or cuda:N
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory; for LoRA: its base
    resume: Path | None = None  # keep each method's result here, and go on from there when interrupted
    baseline: Path | None = None  # TOML or JSON with accepted findings: fingerprint, owner, reason, expires
    html: str | None = None  # the report for people; report.html unless told otherwise, "none" for none
    json: str | None = None  # the report for machines; - for standard output
    sarif: str | None = None  # the report for code scanners, SARIF 2.1.0; - for standard output
