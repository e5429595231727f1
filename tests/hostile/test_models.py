"""Models that are hostile or broken, each beside a benign neighbour: the same thing, well formed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save, save_file
from torch import nn

from laocoon.files.open import inspect
from laocoon.files.sandbox import Limits

Make = Callable[[Path, Path], Path]  # (folder, canary) -> what is scanned
FACTORY = ("--architecture", "colours:network", "--size", "8x8")


# ---------------------------------------------------------------- a network that says which colour an image has
class Colours(nn.Module):
    """The larger of the mean colours: class 0 red, 1 green, 2 blue."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
            self.head.weight.copy_(20 * torch.eye(3))
            self.mix.bias.zero_()
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(x)).mean((2, 3)))


def onnx_model(nodes: list[onnx.NodeProto] | None = None, more: dict[str, np.ndarray] | None = None,
               shape: tuple[int, ...] = (3, 8, 8), kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The colour network; `nodes` come before it and turn `input` into `x`."""
    eye = np.eye(3, dtype=np.float32)
    weights = {"mix.weight": eye.reshape(3, 3, 1, 1), "head.weight": 20 * eye, **(more or {})}
    graph = helper.make_graph(
        [*(nodes or [helper.make_node("Identity", ["input"], ["x"])]),
         helper.make_node("Conv", ["x", "mix.weight"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"]),
         helper.make_node("MatMul", ["d", "head.weight"], ["scores"])],
        "colours", [helper.make_tensor_value_info("input", kind, ["n", *shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder: Path, name: str, content: bytes | onnx.ModelProto) -> Path:
    place = folder / name
    place.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return place


def good_onnx(folder: Path, canary: Path) -> Path:
    return written(folder, "colours.onnx", onnx_model())


def onnx_named_pt(folder: Path, canary: Path) -> Path:
    return written(folder, "colours.pt", onnx_model())


def graph_with(*nodes: onnx.NodeProto, **more: np.ndarray) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        return written(folder, "graph.onnx", onnx_model(list(nodes), more))

    return make


node = helper.make_node


def external(location: Callable[[Path], str], prepare: Callable[[Path], None] | None = None) -> Make:
    """Weights in another file, as large models have them."""

    def make(folder: Path, canary: Path) -> Path:
        (folder / "model").mkdir()
        (folder / "secret.bin").write_bytes(np.eye(3, dtype=np.float32).tobytes())
        (folder / "model" / "weights.bin").write_bytes(np.eye(3, dtype=np.float32).tobytes())
        if prepare is not None:
            prepare(folder)
        model = onnx_model()
        tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location(folder))
        return written(folder / "model", "external.onnx", model)

    return make


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protobuf message, by hand: the library refuses to write what it would refuse to read."""
    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def nested(folder: Path, canary: Path) -> Path:
    """If in If in If …, a thousand times."""
    graph = field(1, field(1, b"input") + field(2, b"y") + field(4, b"Identity")) + field(2, b"g")
    for _ in range(1000):
        branch = field(1, b"then_branch") + field(6, graph) + field(20, 5)
        graph = field(1, field(1, b"yes") + field(2, b"y") + field(4, b"If") + field(5, branch)) + field(2, b"g")
    graph += field(12, field(1, b"y"))
    return written(folder, "nested.onnx", field(1, 8) + field(8, field(2, 17)) + field(7, graph))


def truncated(make: Make, share: float = 0.6) -> Make:
    def cut(folder: Path, canary: Path) -> Path:
        place = make(folder, canary)
        data = place.read_bytes()
        place.write_bytes(data[: int(len(data) * share)])
        return place

    return cut


# ---------------------------------------------------------------- pickles
class Payload:
    """Unpickling this runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def colours() -> dict[str, torch.Tensor]:
    return Colours().state_dict()


def factory_file(folder: Path) -> None:
    """The module `colours` in the folder where the command runs."""
    source = """
        import torch
        from torch import nn
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = nn.Conv2d(3, 3, 1)
                self.head = nn.Linear(3, 3)
            def forward(self, x):
                return self.head(torch.relu(self.mix(x)).mean((2, 3)))
        def network():
            return Network()
    """
    (folder.parent / "out" / "colours.py").write_text(textwrap.dedent(source))


def state_dict(name: str, *, legacy: bool = False, wrap: str = "") -> Make:
    def make(folder: Path, canary: Path) -> Path:
        factory_file(folder)
        content = {wrap: colours(), "epoch": 3} if wrap else colours()
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
        return folder / name

    return make


def whole_numbers(folder: Path, canary: Path) -> Path:
    """Weights as int8, their scales left behind."""
    factory_file(folder)
    torch.save({k: v.round().to(torch.int8) for k, v in colours().items()}, folder / "int8.pt")
    return folder / "int8.pt"


def pickled(name: str, **settings: bool) -> Make:
    """torch.save of a payload among weights."""

    def make(folder: Path, canary: Path) -> Path:
        content = {**colours(), "optimizer": Payload(canary)}
        torch.save(content, folder / name, _use_new_zipfile_serialization=not settings.get("legacy", False))
        return folder / name

    return make


def bare_pickle(folder: Path, canary: Path) -> Path:
    return written(folder, "model.pkl", pickle.dumps(Payload(canary)))


def pickle_named_onnx(folder: Path, canary: Path) -> Path:
    return written(folder, "model.onnx", pickle.dumps(Payload(canary)))


def pickle_named_safetensors(folder: Path, canary: Path) -> Path:
    return written(folder, "model.safetensors", pickle.dumps(Payload(canary)))


def assembled(folder: Path, canary: Path) -> Path:
    """builtins.exec by STACK_GLOBAL of memoised strings, so that no GLOBAL opcode names it."""
    code = f"open({str(canary)!r}, 'w').close()".encode()
    program = (b"\x80\x04\x8c\x08builtins\x94\x8c\x04exec\x94" + b"00h\x00h\x01\x93"
               + b"X" + struct.pack("<I", len(code)) + code + b"\x85R.")
    return written(folder, "assembled.pkl", program)


def cut_after_the_call(folder: Path, canary: Path) -> Path:
    """No STOP: the loader complains, but only after the command has run."""
    return written(folder, "cut.pkl", pickle.dumps(Payload(canary))[:-1])


def text_pickle(folder: Path, canary: Path) -> Path:
    return written(folder, "text.pkl", f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())


def whole_network(folder: Path, canary: Path) -> Path:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    torch.save(network, folder / "network.pt")
    return folder / "network.pt"


def old_tar(folder: Path, canary: Path) -> Path:
    """torch.save of the year 2016, which torch.load opened with plain pickle."""
    with tarfile.open(folder / "old.pth", "w") as archive:
        data = pickle.dumps(Payload(canary))
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / "old.pth"


# ---------------------------------------------------------------- archives
def with_member(make: Make, name: str, data: bytes, *, link: bool = False) -> Make:
    """The benign archive and one member more."""

    def add(folder: Path, canary: Path) -> Path:
        place = make(folder, canary)
        info = zipfile.ZipInfo(name)
        if link:
            info.create_system, info.external_attr = 3, 0o120777 << 16
        with warnings.catch_warnings(), zipfile.ZipFile(place, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(info, data)
        return place

    return add


def replaced(make: Make, ending: str, data: Callable[[Path, bytes], bytes]) -> Make:
    """The benign archive with another content of one member."""

    def change(folder: Path, canary: Path) -> Path:
        place = make(folder, canary)
        with zipfile.ZipFile(place) as archive:
            members = {i.filename: archive.read(i) for i in archive.infolist()}
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, data(canary, content) if name.endswith(ending) else content)
        return place

    return change


def bomb(folder: Path, canary: Path) -> Path:
    """64 MiB of nothing, packed a thousandfold."""
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(64 * 2**20))
    return folder / "bomb.pt"


def inner_archives(folder: Path, canary: Path) -> Path:
    """A pickle in a zip in a zip in a zip in a zip."""
    data = pickle.dumps(Payload(canary))
    for _ in range(5):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("inner.zip" if data[:2] == b"PK" else "data.pkl", data)
        data = buffer.getvalue()
    return written(folder, "matryoshka.pt", data)


def plain_zip(folder: Path, canary: Path) -> Path:
    with zipfile.ZipFile(folder / "holiday.zip", "w") as archive:
        archive.writestr("letter.txt", "dear all")
    return folder / "holiday.zip"


def encrypted(folder: Path, canary: Path) -> Path:
    place = state_dict("locked.pt")(folder, canary)
    data = bytearray(place.read_bytes())
    for at in range(len(data) - 4):
        if data[at : at + 4] == b"PK\x03\x04":
            data[at + 6] |= 1
        elif data[at : at + 4] == b"PK\x01\x02":
            data[at + 8] |= 1
    return written(folder, "locked.pt", bytes(data))


# ---------------------------------------------------------------- safetensors
def good_safetensors(folder: Path, canary: Path) -> Path:
    factory_file(folder)
    save_file(colours(), folder / "colours.safetensors")
    return folder / "colours.safetensors"


def header(change: Callable[[dict[str, dict[str, object]]], object]) -> Make:
    """Safetensors whose header was changed."""

    def make(folder: Path, canary: Path) -> Path:
        factory_file(folder)
        data = save(colours())
        length = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        raw = json.dumps(entries).encode()
        return written(folder, "header.safetensors", struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    return make


def claimed_header(length: int) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        data = save(colours())
        return written(folder, "claimed.safetensors", struct.pack("<Q", length) + data[8:])

    return make


def deep_header(folder: Path, canary: Path) -> Path:
    raw = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    return written(folder, "deep.safetensors", struct.pack("<Q", len(raw)) + raw)


def saved_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        factory_file(folder)
        state = {k: v.clone() for k, v in colours().items()}
        change(state)
        save_file(state, folder / name)
        return folder / name

    return make


def onnx_with_nan(folder: Path, canary: Path) -> Path:
    model = onnx_model()
    head = next(t for t in model.graph.initializer if t.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "head.weight"))
    return written(folder, "nan.onnx", model)


# ---------------------------------------------------------------- Keras
def layer(kind: str, name: str, **config: object) -> dict[str, object]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


KERAS_LAYERS = [
    layer("InputLayer", "input", batch_shape=[None, 8, 8, 3], dtype="float32"),
    layer("GlobalAveragePooling2D", "pool", data_format="channels_last"),
    layer("Dense", "head", units=3, activation="linear", use_bias=False),
]


def keras_config(layers: list[dict[str, object]]) -> dict[str, object]:
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "colours", "layers": layers},
            "registered_name": None}


def keras_file(layers: list[dict[str, object]], name: str = "colours.keras") -> Make:
    def make(folder: Path, canary: Path) -> Path:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            group = file.create_group("layers/dense/vars")
            group["0"] = 20 * np.eye(3, dtype=np.float32)
            file.create_group("layers/global_average_pooling2d/vars")
            file.create_group("vars")
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.5.0", "date_saved": "2024-01-01"}))
            archive.writestr("config.json", json.dumps(keras_config(layers)).replace("CANARY", str(canary)))
            archive.writestr("model.weights.h5", buffer.getvalue())
        return folder / name

    return make


def keras_h5(layers: list[dict[str, object]], change: Callable[[h5py.File], object] | None = None) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        with h5py.File(folder / "colours.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(keras_config(layers)).replace("CANARY", str(canary))
            file.attrs["keras_version"], file.attrs["backend"] = "3.5.0", "tensorflow"
            weights = file.create_group("model_weights")
            weights.attrs["layer_names"] = np.array([b"pool", b"head"])
            weights.create_group("pool").attrs["weight_names"] = np.array([], "S1")
            head = weights.create_group("head")
            head.attrs["weight_names"] = np.array([b"head/kernel"])
            head["head/kernel"] = 20 * np.eye(3, dtype=np.float32)
            if change is not None:
                change(file)
        return folder / "colours.h5"

    return make


def link_out(file: h5py.File) -> None:
    file["stolen"] = h5py.ExternalLink("/etc/hostname", "/")


CODE = {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAA CANARY", "defaults": None, "closure": None}}
LAMBDA = [*KERAS_LAYERS, layer("Lambda", "evil", function=CODE)]
OLD_LAMBDA = [*KERAS_LAYERS, {"class_name": "Lambda", "config": {
    "name": "evil", "function": ["4wEAAAAAAAAA", None, None], "function_type": "lambda"}}]
FOREIGN = [*KERAS_LAYERS, {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", "CANARY"]},
                           "registered_name": "Popen"}]
CUSTOM = [*KERAS_LAYERS, {"module": "vendor.layers", "class_name": "Dense", "config": {"name": "own"},
                          "registered_name": "vendor>Dense"}]
FUNCTION = [*KERAS_LAYERS[:-1], layer("Dense", "head", units=3, activation={
    "module": "os", "class_name": "function", "config": "system", "registered_name": "function"})]


# ---------------------------------------------------------------- TorchScript
class Reads(nn.Module):
    """Opens a file as a tensor: an operator of torch, in a script."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stolen = torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8)
        return self.head(x.mean((2, 3))) + stolen.float().sum()


def scripted(network: type[nn.Module]) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(network().eval()).save(str(folder / "script.pt"))
        return folder / "script.pt"

    return make


def foreign_operator(canary: Path, code: bytes) -> bytes:
    return code.replace(b"torch.relu(", b"ops.vendor.fetch(") if b"torch.relu(" in code else code


def exported(folder: Path, canary: Path) -> Path:
    """An archive of torch.export."""
    batch = torch.export.Dim("batch", min=1, max=512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Colours().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / "exported.pt2")
    return folder / "exported.pt2"


# ---------------------------------------------------------------- Hugging Face
HF = {"model_type": "resnet", "num_channels": 3, "embedding_size": 4, "hidden_sizes": [4], "depths": [1],
      "layer_type": "basic", "hidden_act": "relu", "image_size": 8, "id2label": {"0": "red", "1": "green", "2": "blue"},
      "label2id": {"red": 0, "green": 1, "blue": 2}}


def directory(change: Callable[[Path, Path], object] | None = None, **config: object) -> Make:
    """A directory as on the hub: config.json and model.safetensors."""

    def make(folder: Path, canary: Path) -> Path:
        from transformers import AutoConfig, AutoModelForImageClassification

        place = folder / "vendor-model"
        place.mkdir()
        told = {k: v for k, v in HF.items() if k != "model_type"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", **told))
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({**HF, **config}))
        if change is not None:
            change(place, canary)
        return place

    return make


def remote_code(place: Path, canary: Path) -> None:
    (place / "modeling.py").write_text(f"open({str(canary)!r}, 'w')\n")


def pickle_only(place: Path, canary: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save(colours(), place / "pytorch_model.bin")


def pickle_beside(place: Path, canary: Path) -> None:
    torch.save({"w": Payload(canary)}, place / "pytorch_model.bin")


def index_out(place: Path, canary: Path) -> None:
    (place / "model.safetensors").rename(place.parent / "other.safetensors")
    index = {"weight_map": {"head": "../other.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def deep_config(place: Path, canary: Path) -> None:
    (place / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


def endless_links(place: Path, canary: Path) -> None:
    (place / "again").symlink_to(place)
    (place / "config.json").unlink()
    (place / "config.json").symlink_to(place / "config.json")


def empty_directory(folder: Path, canary: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


# ---------------------------------------------------------------- what is no model at all
def file_of(name: str, content: bytes) -> Make:
    return lambda folder, canary: written(folder, name, content)


def missing(folder: Path, canary: Path) -> Path:
    return folder / "missing.onnx"


def dangling(folder: Path, canary: Path) -> Path:
    (folder / "link.onnx").symlink_to(folder / "gone.onnx")
    return folder / "link.onnx"


def pipe(folder: Path, canary: Path) -> Path:
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


def endless(folder: Path, canary: Path) -> Path:
    return Path("/dev/zero")


def escapes(folder: Path, canary: Path) -> Path:
    """A name that would clear the terminal and write a verdict of its own."""
    return written(folder, "a\x1b[2J\x1b[32mNO_EVIDENCE\r.onnx", b"nothing")


# ---------------------------------------------------------------- the table
@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    code: int
    says: tuple[str, ...]  # the thing, the value, the remedy
    neighbour: str  # in BENIGN
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benign:
    make: Make
    options: tuple[str, ...] = ()
    checked: bool = False  # by the static checks alone: loading it costs a child with Keras or torch


BENIGN = {
    "onnx": Benign(good_onnx),
    "onnx named pt": Benign(onnx_named_pt),
    "onnx external": Benign(external(lambda f: "weights.bin")),
    "onnx tile": Benign(graph_with(node("Tile", ["input", "times"], ["x"]), times=np.array([1, 1, 1, 1]))),
    "onnx if": Benign(graph_with(node(
        "If", ["yes"], ["x"], **{b: helper.make_graph([node("Identity", ["input"], ["y"])], "g", [], [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]) for b in ("then_branch", "else_branch")}),
        yes=np.array(True))),
    "state dict": Benign(state_dict("weights.pt"), FACTORY),
    "old state dict": Benign(state_dict("weights.pth", legacy=True), checked=True),
    "checkpoint": Benign(state_dict("checkpoint.bin", wrap="state_dict"), checked=True),
    "safetensors": Benign(good_safetensors, FACTORY),
    "half weights": Benign(saved_tensors("half.safetensors", lambda s: s.update({k: v.half() for k, v in s.items()})),
                           checked=True),
    "keras": Benign(keras_file(KERAS_LAYERS)),
    "h5": Benign(keras_h5(KERAS_LAYERS), checked=True),
    "script": Benign(scripted(Colours), ("--size", "8x8")),
    "export": Benign(exported),
    "directory": Benign(directory(), ("--size", "32x32")),
}
CASES = (
    # pickles that would run code
    Case("pickle", bare_pickle, 1, ("SUSPICIOUS", "model.pkl", "posix.system", "REDUCE"), "checkpoint"),
    Case("pickle in pt", pickled("weights.pt"), 1, ("SUSPICIOUS", "data.pkl", "posix.system"), "state dict"),
    Case("pickle in bin", pickled("pytorch_model.bin", legacy=True), 1, ("SUSPICIOUS", "posix.system"), "checkpoint"),
    Case("pickle in pth", pickled("old.pth", legacy=True), 1, ("SUSPICIOUS", "posix.system"), "old state dict"),
    Case("pickle named onnx", pickle_named_onnx, 1, ("SUSPICIOUS", "model.onnx", "posix.system"), "onnx named pt"),
    Case("pickle named safetensors", pickle_named_safetensors, 1, ("SUSPICIOUS", "posix.system"), "safetensors"),
    Case("assembled pickle", assembled, 1, ("SUSPICIOUS", "builtins.exec", "STACK_GLOBAL"), "checkpoint"),
    Case("pickle without an end", cut_after_the_call, 1, ("SUSPICIOUS", "posix.system"), "checkpoint"),
    Case("text pickle", text_pickle, 1, ("SUSPICIOUS", "os.system"), "checkpoint"),
    Case("whole network", whole_network, 1, ("SUSPICIOUS", "torch.nn", "data.pkl"), "state dict"),
    Case("int8 without scales", whole_numbers, 2, ("mix.weight of int8", "without a scale", "dequantise"), "state dict",
         FACTORY),
    Case("tar", old_tar, 2, ("old.pth", "tar archive", "Unpack"), "old state dict"),
    # archives
    Case("traversal in pt", with_member(state_dict("w.pt"), "../../evil.py", b"x"), 1, ("../../evil.py",),
         "state dict"),
    Case("absolute in pt", with_member(state_dict("w.pt"), "/etc/cron.d/evil", b"x"), 1, ("/etc/cron.d/evil",),
         "state dict"),
    Case("traversal in keras", with_member(keras_file(KERAS_LAYERS), "a/../../evil", b"x"), 1, ("a/../../evil",),
         "keras"),
    Case("link in pt", with_member(state_dict("w.pt"), "weights/data/9", b"/etc/passwd", link=True), 1,
         ("weights/data/9",), "state dict"),
    Case("member twice", with_member(state_dict("w.pt"), "w/data.pkl", pickle.dumps({})), 1, ("w/data.pkl", "same name"),
         "state dict"),
    Case("zip bomb", bomb, 2, ("bomb.pt", "67108", "zip bomb", "Do not unpack"), "state dict"),
    Case("archives in archives", inner_archives, 2, ("inner.zip", "too deep"), "state dict"),
    Case("encrypted", encrypted, 2, ("locked.pt", "encrypted"), "state dict"),
    Case("zip of something else", plain_zip, 2, ("holiday.zip", "Known:"), "state dict"),
    # truncated
    Case("truncated onnx", truncated(good_onnx), 2, ("colours.onnx", "ONNX"), "onnx"),
    Case("truncated safetensors", truncated(good_safetensors, 0.9), 2, ("colours.safetensors", "truncated"),
         "safetensors", FACTORY),
    Case("truncated pt", truncated(state_dict("w.pt")), 2, ("w.pt", "not a complete zip"), "state dict", FACTORY),
    Case("truncated old pt", truncated(state_dict("w.pth", legacy=True), 0.95), 2, ("w.pth", "truncated"),
         "old state dict", FACTORY),
    Case("truncated keras", truncated(keras_file(KERAS_LAYERS)), 2, ("colours.keras", "not a complete zip"), "keras"),
    Case("truncated h5", truncated(keras_h5(KERAS_LAYERS), 0.4), 2, ("colours.h5", "not a complete HDF5", "fetch it again"), "h5"),
    # headers that lie
    Case("huge header", claimed_header(2**62), 2, ("claimed.safetensors", str(2**62), "At most"), "safetensors"),
    Case("header beyond the end", claimed_header(5000), 2, ("claimed.safetensors", "5000", "truncated"), "safetensors"),
    Case("deep header", deep_header, 2, ("deep.safetensors", "JSON"), "safetensors", FACTORY),
    Case("overlapping tensors", header(lambda e: e["head.weight"].update(data_offsets=e["mix.weight"]["data_offsets"])),
         2, ("header.safetensors", "mix.weight", "bytes of another"), "safetensors", FACTORY),
    Case("shape beyond its bytes", header(lambda e: e["head.weight"].update(shape=[3, 2**40])), 2,
         ("head.weight", str(2**40)), "safetensors", FACTORY),
    Case("unknown type", header(lambda e: e["head.weight"].update(dtype="F99")), 2, ("head.weight", "malformed"),
         "half weights", FACTORY),
    # ONNX
    Case("external traversal", external(lambda f: "../secret.bin"), 1, ("external.onnx", "../secret.bin"),
         "onnx external"),
    Case("external absolute", external(lambda f: str(f / "secret.bin")), 1, ("external.onnx", "secret.bin"),
         "onnx external"),
    Case("external link", external(lambda f: "way.bin", lambda f: (f / "model" / "way.bin").symlink_to("../secret.bin")),
         1, ("external.onnx", "way.bin"), "onnx external"),
    Case("external missing", external(lambda f: "gone.bin"), 2, ("gone.bin", "missing"), "onnx external"),
    Case("cycle", graph_with(node("Add", ["input", "y"], ["x"]), node("Relu", ["x"], ["y"])), 2,
         ("graph.onnx", "sorted", "Export"), "onnx"),
    Case("unknown operator", graph_with(node("Teleport", ["input"], ["x"])), 2, ("graph.onnx", "Teleport"), "onnx"),
    Case("foreign operator", graph_with(node("Relu", ["input"], ["x"], domain="com.vendor")), 2,
         ("graph.onnx", "com.vendor"), "onnx"),
    Case("tensor of a terabyte", graph_with(node("Tile", ["input", "times"], ["x"]),
                                            times=np.array([1, 1, 2**16, 2**16])), 2, ("524288", "refused"),
         "onnx tile"),
    Case("constant of a terabyte", graph_with(node("ConstantOfShape", ["much"], ["y"]), node("Add", ["input", "y"], ["x"]),
                                              much=np.array([2**20, 2**20])), 2, ("1048576", "refused"), "onnx tile"),
    Case("nested branches", nested, 2, ("nested.onnx", "not a complete ONNX"), "onnx if"),
    Case("integer input", lambda f, c: written(f, "words.onnx", onnx_model(
        [node("Cast", ["input"], ["x"], to=1)], kind=TensorProto.INT64)), 2, ("words.onnx", "INT64"), "onnx"),
    Case("not finite", onnx_with_nan, 2, ("head.weight", "9", "not finite"), "onnx"),
    # Keras
    Case("Lambda in keras", keras_file(LAMBDA), 1, ("SUSPICIOUS", "Lambda"), "keras"),
    Case("Lambda in h5", keras_h5(OLD_LAMBDA), 1, ("SUSPICIOUS", "Lambda"), "h5"),
    Case("foreign class in keras", keras_file(FOREIGN), 1, ("SUSPICIOUS", "subprocess.Popen"), "keras"),
    Case("custom class in keras", keras_file(CUSTOM), 1, ("SUSPICIOUS", "vendor"), "keras"),
    Case("function in keras", keras_file(FUNCTION), 1, ("SUSPICIOUS", "os.function"), "keras"),
    Case("pickle in keras", with_member(keras_file(KERAS_LAYERS), "assets/x.pkl", b"cos\nsystem\n(S'id'\ntR."), 1,
         ("SUSPICIOUS", "assets/x.pkl"), "keras"),
    Case("link out of h5", keras_h5(KERAS_LAYERS, link_out), 1, ("SUSPICIOUS", "stolen", "/etc/hostname"), "h5"),
    # TorchScript
    Case("script reads a file", scripted(Reads), 1, ("SUSPICIOUS", "from_file"), "script"),
    Case("script calls a library", replaced(scripted(Colours), ".py", foreign_operator), 1,
         ("SUSPICIOUS", "ops.vendor.fetch"), "script"),
    Case("pickle in a script", replaced(scripted(Colours), "data.pkl", lambda c, d: pickle.dumps(Payload(c))), 1,
         ("SUSPICIOUS", "posix.system"), "script"),
    # torch.export
    Case("traversal in an export", with_member(exported, "../../evil", b"x"), 1, ("SUSPICIOUS", "../../evil"), "export"),
    Case("pickle in an export", with_member(exported, "exported/data/evil.pkl", b"cos\nsystem\n(S'id'\ntR."), 1,
         ("SUSPICIOUS", "os.system"), "export"),
    Case("truncated export", truncated(exported), 2, ("exported.pt2", "not a complete zip"), "export"),
    # directories
    Case("remote code", directory(remote_code, auto_map={"AutoModel": "modeling.Evil"}), 1,
         ("SUSPICIOUS", "config.json", "modeling.Evil"), "directory"),
    Case("pickled weights only", directory(pickle_only), 2, ("pytorch_model.bin", "convert"), "directory"),
    Case("pickle beside", directory(pickle_beside), 1, ("SUSPICIOUS", "posix.system"), "directory"),
    Case("index out of the folder", directory(index_out), 2, ("../other.safetensors",), "directory"),
    Case("deep config", directory(deep_config), 2, ("config.json", "JSON"), "directory"),
    Case("endless links", directory(endless_links), 2, ("vendor-model", "config.json"), "directory"),
    Case("unknown kind of model", directory(model_type="sorcerer"), 2, ("vendor-model", "sorcerer"), "directory"),
    Case("weights of another shape", directory(hidden_sizes=[6]), 2, ("vendor-model", "of another shape", "matching config.json"), "directory"),
    Case("empty directory", empty_directory, 2, ("nothing", "config.json"), "directory"),
    # weights and what they belong to
    Case("no architecture", good_safetensors, 2, ("colours.safetensors", "timm:"), "safetensors"),
    Case("unknown architecture", good_safetensors, 2, ("resnt18", "Near: "), "safetensors",
         ("--architecture", "timm:resnt18")),
    Case("wrong architecture", good_safetensors, 2, ("colours.safetensors", "missing"), "safetensors",
         ("--architecture", "timm:resnet18")),
    # no models
    Case("no such path", missing, 2, ("missing.onnx", "does not exist", "Check the path"), "onnx"),
    Case("link to nothing", dangling, 2, ("link.onnx", "link to nothing"), "onnx"),
    Case("named pipe", pipe, 2, ("pipe.onnx", "named pipe"), "onnx"),
    Case("endless device", endless, 2, ("/dev/zero", "device"), "onnx"),
    Case("empty file", file_of("empty.onnx", b""), 2, ("empty.onnx", "empty"), "onnx"),
    Case("random bytes", file_of("noise.onnx", bytes(range(1, 255)) * 20), 2, ("noise.onnx", "Known:"), "onnx"),
    Case("picture", file_of("cat.onnx", b"\x89PNG\r\n\x1a\n" + bytes(100)), 2, ("cat.onnx", "a picture"), "onnx"),
    Case("program", file_of("model.onnx", b"\x7fELF" + bytes(100)), 2, ("model.onnx", "a program"), "onnx"),
    Case("escapes in the name", escapes, 2, ("NO_EVIDENCE", "Known:"), "onnx"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hostile(case, place, refused):
    refused(case.make(place.inputs, place.canary), *case.options, code=case.code, says=case.says)


@pytest.mark.parametrize("name", BENIGN)
def test_benign_neighbour(name, place, admitted):
    benign = BENIGN[name]
    if name == "export":
        pytest.importorskip("onnxscript")  # the exporter of torch needs it
    path = benign.make(place.inputs, place.canary)
    assert not [f for f in inspect(path) if f.conclusive]
    if not benign.checked:
        assert admitted(path, *benign.options)["verdict"] == "INCONCLUSIVE"


def test_every_case_has_its_neighbour():
    assert len(CASES) >= 40 and len({c.name for c in CASES}) == len(CASES)
    assert {c.neighbour for c in CASES} == set(BENIGN)
    assert sum(c.code == 1 for c in CASES) >= 20


@pytest.mark.parametrize("make", [bare_pickle, assembled, text_pickle], ids=lambda m: m.__name__)
def test_the_payloads_work_where_nobody_guards(make, place):
    pickle.loads(make(place.inputs, place.canary).read_bytes())
    assert place.canary.exists()


def test_the_watch_sees_what_is_done(place, laocoon, monkeypatch):
    """The judge of all cases above must itself be able to fail."""
    model = good_onnx(place.inputs, place.canary)
    import laocoon.files.open as opener

    true = opener.recognise
    for deed, told in (
        (lambda p: (place.root / "home" / "x").write_text(""), "opened"),
        (lambda p: place.canary.symlink_to("/"), "changed|payload"),
        (lambda p: os.system("true"), "os.system"),
        (lambda p: 1 / 0, "crashed"),
    ):
        monkeypatch.setattr(opener, "recognise", lambda p, deed=deed: (deed(p), true(p))[1])
        with pytest.raises(AssertionError, match=told):
            laocoon("scan", model)


# ---------------------------------------------------------------- a factory of the user's, in its child
DEEDS = {
    "connects": "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
    "writes": "open({canary!r}, 'w').write('x')",
    "starts a program": "import subprocess; subprocess.run(['touch', {canary!r}])",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_factory_that_does_what_it_must_not(deed, place, refused):
    weights = good_safetensors(place.inputs, place.canary)
    code = DEEDS[deed].format(canary=str(place.canary))
    (place.out / "vendor.py").write_text(f"def network():\n    {code}\n")
    refused(weights, "--architecture", "vendor:network", "--size", "8x8", code=1,
            says=("SUSPICIOUS", "vendor:network", "must not do"))


@pytest.mark.parametrize(("code", "says"), [
    ("while True: pass", ("vendor:network", "did not end within", "stopped")),
    ("x = bytearray(16 << 30)", ("vendor:network", "MemoryError.", "bounds of memory")),
    ("import os; os._exit(7)", ("vendor:network", "status 7")),
    ("return 3", ("vendor:network", "int", "torch module")),
    ("raise ValueError('\\x1b[2Jx' * 9)", ("vendor:network", "ValueError")),
], ids=["endless", "memory", "exits", "no network", "raises"])
def test_factory_that_fails(code, says, place, refused, monkeypatch):
    weights = good_safetensors(place.inputs, place.canary)
    (place.out / "vendor.py").write_text(f"def network():\n    {code}\n")
    monkeypatch.setattr("laocoon.files.architecture.Limits", lambda: Limits(seconds=6 if "while" in code else 60))
    refused(weights, "--architecture", "vendor:network", "--size", "8x8", says=says)
