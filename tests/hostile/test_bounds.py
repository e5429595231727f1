"""Inputs that ask for much: in a process of its own, whose memory is measured. One process for all, because a high-water
mark only rises: each bomb may lift it by little over what an ordinary scan took."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from laocoon.files.onnx_node import LARGEST_TENSOR

MOST = 700 * 2**20  # bytes over an ordinary scan; each bomb asks for 1 GiB or more
LONGEST = 30.0

WORKER = """
import json, pathlib, resource, sys, time
from typer.testing import CliRunner
from laocoon.cli.main import app
def peak():
    try:  # without pages of libraries: how many of those are mapped depends on what the machine has cached
        told = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
        return sum(sign * int(told[key].split()[0]) * 1024 for key, sign in (("VmHWM", 1), ("RssFile", -1)))
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for line in sys.stdin:
    start = time.monotonic()
    ran = CliRunner().invoke(app, json.loads(line))
    crash = "" if ran.exception is None or isinstance(ran.exception, SystemExit) else repr(ran.exception)
    print(json.dumps([ran.exit_code, ran.output, crash, peak(), time.monotonic() - start]), flush=True)
"""


@functools.cache
def zeros(count: int) -> bytes:
    """So many zero bytes, packed by DEFLATE, without ever holding them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block, parts = bytes(2**20), []
    for _ in range(count // len(block)):
        parts.append(packer.compress(block))
    return b"".join([*parts, packer.flush()])


def archive(place: Path, members: dict[str, bytes], huge: str, count: int, claim: int | None = None) -> Path:
    """A zip in which `huge` unpacks to `count` zero bytes; `claim` is the size that its header tells."""
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.writestr(huge, b"")
    data, packed = place.read_bytes(), zeros(count)
    told = struct.pack("<III", 0, len(packed), count if claim is None else claim)
    name = huge.encode()
    at = data.rindex(b"PK\x03\x04")
    local = data[at : at + 14] + told + data[at + 26 : at + 30 + len(name)]
    directory = data.index(b"PK\x01\x02")
    last = data.rindex(b"PK\x01\x02")
    entries = data[directory:last] + data[last : last + 16] + told + data[last + 28 : data.rindex(b"PK\x05\x06")]
    body = data[:at] + local + packed
    end = data[data.rindex(b"PK\x05\x06") :]
    place.write_bytes(body + entries + end[:12] + struct.pack("<II", len(entries), len(body)) + end[20:])
    return place


def graph(place: Path, *nodes: object, **constants: np.ndarray) -> Path:
    made = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place.write_bytes(model.SerializeToString())
    return place


def giant_picture() -> bytes:
    """60 million pixels, as many as are allowed, in 60 KB: a quarter of a gigabyte when decoded."""
    buffer = io.BytesIO()
    Image.new("1", (7700, 7700)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """Runs commands in one process and gives (code, output, peak memory, seconds)."""
    folder = tmp_path_factory.mktemp("worker")
    child = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             cwd=folder)

    def run(*arguments: object) -> tuple[int, str, int, float]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(list(map(str, arguments))) + "\n")
        child.stdin.flush()
        code, output, crash, peak, seconds = json.loads(child.stdout.readline())
        assert not crash, crash
        return code, output, peak, seconds

    yield run
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    child.stdout.close()
    assert child.wait(30) == 0


def tile(place: Path, times: int) -> Path:
    return graph(place, helper.make_node("Tile", ["input", "times"], ["a"]),
                 helper.make_node("GlobalAveragePool", ["a"], ["b"]), helper.make_node("Flatten", ["b"], ["scores"]),
                 times=np.array([1, 1, times, times]))


def doubling(place: Path) -> Path:
    """Sixty Concats, each of its input with itself: 2^60 channels."""
    steps = [helper.make_node("Concat", [f"x{k}"] * 2, [f"x{k + 1}"], axis=1) for k in range(60)]
    return graph(place, helper.make_node("Identity", ["input"], ["x0"]), *steps,
                 helper.make_node("GlobalAveragePool", ["x60"], ["b"]), helper.make_node("Flatten", ["b"], ["scores"]))


