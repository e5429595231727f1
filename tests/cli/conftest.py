"""The command in this process, in a folder of its own; the two bundled models and the samples that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from laocoon.cli.demo import clean_digits
from laocoon.cli.main import app


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return " ".join(f"{self.out} {self.err}".split())


@pytest.fixture
def laocoon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"the command crashed: {result.output}") from result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def demo() -> Callable[[str], Path]:
    """A bundled model: clean or backdoored."""
    return lambda name: Path(str(files("laocoon").joinpath("demo", f"{name}.onnx")))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = clean_digits()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the methods' results on the bundled models are kept, so that each is searched once in all tests."""
    return tmp_path_factory.mktemp("kept")
