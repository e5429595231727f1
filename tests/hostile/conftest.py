"""What every hostile input is judged by: the exit code, one clear message, and nothing done beyond the reports.

The command runs in this process, so that hundreds of runs are cheap. An audit hook listens to what Python itself tells:
files opened for writing, connections, other programs. The tree of files around is compared before and after.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from laocoon.cli.main import app

LONGEST = 60.0  # seconds for any one input, on a busy core; a child that imports torch is most of it


@dataclass
class Watch:
    """What the process did while it was watched."""

    allowed: tuple[str, ...] = ()
    active: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = (*arguments, 0, 0)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes):
                full = os.path.realpath(os.fsdecode(path))
                if full != os.devnull and not f"{full}{os.sep}".startswith(self.allowed):  # nameless ones open the folder
                    self.seen.append(f"opened {full} for writing")
        elif event in ("socket.connect", "socket.bind", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"):
            self.seen.append(f"{event} {arguments[1:]}")
        elif event == "subprocess.Popen":
            words = list(arguments[1])
            if words[:4] != [sys.executable, "-I", "-W", "ignore"]:  # the confined child
                self.seen.append(f"started {words}")


_watch = Watch()
sys.addaudithook(_watch)


@dataclass(frozen=True)
class Ran:
    """One run of the command."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """What a person reads, in one line: the terminal breaks long ones."""
        return " ".join(f"{self.out} {self.err}".split())


@dataclass(frozen=True)
class Place:
    """Folders of one test: `inputs` to build in, `out` where the command runs, `canary` that no payload may make."""

    root: Path
    inputs: Path
    out: Path
    canary: Path

    def tree(self) -> dict[str, str]:
        """Every file outside of the output folder, and its content's digest."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_relative_to(self.out) or path.name.startswith("torchinductor_"):  # torch's own empty cache
                continue
            name = path.relative_to(self.root).as_posix()
            if path.is_symlink() or not path.is_file():
                found[name] = f"{os.readlink(path) if path.is_symlink() else 'no file'}"
            else:
                with path.open("rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path.resolve(), tmp_path / "inputs", tmp_path / "out", tmp_path / "canary")
    for folder in (made.inputs, made.out, tmp_path / "temporary", tmp_path / "home"):
        folder.mkdir()
    monkeypatch.chdir(made.out)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return made


@pytest.fixture
def laocoon(place: Place) -> Iterator[Callable[..., Ran]]:
    """Runs the command; whatever it is given, it may not crash, write elsewhere, connect or start programs."""

    def run(*arguments: str | Path) -> Ran:
        before, start = place.tree(), time.monotonic()
        _watch.allowed = (f"{place.out.resolve()}{os.sep}", f"{place.root / 'temporary'}{os.sep}")
        _watch.seen.clear()
        _watch.active = True
        try:
            result = CliRunner().invoke(app, [str(a) for a in arguments], color=True)  # escapes stay, as in a terminal
        finally:
            _watch.active = False
        ran = Ran(result.exit_code, result.stdout, result.stderr, time.monotonic() - start)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"the command crashed: {ran.text}") from result.exception
        assert "Traceback" not in ran.text
        assert not _watch.seen, f"the command did what it must not: {_watch.seen}"
        assert place.tree() == before, "files outside of the output folder changed"
        assert not place.canary.exists(), "the payload ran"
        assert ran.seconds < LONGEST
        return ran

    yield run


@pytest.fixture
def refused(laocoon: Callable[..., Ran]) -> Callable[..., Ran]:
    """Runs `scan` on an input that must not get through, and judges exit code and message."""

    def run(*arguments: str | Path, code: int = 2, says: tuple[str, ...] = ()) -> Ran:
        ran = laocoon("scan", *arguments)
        assert ran.code == code, ran.text
        if code == 2:
            problem = next((line for line in ran.err.splitlines() if line.startswith("error: ")), "")
            assert problem or "Usage:" in ran.err, ran.text
            if problem:  # what is wrong, then what to do about it
                assert len(re.findall(r"[.…\])'\"]+ +[A-Z0-9\x60p'\"-]", problem)) >= 1, f"no remedy: {problem}"
            assert not list(Path.cwd().glob("report*.html")), "a report of nothing"
        for word in says:
            assert word in ran.text, f"{word!r} is missing: {ran.text}"
        assert "\x1b" not in ran.out + ran.err, "a terminal escape got through"
        return ran

    return run


@pytest.fixture
def admitted(laocoon: Callable[..., Ran]) -> Callable[..., dict[str, Any]]:
    """Runs one cheap method on an input that must get through, and gives the report."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        ran = laocoon("scan", *arguments, "--methods", "weight_sanity", "--html", "none", "--json", "-")
        assert ran.code in (0, 3), ran.text  # one method alone is no evidence of absence: mostly 3
        report: dict[str, Any] = json.loads(ran.out)
        assert report["examined"] == ["weight_sanity"], report["skipped"]
        return report

    return run