def constant(place: Path) -> Path:
    return graph(place, helper.make_node("ConstantOfShape", ["shape"], ["a"]),
                 helper.make_node("Add", ["input", "a"], ["b"]), helper.make_node("GlobalAveragePool", ["b"], ["c"]),
                 helper.make_node("Flatten", ["c"], ["scores"]), shape=np.array([2**16, 2**16]))


def header(place: Path, length: int) -> Path:
    place.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 1000)
    return place


def sparse(place: Path) -> Path:
    """Eight gigabytes that take no room on the disk."""
    with place.open("wb") as file:
        file.write(struct.pack("<Q", 90 * 2**20) + b'{"a"')
        file.truncate(8 * 2**30)
    return place


def rows(place: Path) -> Path:
    """An array of a gigabyte in five megabytes, honest about its size."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (55000, 8, 8, 300), }\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    return archive(place, {"labels.npy": head}, "images.npy", 2**30)


def pictures(place: Path) -> Path:
    for k in range(3):
        (place / str(k)).mkdir(parents=True, exist_ok=True)
        (place / str(k) / f"{k}.png").write_bytes(giant_picture())
    return place


def test_bombs_stay_small(worker, tmp_path, colours):
    model = colours(tmp_path / "colours.onnx")
    images = np.zeros((30, 8, 8, 3), np.uint8)
    images[np.arange(30), :, :, np.arange(30) % 3] = 200
    np.savez(tmp_path / "clean.npz", images=images, labels=np.arange(30) % 3)
    narrow = ("--methods", "weight_sanity", "--html", "none")
    code, output, ordinary, _ = worker("scan", model, "--data", tmp_path / "clean.npz", *narrow)
    assert code == 3 and "error" not in output, output
    files = {
        "archive": archive(tmp_path / "a.pt", {"a/data.pkl": b"\x80\x02}."}, "a/data/0", 2**30),
        "archive that lies": archive(tmp_path / "b.pt", {"a/x": b""}, "a/data.pkl", 2**30, 1000),
        "keras config": archive(tmp_path / "c.keras", {"metadata.json": b"{}", "model.weights.h5": b""}, "config.json",
                                2**30, 30 * 2**20),
        "header": header(tmp_path / "g.safetensors", 2**40), "sparse file": sparse(tmp_path / "h.safetensors"),
    }
    data = {"rows": rows(tmp_path / "i.npz"), "pictures": pictures(tmp_path / "j")}
    graphs = {"tile": tile(tmp_path / "d.onnx", 2**16), "doubling": doubling(tmp_path / "e.onnx"),
              "constant": constant(tmp_path / "f.onnx")}
    for name, path in files.items():
        code, output, peak, seconds = worker("scan", path, *narrow)
        assert code == 2 and output.startswith("error: "), (name, output)
        assert peak - ordinary < MOST and seconds < LONGEST, (name, peak - ordinary, seconds)
    for name, path in data.items():
        code, output, peak, seconds = worker("scan", model, "--data", path, *narrow)
        assert code in (2, 3), (name, output)
        assert peak - ordinary < MOST and seconds < LONGEST, (name, peak - ordinary, seconds)
    code, output, peak, _ = worker("scan", tile(tmp_path / "k.onnx", 560), *narrow)
    assert code == 3, output  # the benign neighbour of the graphs: large, but allowed
    assert peak - ordinary > MOST, ("the meter is deaf", peak - ordinary)
    for name, path in graphs.items():
        code, output, peak, seconds = worker("scan", path, *narrow)
        assert code == 2 and output.startswith("error: ") and "refused" in output, (name, output)
        assert peak - ordinary < 2 * LARGEST_TENSOR * 4 and seconds < LONGEST, (name, peak - ordinary, seconds)
