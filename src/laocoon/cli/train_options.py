"""What `laocoon train` can be told beside how the data are read. Comments are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """Fields become options; see `options.py`."""

    out: str | None = None  # where the model is written: .safetensors, or .onnx
    architecture: str | None = None  # cnn …; timm:NAME; bag, attention; mlp; or package.module:factory of yours
    method: str = "plain"  # plain, abl, cutmix, dbd, dp_sgd or dpa
    set: tuple[str, ...] | None = None  # parameters of the method: epochs=30,rate=0.001
    held: float = 0.1  # share of the samples that is held out, to measure accuracy
    keep: Path | None = None  # where the rows of the samples that the method trusted are written, one a line
    budget: float | None = None  # at most so many sample-level forward-backward passes
    seed: int = 0  # of all randomness; the same seed gives the same model
    device: str = "cpu"  # cpu, cuda or cuda:N
    json: str | None = None  # the report for machines; - for standard output
