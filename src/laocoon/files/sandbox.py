"""Run what must be executed in a child process: no network, no other program, few files, bounded memory and time.

The parent sends a job's name and plain arguments and takes back files (ONNX, JSON), which it reads as strictly as if a
stranger had sent them; nothing is ever unpickled from the child. What confines the child is in `confine`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laocoon.core.errors import InputError, UnsafeFile
from laocoon.files.wording import printable

_BOOT = ("import sys, json; s = json.load(sys.stdin); sys.path[:] = s['path']; "
         "from laocoon.files.confine import main; main(s)")
LARGEST_REPLY = 2**20


@dataclass(frozen=True)
class Limits:
    seconds: float = 180.0
    memory: int = 12 * 2**30  # bytes of private memory
    written: int = 4 * 2**30  # bytes of files


@dataclass(frozen=True)
class Result:
    """Files that the job left in `folder` (gone after the with-block) and its plain answer."""

    folder: Path
    answer: Mapping[str, Any]


@contextmanager
def confined(job: str, arguments: Mapping[str, Any], *, what: str, readable: tuple[Path, ...] = (),
             importable: tuple[Path, ...] = (), limits: Limits | None = None) -> Iterator[Result]:
    """Run `job` ("module:function" of this package) on `arguments`; `what` names it in messages.

    The job may read `readable` and what Python needs; `importable` are folders put first on its import path.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="laocoon-") as made:
        folder = Path(made).resolve()
        path = [*(str(p.resolve()) for p in importable), *(str(Path(p or ".").resolve()) for p in sys.path)]
        settings = {"path": path, "job": job, "arguments": dict(arguments), "folder": str(folder),
                    "readable": [str(p.resolve()) for p in readable], "memory": limits.memory,
                    "written": limits.written, "seconds": limits.seconds}
        _run(settings, folder, limits, what)
        reply = folder / "reply.json"
        if not reply.is_file() or reply.is_symlink() or reply.stat().st_size > LARGEST_REPLY:
            raise InputError(f"{what} ended without an answer.", "It may need more memory than is allowed.")
        try:
            answer = json.loads(reply.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{what} gave a malformed answer.", "") from error
        if not isinstance(answer, dict):
            raise InputError(f"{what} gave a malformed answer.", "")
        if "error" in answer:
            _refuse(answer, what)
        yield Result(folder, answer)


def _refuse(answer: Mapping[str, Any], what: str) -> None:
    text = printable(answer["error"], 300)
    if answer.get("forbidden"):
        raise UnsafeFile(
            f"{what} tried something that it must not do: {text}.",
            "It may not use the network, start programs or touch other files; give it what it needs as files.",
            rule="forbidden-action",
            details=(text,),
        )
    remedy = printable(answer.get("remedy", ""), 200)
    raise InputError(
        f"{what} failed: {text.rstrip('.')}.",
        remedy or "It runs without network and within bounds of memory and time; else convert the model to ONNX.",
    )


def _run(settings: Mapping[str, Any], folder: Path, limits: Limits, what: str) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
    }
    environment.update({k: os.environ[k] for k in ("SYSTEMROOT", "LD_LIBRARY_PATH") if k in os.environ})
    child = subprocess.Popen([sys.executable, "-I", "-W", "ignore", "-c", _BOOT], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env=environment,
                             start_new_session=True)
    deadline = time.monotonic() + limits.seconds
    try:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(settings).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass
        while True:
            try:
                child.wait(0.25)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{what} did not end within {limits.seconds:.0f} s.",
                        "It was stopped; make it quicker, or convert the model to ONNX yourself.",
                    ) from None
                if _size(folder) > limits.written:
                    raise InputError(f"{what} wrote over {limits.written} bytes.", "It was stopped.") from None
    finally:
        _stop(child)
    if child.returncode and not (folder / "reply.json").exists():
        code = child.returncode
        cause = (
            signal.Signals(-code).name if code < 0 and -code in {s.value for s in signal.Signals} else f"status {code}"
        )
        raise InputError(f"{what} broke off ({cause}).",
                         f"It may use {limits.memory / 2**30:.0f} GiB of memory and {limits.seconds:.0f} s.")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started."""
    if child.poll() is None or os.name == "posix":
        try:
            if os.name == "posix":
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        except (ProcessLookupError, PermissionError):
            pass
    child.wait()


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files[:10_000]:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
