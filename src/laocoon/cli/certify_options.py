"""What `laocoon certify` can be told beside how the model and the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CertifyOptions:
    """Fields become options; see `options.py`."""

    data: str | None = None  # the inputs that are spoken of: a folder per class, Parquet, .npz or a hub id
    method: str = "patch_absence"  # patch_absence, marabou_absence, smoothing or dpa_votes
    set: tuple[str, ...] | None = None  # parameters of the method: target=3,side=2,theta=0.9
    samples_per_class: int = 20  # at most so many inputs of each class are used
    budget: float | None = None  # at most so many sample-level forward-backward passes
    seed: int = 0  # of all randomness; the same seed gives the same certificate
    device: str = "cpu"  # cpu, cuda or cuda:N
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory
    counterexample: str | None = None  # where a counter-example is written, .npz: the patch, and inputs that carry it
    json: str | None = None  # the certificate for machines; - for standard output
