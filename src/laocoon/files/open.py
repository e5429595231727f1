"""Open a model that somebody else made: recognise it by content, check it without loading, then load it safely."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

from laocoon.core.errors import BrokenFile, InputError, UnsafeFile
from laocoon.core.report import Finding
from laocoon.core.subject import Provenance, Subject
from laocoon.files import (
    archives,
    beyond_images,
    huggingface,
    keras,
    pickles,
    safetensors,
    table_models,
    torchscript,
    trained,
)
from laocoon.files import onnx as onnx_files
from laocoon.files.architecture import converted, open_weights, plain
from laocoon.files.danger import Danger
from laocoon.files.endpoint import open_endpoint
from laocoon.files.endpoint_metadata import is_address
from laocoon.files.endpoint_options import EndpointOptions
from laocoon.files.hub import fetch, is_hub_id
from laocoon.files.sandbox import confined
from laocoon.files.wording import printable
from laocoon.modalities.image import adapt
from laocoon.modalities.raw import ModelOptions, RawModel

LARGEST_FILE = 64 * 2**30
_SUFFIXES = {
    ".onnx": ("onnx",),
    ".safetensors": ("safetensors",),
    ".keras": ("keras",),
    ".h5": ("h5",),
    ".hdf5": ("h5",),
    ".pt2": ("torch.export",),
    ".pt": ("torchscript", "state dict", "pickle", "torch.export"),
    ".pth": ("torchscript", "state dict", "pickle"),
    ".bin": ("state dict", "pickle"),
    ".ckpt": ("state dict", "pickle"),
    ".pkl": ("pickle", "state dict"),
    ".npz": ("npz",),
    ".jit": ("torchscript",),
    ".skops": ("skops",),
    ".ubj": ("xgboost",),
}
_NOT_MODELS = (
    (b"\x7fELF", "a program for Linux"),
    (b"MZ", "a program for Windows"),
    (b"GGUF", "a GGUF language model"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"PAR1", "a Parquet table"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"#!", "a script"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF document"),
)
FORMATS = (
    "ONNX, safetensors or a state dict (with an architecture), a Hugging Face directory, a torch.export archive, "
    "TorchScript, Keras, a LoRA adapter, skops, XGBoost (JSON, UBJSON), LightGBM (text)"
)


def load_model(path: str | Path, *, architecture: str | None = None, options: ModelOptions | None = None,
               asking: EndpointOptions | None = None) -> Subject:
    """The model in a file or directory (or a hub id) as a Subject: canonical inputs in, logits out.

    An address (http://HOST/v2/models/NAME) is a model that can only be asked; `asking` says how, and how much.
    Raises UnsafeFile where loading would run code or leave the folder, BrokenFile and InputError otherwise.
    """
    options = options or ModelOptions()
    if is_address(os.fspath(path)):
        return open_endpoint(os.fspath(path), options, asking or EndpointOptions())
    place = _located(path)
    kind = recognise(place)
    for danger in _dangers(place, kind):
        raise danger.error(place.name)
    notes = (_lies(place, kind),) if _lies(place, kind) else ()
    provenance = Provenance(path=place.name, format=kind, sha256=digest(place), notes=notes)
    subject = beyond_images.opened(place, kind, architecture, options, provenance, _located)
    if subject is not None:
        return subject
    raw = _open(place, kind, architecture, options)
    if table_models.takes_rows(raw, options):
        return table_models.opened(raw, options, provenance, table_models.beside(place, kind))
    return adapt(raw, options, replace(provenance, format=raw.format))


def inspect(path: str | Path) -> tuple[Finding, ...]:
    """What static checks say about a file, most suspicious first. Loads and runs nothing.

    Raises BrokenFile or InputError for what cannot be read at all.
    """
    place = _located(path)
    kind = recognise(place)
    found = _dangers(place, kind)
    if kind == "onnx":
        try:
            onnx_files.inspect(place)
        except UnsafeFile as error:
            found.append(Danger(error.rule, error.problem, error.details))
    findings = [d.finding(place.name) for d in found]
    if _lies(place, kind):
        findings.append(Finding("name-and-content-differ", place.name, 0.2, _lies(place, kind)))
    return tuple(sorted(findings, key=lambda f: -f.score))


def recognise(place: Path) -> str:
    """The format, from the content alone."""
    if place.is_dir():
        return _recognise_directory(place)
    size = place.stat().st_size
    if size == 0:
        raise BrokenFile(f"{place.name} is empty.", "Fetch it again.")
    if size > LARGEST_FILE:
        raise BrokenFile(f"{place.name} has {size} bytes.", f"At most {LARGEST_FILE} are examined.")
    with place.open("rb") as file:
        head = file.read(65536)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _recognise_archive(place)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "h5"
    for magic, what in _NOT_MODELS:
        if head.startswith(magic):
            raise InputError(f"{place.name} is {what}, not a model that can be examined.", f"Known: {FORMATS}.")
    if head[4:8] == b"TFL3":
        raise InputError(f"{place.name} is a TensorFlow Lite model.", "Convert it to ONNX (tf2onnx) first.")
    if head[257:262] == b"ustar":
        raise InputError(f"{place.name} is a tar archive.", "Unpack it and give the model inside.")
    if trees := table_models.recognised(head):
        return trees
    if safetensors.looks_like_safetensors(head):
        return "safetensors"
    if pickles.looks_like_pickle(head):
        return "pickle"
    if head[:2] in (b"x\x01", b"x^", b"x\x9c", b"x\xda"):
        raise InputError(f"{place.name} is compressed with zlib, as joblib stores its pickles.", pickles.SKOPS)
    if onnx_files.looks_like_onnx(head, size):
        return "onnx"
    raise InputError(
        f"{place.name} is not a model of a known format (it begins with {head[:8]!r}).", f"Known: {FORMATS}."
    )


def _recognise_archive(place: Path) -> str:
    with archives.opened(place, place.name) as archive:
        names = [n.replace("\\", "/") for n in archive.namelist()[: archives.MOST_MEMBERS]]
    if beyond_images.SKOPS in names:
        return "skops"
    if archives.member_ending(names, "config.json") and any(
        n.endswith((".weights.h5", "metadata.json")) for n in names
    ):
        return "keras"
    if archives.member_ending(names, "models/model.json", "serialized_exported_program.json"):
        return "torch.export"
    if archives.member_ending(names, "constants.pkl"):
        return "torchscript"
    if archives.member_ending(names, "data.pkl"):
        return "state dict"
    if names and all(n.endswith(".npy") for n in names):
        raise InputError(f"{place.name} holds NumPy arrays.", "Pass it as data, not as the model.")
    return "zip"


def _recognise_directory(place: Path) -> str:
    if (place / beyond_images.ADAPTER).is_file() and not huggingface.weights_of(place):
        return "lora"
    if (place / "config.json").is_file():
        return "huggingface"
    if (place / "saved_model.pb").exists():
        raise InputError(f"{place.name} is a TensorFlow SavedModel.", "Convert it to ONNX (tf2onnx) first.")
    raise InputError(f"the directory {place.name or place} holds no config.json.",
                     "Give a Hugging Face directory, or the model's file.")


def _located(path: str | Path) -> Path:
    """An existing regular file or directory; a hub id is fetched."""
    text = os.fspath(path)
    if "\0" in text or not text:
        raise InputError(f"{text!r} is not a path.", "Give the model's file.")
    place = Path(text)
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not place.is_symlink() and is_hub_id(text):
            return fetch(text)
        what = "is a link to nothing" if place.is_symlink() else "does not exist"
        raise InputError(f"{printable(text)} {what}.", "Check the path.") from None
    except OSError as error:
        raise InputError(f"{printable(text)} cannot be read ({error.strerror}).", "Check the path.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{printable(text)} is a {_kind_of(mode)}, not a file.", "Give a regular file or a directory.")
    if not os.access(place, os.R_OK):
        raise InputError(f"{printable(text)} may not be read by this user.", "Change its permissions.")
    return place


def _kind_of(mode: int) -> str:
    for test, name in ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"),
                       (stat.S_ISBLK, "device")):
        if test(mode):
            return name
    return "special file"


def _dangers(place: Path, kind: str) -> list[Danger]:
    """Static checks of one format. ONNX is checked while it is read."""
    if kind == "pickle":
        with place.open("rb") as file:
            return pickles.inspect_stream(file, place.name, place.stat().st_size)
    if kind in ("huggingface", "lora"):
        found = huggingface.inspect(place)
        for neighbour in sorted(place.iterdir())[:1000]:
            found.extend(_beside(neighbour))
        return found
    if kind == "h5":
        return keras.inspect(place, kind)
    if kind == "safetensors":
        safetensors.check(place)
        return []
    if kind in ("state dict", "torchscript", "torch.export", "keras", "skops", "zip"):
        found = archives.inspect_archive(place, place.name)
        if kind == "torchscript":
            found += torchscript.inspect(place)
        elif kind == "keras":
            found += keras.inspect(place, kind)
        return found
    return []


def _beside(file: Path) -> list[Danger]:
    """Pickles that lie beside the safetensors of a directory: not loaded here, but another program would."""
    if not file.is_file() or file.suffix not in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"):
        return []
    with file.open("rb") as stream:
        head = stream.read(64)
        stream.seek(0)
        if head[:4] == b"PK\x03\x04":
            return archives.inspect_archive(file, file.name) if zipfile.is_zipfile(file) else []
        return pickles.inspect_stream(stream, file.name, file.stat().st_size) if pickles.looks_like_pickle(head) else []


def _open(place: Path, kind: str, architecture: str | None, options: ModelOptions) -> RawModel:
    if kind == "onnx":
        return onnx_files.open_onnx(place, options)
    if kind == "safetensors" and architecture is None and (own := trained.picture_network(place)) is not None:
        return own
    if kind in ("safetensors", "state dict", "pickle"):
        return open_weights(place, "safetensors" if kind == "safetensors" else "state dict", architecture, options)
    if kind == "huggingface":
        return huggingface.open_directory(place, options)
    if kind in ("torchscript", "torch.export", "keras", "h5"):
        if kind in ("keras", "h5"):
            keras.need_keras()
        module = {"torchscript": "torchscript", "torch.export": "torch_export"}.get(kind, "keras")
        arguments = {"path": str(place.resolve()), "kind": kind, **plain(options)}
        with confined(f"laocoon.files.{module}:convert", arguments, what=f"converting {place.name}",
                      readable=(place.resolve(),)) as result:
            raw = converted(result.folder, place.name, options, kind)
        return replace(raw, notes=(*raw.notes, f"converted from {kind} to a graph in a process without network"))
    raise InputError(f"{place.name} is a zip archive without a model of a known format.", f"Known: {FORMATS}.")


def _lies(place: Path, kind: str) -> str:
    """A sentence where the name promises another format than the content holds."""
    expected = _SUFFIXES.get(place.suffix.lower())
    if place.is_dir() or expected is None or kind in expected:
        return ""
    return f"the name ends in {place.suffix}, the content is {kind}"


def digest(place: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a directory's files."""
    if place.is_file():
        return _digest_file(place)
    whole = hashlib.sha256()
    for file in sorted(place.rglob("*"))[:10_000]:
        if file.is_file():
            whole.update(f"{file.relative_to(place).as_posix()}\0{_digest_file(file)}\n".encode())
    return whole.hexdigest()


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
