"""What `laocoon repair` can be told beside how the model and the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RepairOptions:
    """Fields become options; see `options.py`."""

    data: str | None = None  # clean samples, best 40 or more a class: a folder per class, Parquet, .npz or a hub id
    out: str | None = None  # where the repaired model is written, in the format of the model
    format: str | None = None  # write another format: onnx, or safetensors
    overwrite: bool = False  # replace what is at --out
    scan: Path | None = None  # the JSON report of an earlier scan of this model, instead of a new one
    candidates: Path | None = None  # recovered triggers kept from an earlier scan (.safetensors in its resume folder)
    max_drop: float = 2.0  # clean accuracy that may be lost, in points
    methods: tuple[str, ...] | None = None  # try only these repairs; with a leading - leave one out: a,b or -c
    passes: int | None = None  # sample-level forward-backward passes that the repairs together may spend
    first: bool = False  # stop at the first repair that leaves nothing to be seen, instead of trying all
    stages: int = 3  # 1 for the best single repair; more go on from its result while something is left, up to 5
    force: bool = False  # repair also where the scan found nothing or could not say
    samples_per_class: int = 100  # at most so many clean samples of each class are used
    alpha: float = 0.05  # the false-alarm rate of the scans that you accept, between 0 and 1
    budget: str = "default"  # of the scans: quick, default, deep, or a number of sample-level passes
    seed: int = 0  # of all randomness; the same seed gives the same report
    device: str = "cpu"  # cpu, cuda or cuda:N
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory
    resume: Path | None = None  # keep each mended model here, and go on from there when interrupted
    html: str | None = None  # the report for people; repair.html unless told otherwise, "none" for none
    json: str | None = None  # the report for machines; - for standard output
