"""What `laocoon trace` can be told beside how the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TraceOptions:
    """Fields become options; see `options.py`."""

    model: str | None = None  # the model that the input fired in
    input: str | None = None  # the input that fired, a picture
    label: int | None = None  # the class that it was given; else what the model answers
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory
    fdr: float = 0.05  # share of the listed samples that may be listed wrongly, between 0 and 1
    seed: int = 0  # of all randomness; the same seed gives the same report
    device: str = "cpu"  # cpu, cuda or cuda:N
    json: str | None = None  # the report for machines; - for standard output
    unlearn: str | None = None  # the samples to unlearn, one a line: the file's name, or the row counted from 0
