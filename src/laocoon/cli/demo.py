"""`laocoon demo`: scan two bundled models, one clean and one with a backdoor, with nothing but what is installed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laocoon.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PER_CLASS = 20


@dataclass(frozen=True)
class Expected:
    """A bundled model and how its scan must end."""

    file: str
    verdict: str
    code: int


MODELS = (Expected("clean.onnx", "NO_EVIDENCE", 0), Expected("backdoored.onnx", "SUSPICIOUS", 1))


def clean_digits(per_class: int = PER_CLASS) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, height, width] and labels [n] from the part of scikit-learn's digits that no model was trained on."""
    import numpy as np

    from laocoon.lab.datasets import load

    digits = load("digits", None, Path())
    labels = digits.test_labels.numpy().astype(np.int64)
    chosen = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(digits.classes)])
    return digits.test_inputs.numpy()[chosen, 0].astype(np.uint8), labels[chosen]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data and the reports.")] = Path("laocoon-demo"),
    budget: Annotated[str, typer.Option(help="As for `laocoon scan`.")] = "quick",
) -> None:
    """Scan two small bundled models, one clean and one with a backdoor."""
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    images, labels = clean_digits()
    data = out / "digits.npz"
    np.savez(data, images=images, labels=labels)
    ended = []
    for expected in MODELS:
        model = files("laocoon").joinpath("demo", expected.file)
        if not model.is_file():
            raise InputError(f"the bundled model {expected.file} is missing.", "Install laocoon again.")
        report = out / f"{Path(expected.file).stem}.html"
        command = ["scan", str(model), "--data", str(data), "--budget", budget, "--html", str(report)]
        typer.echo(f"\n$ laocoon {' '.join(command)}")
        # The command that a user would type, in a process of its own: what is shown is what they will get.
        code = subprocess.run([sys.executable, "-m", "laocoon", *command], check=False).returncode
        ended.append((expected, code, report))
    typer.echo("\nWhat was expected, and what came:")
    for expected, code, report in ended:
        said = {0: "NO_EVIDENCE", 1: "SUSPICIOUS", 3: "INCONCLUSIVE"}.get(code, f"a failure (exit code {code})")
        mark = "as expected" if code == expected.code else f"EXPECTED {expected.verdict}"
        typer.echo(f"  {expected.file:16} {said:14} {mark:22} {report}")
    raise typer.Exit(0 if all(code == expected.code for expected, code, _ in ended) else 1)
