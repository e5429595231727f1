"""Clean samples that are hostile or broken, each beside a benign neighbour: the same thing, well formed."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Make = Callable[[Path, Path], Path]  # (folder, canary) -> what is passed as --data
COUNT = 30


def pictures(count: int = COUNT, side: int = 8, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise, brighter in the channel that is the label: [n, side, side, channels]."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, side, side, channels)).astype(np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return images, labels


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


# ---------------------------------------------------------------- folders
def folder(change: Callable[[Path, Path], object] | None = None, side: int = 8) -> Make:
    """A folder per class."""

    def make(root: Path, canary: Path) -> Path:
        place = root / "clean"
        for k, (image, label) in enumerate(zip(*pictures(side=side), strict=True)):
            (place / str(label)).mkdir(parents=True, exist_ok=True)
            (place / str(label) / f"{k:03}.png").write_bytes(encoded(image))
        if change is not None:
            change(place, canary)
        return place

    return make


def every(content: Callable[[bytes], bytes], named: str = "*.png") -> Callable[[Path, Path], None]:
    def change(place: Path, canary: Path) -> None:
        for path in place.rglob(named):
            path.write_bytes(content(path.read_bytes()))

    return change


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def giant(side: int) -> Callable[[bytes], bytes]:
    """A small PNG that says that it has so many pixels a side."""
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return lambda data: data[:8] + size + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def text_bomb(data: bytes) -> bytes:
    """A picture with a comment that unpacks to 64 MiB."""
    packer = zlib.compressobj(9)
    zeros = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    return data[:33] + chunk(b"zTXt", b"Comment\0\0" + zeros) + data[33:]


def links_only(place: Path, canary: Path) -> None:
    """Pictures that are links to files outside."""
    for k, path in enumerate(sorted(place.rglob("*.png"))):
        target = place.parent / f"outside{k}.png"
        path.rename(target)
        path.symlink_to(target)


def pipes(place: Path, canary: Path) -> None:
    for path in place.rglob("*.png"):
        path.unlink()
        os.mkfifo(path)


def renamed(*names: str) -> Callable[[Path, Path], None]:
    def change(place: Path, canary: Path) -> None:
        for old, new in zip(("0", "1", "2"), names, strict=False):
            (place / old).rename(place / new)

    return change


def two_named(place: Path, canary: Path) -> None:
    renamed("red", "green")(place, canary)
    shutil.rmtree(place / "2")


def emptied(place: Path, canary: Path) -> None:
    for path in place.rglob("*.png"):
        path.unlink()


def splits(place: Path, canary: Path) -> None:
    (place / "train").mkdir()
    for name in ("0", "1", "2"):
        (place / name).rename(place / "train" / name)


def looped(place: Path, canary: Path) -> None:
    (place / "3").symlink_to(place)


def one_broken(place: Path, canary: Path) -> None:
    next(iter(place.rglob("*.png"))).write_bytes(b"")


def nothing(root: Path, canary: Path) -> Path:
    (root / "clean").mkdir()
    return root / "clean"


# ---------------------------------------------------------------- arrays
def arrays(change: Callable[[dict[str, np.ndarray]], object] | None = None, *, packed: bool = False) -> Make:
    def make(root: Path, canary: Path) -> Path:
        images, labels = pictures()
        held = {"images": images, "labels": labels}
        if change is not None:
            change(held)
        (np.savez_compressed if packed else np.savez)(root / "clean.npz", **held)
        return root / "clean.npz"

    return make


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def objects(*, dangerous: bool) -> Make:
    """An array of objects, which NumPy keeps as a pickle."""

    def make(root: Path, canary: Path) -> Path:
        content = np.array([Payload(canary) if dangerous else {"a": 1}] * 3, dtype=object)
        np.savez(root / "clean.npz", images=content, labels=np.arange(3))
        return root / "clean.npz"

    return make


def claimed(shape: str, descr: str = "'|u1'", *, packed: bool = True) -> Make:
    """An array whose header says more than there is."""

    def make(root: Path, canary: Path) -> Path:
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        head = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) + 1) + text + b"\n"
        with zipfile.ZipFile(root / "clean.npz", "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
            archive.writestr("images.npy", head + bytes(10_000))
        return root / "clean.npz"

    return make


def array_bomb(root: Path, canary: Path) -> Path:
    """A header that claims a member of a terabyte in a few bytes."""
    place = arrays(packed=True)(root, canary)
    data = bytearray(place.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 0xF0000000)
    place.write_bytes(data)
    return place


def traversal(root: Path, canary: Path) -> Path:
    place = arrays()(root, canary)
    with zipfile.ZipFile(place) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"../../{name}", content)
    return place


def cut(make: Make, share: float) -> Make:
    def change(root: Path, canary: Path) -> Path:
        place = make(root, canary)
        data = place.read_bytes()
        place.write_bytes(data[: int(len(data) * share)])
        return place

    return change


def single_image(root: Path, canary: Path) -> Path:
    (root / "cat.png").write_bytes(encoded(pictures(1)[0][0]))
    return root / "cat.png"


def file_of(name: str, content: bytes) -> Make:
    def make(root: Path, canary: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return make


# ---------------------------------------------------------------- Parquet
def parquet(change: Callable[[dict[str, list[object]]], object] | None = None) -> Make:
    """The layout of Hugging Face `datasets`."""

    def make(root: Path, canary: Path) -> Path:
        images, labels = pictures()
        table = {"image": [{"bytes": encoded(i), "path": None} for i in images], "label": labels.tolist()}
        if change is not None:
            change(table)
        pq.write_table(pa.table(table), root / "clean.parquet")
        return root / "clean.parquet"

    return make


def missing(root: Path, canary: Path) -> Path:
    return root / "missing.npz"


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    code: int
    says: tuple[str, ...]
    neighbour: str
    options: tuple[str, ...] = ()


BENIGN: dict[str, tuple[Make, tuple[str, ...]]] = {
    "folder": (folder(), ()),
    "folder of large images": (folder(side=40), ()),
    "folder with one broken image": (folder(one_broken), ()),
    "folder that holds itself": (folder(looped), ()),
    "arrays": (arrays(), ()),
    "packed arrays": (arrays(packed=True), ()),
    "floats": (arrays(lambda a: a.update(images=(a["images"] / 255).astype(np.float32))), ()),
    "parquet": (parquet(), ()),
}
CASES = (
    Case("no such path", missing, 2, ("missing.npz", "does not exist", "Data is"), "arrays"),
    Case("empty file", file_of("clean.npz", b""), 2, ("clean.npz", "0 bytes", "Fetch it again"), "arrays"),
    Case("another kind", file_of("clean.csv", b"a,b\n1,2\n"), 2, ("clean.csv", "is a table", "--modality tabular"),
         "arrays"),
    Case("text named npz", file_of("clean.npz", b"not an archive"), 2, ("clean.npz", "not what its name says"), "arrays"),
    # folders
    Case("empty folder", nothing, 2, ("clean", "no images", ".png"), "folder"),
    Case("empty classes", folder(emptied), 2, ("no images", "<folder>/<class>/<image>"), "folder"),
    Case("one image", single_image, 2, ("cat.png", "one image", "folder"), "folder"),
    Case("truncated images", folder(every(lambda d: d[: len(d) // 2])), 2, (".png", "damaged or cut off"), "folder"),
    Case("large images", folder(every(giant(9000))), 2, (".png", "9000 x 9000 pixels", "At most"),
         "folder of large images"),
    Case("giant images", folder(every(giant(100_000))), 2, (".png", "10000000000 pixels", "At most"), "folder of large images"),
    Case("comments that are bombs", folder(every(text_bomb, "000.png")), 3, ("1 broken image left out", "000.png"),
         "folder with one broken image"),
    Case("texts named png", folder(every(lambda d: b"#!/bin/sh\nrm -rf /\n")), 2, (".png", "not an image", "#!/bin/s"),
         "folder"),
    Case("scripts of Ghostscript named png", folder(every(lambda d: b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n")), 2,
         (".png", "not an image"), "folder"),
    Case("empty images", folder(every(lambda d: b"")), 2, (".png", "empty", "0 bytes"), "folder"),
    Case("links out of the folder", folder(links_only), 2, ("clean", "30 links lead out"), "folder that holds itself"),
    Case("named pipes", folder(pipes), 2, ("hold no images",), "folder"),
    Case("splits instead of classes", folder(splits), 2, ("splits", "train", "Pass one of them"), "folder"),
    Case("class beyond the model's", folder(renamed("0", "1", "7")), 2, ("label 7", "3 classes"), "folder"),
    Case("classes from five", folder(), 2, ("--first-label is 5", "0, 1"), "folder", ("--first-label", "5")),
    Case("too few named classes", folder(two_named), 2, ("name 2 classes (green, red)", "the model has 3", "by the number"),
         "folder"),
    # arrays
    Case("pickled code in an array", objects(dangerous=True), 1, ("SUSPICIOUS", "clean.npz", "posix.system"), "arrays"),
    Case("objects in an array", objects(dangerous=False), 2, ("clean.npz:images", "never loaded", "plain numbers"),
         "arrays"),
    Case("fewer labels than images", arrays(lambda a: a.update(labels=a["labels"][:10])), 2,
         ("10 labels for 30 images",), "arrays"),
    Case("labels out of range", arrays(lambda a: a.update(labels=a["labels"] + 1)), 2,
         ("label 3", "3 classes, 0 to 2", "--first-label 1"), "arrays"),
    Case("negative labels", arrays(lambda a: a.update(labels=a["labels"] - 5)), 2, ("label -5",), "arrays"),
    Case("labels that are fractions", arrays(lambda a: a.update(labels=a["labels"] + 0.5)), 2,
         ("labels", "not whole numbers"), "arrays"),
    Case("pixels that are no numbers", arrays(lambda a: a.update(images=np.full((30, 8, 8, 3), np.nan, np.float32))), 2,
         ("images", "not finite"), "floats"),
    Case("complex pixels", arrays(lambda a: a.update(images=a["images"].astype(np.complex64))), 2, ("complex64",),
         "floats"),
    Case("normalised pixels", arrays(lambda a: a.update(images=a["images"] / 50.0 - 2)), 2,
         ("values from -2", "--data-range"), "floats"),
    Case("five channels", arrays(lambda a: a.update(images=np.zeros((30, 5, 8, 8), np.uint8))), 2,
         ("[30, 5, 8, 8]", "not a stack of images"), "arrays"),
    Case("no images", arrays(lambda a: a.update(images=a["images"][:0], labels=a["labels"][:0])), 2,
         ("[0, 8, 8, 3]", "no images"), "arrays"),
    Case("unknown names", arrays(lambda a: a.update(aardvark=a.pop("images"))), 2,
         ("aardvark", "--image-key"), "arrays"),
    Case("truncated arrays", cut(arrays(), 0.7), 2, ("clean.npz", "damaged or cut off"), "arrays"),
    Case("more than there is", claimed("(1000000, 1000, 1000, 3)"), 2, ("clean.npz",), "packed arrays"),
    Case("endless shape", claimed("(9223372036854775807, 8, 8, 3)"), 2, ("clean.npz", "says that it has"),
         "packed arrays"),
    Case("code in a header", claimed("__import__('os').system('touch x')"), 2, ("clean.npz", "damaged"),
         "packed arrays"),
    Case("deep header", claimed("(" * 9000), 2, ("clean.npz", "damaged"), "packed arrays"),
    Case("array bomb", array_bomb, 2, ("clean.npz", "unpacks"), "packed arrays"),
    Case("traversal in an archive", traversal, 2, ("../../images", "--image-key"), "arrays"),
    # Parquet
    Case("truncated parquet", cut(parquet(), 0.6), 2, ("clean.parquet", "damaged or cut off"), "parquet"),
    Case("no images in parquet", parquet(lambda t: t.pop("image")), 2, ("clean.parquet", "is a table", "--modality tabular"),
         "parquet"),
    Case("paths instead of images", parquet(lambda t: t.update(image=[{"bytes": None, "path": "/etc/passwd"}] * 30)), 2,
         ("clean.parquet", "only a path"), "parquet"),
    Case("broken images in parquet", parquet(lambda t: t.update(image=[{"bytes": b"junk", "path": None}] * 30)), 2,
         ("clean.parquet row", "not an image"), "parquet"),
    Case("labels out of range in parquet", parquet(lambda t: t.update(label=[9] * 30)), 2, ("label 9", "3 classes"),
         "parquet"),
    Case("missing labels in parquet", parquet(lambda t: t.update(label=[None, *t["label"][1:]])), 2,
         ("label", "1 rows without"), "parquet"),
    # readable, but nothing can be said
    Case("one sample", arrays(lambda a: a.update(images=a["images"][:1], labels=a["labels"][:1])), 3,
         ("INCONCLUSIVE", "1 labelled sample cannot show", "pass more"), "arrays"),
    Case("labels at random", arrays(lambda a: a.update(labels=np.roll(a["labels"], 1))), 3,
         ("INCONCLUSIVE", "0 of 30", "no better than chance", "numbered in another order"), "arrays"),
    Case("inverted pixels", arrays(lambda a: a.update(images=255 - a["images"], labels=a["labels"])), 3,
         ("INCONCLUSIVE", "inverted"), "arrays"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hostile(case, place, refused, colours):
    model = colours(place.inputs / "colours.onnx")
    data = case.make(place.inputs, place.canary)
    refused(model, "--data", data, *case.options, "--budget", "quick", code=case.code, says=case.says)


@pytest.mark.parametrize("name", BENIGN)
def test_benign_neighbour(name, place, admitted, colours):
    make, options = BENIGN[name]
    report = admitted(colours(place.inputs / "colours.onnx"), "--data", make(place.inputs, place.canary), *options)
    assert report["subject"]["samples"] >= COUNT - 1 and report["subject"]["accuracy"] == 1


def test_every_case_has_its_neighbour():
    assert len(CASES) >= 18 and len({c.name for c in CASES}) == len(CASES)
    assert {c.neighbour for c in CASES} == set(BENIGN)


def test_the_payload_works_where_nobody_guards(place):
    np.load(objects(dangerous=True)(place.inputs, place.canary), allow_pickle=True)["images"]
    assert place.canary.exists()
    assert pickle.dumps(Payload(place.canary))
