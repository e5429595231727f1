"""What `laocoon guard` can be told beside how the model and the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitOptions:
    """Of `guard fit`."""

    data: str | None = None  # clean samples: a folder per class, a flat folder, Parquet, CSV, JSON lines, .npz, hub id
    out: str | None = None  # the folder that the guard is written to
    alpha: float = 0.01  # share of clean requests that may be flagged
    samples_per_class: int = 200  # at most so many clean samples of each class are used, half of them to calibrate on
    upstream_model: str | None = None  # where MODEL is the address of a server: the model's name there
    seed: int = 0  # of the split and of the guards
    device: str = "cpu"  # cpu, cuda or cuda:N
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory


@dataclass(frozen=True)
class CheckOptions:
    """Of `guard check`."""

    guard: str | None = None  # the folder that `guard fit` wrote
    data: str | None = None  # what to check: a folder, Parquet, CSV, JSON lines, .npz or a hub id (owner/name)
    alpha: float | None = None  # another share of clean samples that may be flagged than the guard was fitted with
    json: str | None = None  # one JSON object per sample, flagged or not; - for standard output
    upstream_model: str | None = None  # where MODEL is the address of a server: the model's name there
    device: str = "cpu"  # cpu, cuda or cuda:N
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory


@dataclass(frozen=True)
class GuardedOptions:
    """Of `guard serve`, beside `laocoon.serve.settings.ServeOptions`."""

    guard: str | None = None  # the folder that `guard fit` wrote
    architecture: str | None = None  # for weights alone: timm:NAME or package.module:factory
