"""What `laocoon sift` can be told beside how the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SiftOptions:
    """Fields become options; see `options.py`."""

    model: str | None = None  # a model that was trained on these data; else a small one is trained for the purpose
    train: str | None = None  # the network to train where there is no model: cnn, resnet …; bag, attention; mlp
    trusted: str | None = None  # samples known to be clean, from elsewhere, in any layout that data come in
    architecture: str | None = None  # of a model that is weights alone: timm:NAME or package.module:factory
    alpha: float = 0.05  # the false-alarm rate of the verdict that you accept, between 0 and 1
    fdr: float = 0.05  # share of the flagged samples that may be flagged wrongly, between 0 and 1
    methods: tuple[str, ...] | None = None  # run only these (a,b), every one (all), or the usual ones without some (-c)
    most: int = 20000  # samples that the methods see; others are judged by those that are most like them
    budget: float | None = None  # at most so many sample-level forward-backward passes
    seed: int = 0  # of all randomness; the same seed gives the same report
    device: str = "cpu"  # cpu, cuda or cuda:N
    html: str | None = None  # the report for people; sift.html unless told otherwise, "none" for none
    json: str | None = None  # the report for machines; - for standard output
    scores: str | None = None  # one row a sample, as Parquet
    keep: str | None = None  # the samples to keep, one a line: the file's name, or the row counted from 0
