"""Every ```python and ```console block in the documents runs, in a folder with a model and clean images to play with.

In a console block, lines that start with `$` are run and must end as the page says: with exit code 0, or 1 where the
expected output starts with SUSPICIOUS. Expected output may hold `...` for whatever stands there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "src" / "laocoon" / "demo"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"),
                *(ROOT / "docs" / "tutorials").glob("*.md")])


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
            if match[1] in languages:
                found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vendor.onnx (the bundled planted model) and clean_images/, a folder per class."""
    if not (DEMO / "backdoored.onnx").exists():
        pytest.skip("the demo models are not bundled yet")
    from PIL import Image

    from laocoon.cli.demo import clean_digits

    folder = tmp_path_factory.mktemp("playground")
    shutil.copy(DEMO / "backdoored.onnx", folder / "vendor.onnx")
    images, labels = clean_digits(per_class=20)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        target = folder / "clean_images" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{i}.png")
    return folder


def pages_with(language: str) -> list[Path]:
    return sorted({b.page for b in blocks(language)})


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_runs(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share their names, from top to bottom."""
    own = [b for b in blocks("python") if b.page == page]
    if any("vendor.onnx" in b.code for b in own):
        monkeypatch.chdir(request.getfixturevalue("playground"))
    elif page.parent.name == "tutorials":  # they make what they need where they stand
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    names: dict[str, object] = {"__name__": f"snippets_{page.stem}"}
    module = type(sys)(str(names["__name__"]))  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in own:
        code = "\n" * block.line + block.code
        exec(compile(code, str(page), "exec", dont_inherit=True), module.__dict__)


def sessions(block: Block) -> list[tuple[str, str]]:
    """Commands with what they are said to print."""
    found: list[tuple[str, str]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


@pytest.mark.parametrize("block", blocks("console"), ids=lambda b: b.name)
def test_console_runs(block: Block, request: pytest.FixtureRequest) -> None:
    for command, expected in sessions(block):
        first = command.split()[0]
        if first == "make":  # CI is inside of one; that the target exists is what can be checked here
            subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)
        elif first in ("pip", "git", "pre-commit"):
            continue
        else:
            folder = request.getfixturevalue("playground")
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
            environment = {**os.environ, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
            run = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
                                 timeout=280)
            wanted = 1 if expected.startswith("SUSPICIOUS") else 0
            assert run.returncode == wanted, f"{command}: exit {run.returncode}\n{run.stdout}\n{run.stderr}"
            if expected.strip():
                pattern = ".*".join(re.escape(part.strip()) for part in re.split(r"\.\.\.|…", expected.strip()))
                assert re.search(pattern, run.stdout, re.S), f"{command} printed\n{run.stdout}"


def test_there_are_snippets() -> None:
    assert len(blocks("python", "console")) >= 5
