"""The configuration of a Keras file against an allow-list of layers, without Keras.

Keras builds whatever its JSON names; `safe_mode` has been bypassed and did not cover .h5. Here a model is refused
unless every class in it is a known layer, initialiser or the like from Keras itself, and an HDF5 file unless all its
data is inside. HDF5 is parsed in the child only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laocoon.core.errors import BrokenFile
from laocoon.files.wording import first_line

LARGEST_CONFIG = 64 * 2**20
LAYERS = frozenset(
    """
InputLayer Dense Activation Embedding Masking EinsumDense Identity Conv1D Conv2D Conv3D SeparableConv1D SeparableConv2D
DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose Conv3DTranspose Convolution2D MaxPooling1D MaxPooling2D
MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling3D BatchNormalization
BatchNormalizationV1 LayerNormalization UnitNormalization GroupNormalization RMSNormalization SpectralNormalization
Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise AlphaDropout
ActivityRegularization Attention MultiHeadAttention AdditiveAttention GroupQueryAttention
Reshape Flatten Cropping1D
Cropping2D Cropping3D Permute RepeatVector UpSampling1D UpSampling2D UpSampling3D
ZeroPadding1D ZeroPadding2D ZeroPadding3D
Concatenate Average Maximum Minimum Add Subtract Multiply Dot ReLU LeakyReLU PReLU ELU Softmax Rescaling Resizing
CenterCrop Normalization RandomFlip RandomRotation RandomZoom RandomTranslation RandomContrast RandomBrightness
RandomCrop
Sequential Functional Model
""".split()
)
_VALUES = ("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies", "keras.optimizers",
           "keras.losses", "keras.metrics")
# Layers of Keras's own published networks, where they are: they have no other home.
_APPLICATIONS = {"keras.src.applications.convnext": ("LayerScale", "StochasticDepth"),
                 "keras.applications.convnext": ("LayerScale", "StochasticDepth")}
_OPERATIONS = ("keras.src.ops.numpy", "keras.src.ops.nn")
_MODULES = (
    "keras.layers",
    "keras.src.layers",
    "keras.models",
    "keras.src.models",
    "keras",
    "keras.engine",
    "tensorflow.keras.layers",
    "tf_keras.layers",
    "tf_keras.src.engine",
    "keras.src.engine",
    "keras.initializers",
)
_INERT = frozenset({"__keras_tensor__", "__tuple__", "__tensor__", "__numpy__", "DTypePolicy", "Policy", "TensorShape"})


def refused(config: Any) -> list[str]:
    """Everything that a configuration names and that is not on the allow-list."""
    found: list[str] = []
    queue: list[tuple[Any, bool]] = [(config, False)]
    for _ in range(2_000_000):
        if not queue:
            return list(dict.fromkeys(found))
        value, inside = queue.pop()
        if isinstance(value, list):
            queue.extend((v, inside) for v in value)
        elif isinstance(value, dict):
            name = value.get("class_name")
            if isinstance(name, str) and ("config" in value or "module" in value):
                found.extend(_judge(name, value, inside))
                inside = True
            if "function_type" in value or "__lambda__" in (name, value.get("registered_name")):
                found.append("a function stored as code")
            skipped = ("compile_config", "build_config", "training_config")
            queue.extend((v, inside) for k, v in value.items() if k not in skipped)
    return ["more parts than are read"]


def _judge(name: str, value: Mapping[str, Any], inside: bool) -> list[str]:
    module = value.get("module")
    registered = value.get("registered_name")
    where = f"{module}.{name}" if isinstance(module, str) else name
    if registered not in (None, "", name) and not (isinstance(registered, str) and registered.startswith("keras")):
        return [f"{where} (custom object {str(registered)[:60]})"]
    if name in _INERT:
        return []
    if module is None:
        known = name in LAYERS or (inside and name.isidentifier() and name not in ("Lambda", "function"))
        return [] if known and name != "Lambda" and "Lambda" not in name else [where]
    if not isinstance(module, str):
        return [where]
    if module in _VALUES or module.startswith(tuple(f"keras.src.{m.split('.')[1]}" for m in _VALUES)):
        return [] if name.isidentifier() and name != "function" else [where]
    if module in _OPERATIONS:
        return [] if name.isidentifier() else [where]
    if name in _APPLICATIONS.get(module, ()):
        return []
    if name in LAYERS and (module in _MODULES or module.startswith(("keras.src.layers.", "keras.src.models."))):
        return []
    return [where]


def read_h5(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """In the child: the configuration of an HDF5 model, and anything in the file that lies outside of it."""
    import h5py

    outside: list[str] = []
    seen = 0
    try:
        opened = h5py.File(arguments["path"], "r")
    except OSError as error:
        if error.errno is not None:  # of the system, not of the library
            raise
        raise BrokenFile(f"{Path(arguments['path']).name} is not a complete HDF5 file ({first_line(error, 120)}).",
                         "It is truncated or damaged: fetch it again.") from error
    with opened as file:
        queue = [file["/"]]
        visited = set()
        while queue and seen < 200_000:
            group = queue.pop()
            if group.id.__hash__() in visited:
                continue
            visited.add(group.id.__hash__())
            for name in group:
                seen += 1
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    outside.append(f"link {name} to {link.filename}")
                    continue
                if isinstance(link, h5py.SoftLink):
                    outside.append(f"link {name} to {link.path}")
                    continue
                item = group[name]
                if isinstance(item, h5py.Group):
                    queue.append(item)
                elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                    outside.append(f"data set {name} in another file")
        config = file.attrs.get("model_config")
    if isinstance(config, bytes):
        config = config.decode("utf-8", "replace")
    if config is not None and len(config) > LARGEST_CONFIG:
        config = None
    (folder / "config.json").write_text(config or "null", "utf-8")
    return {"outside": [o[:200] for o in outside[:32]], "config": config is not None}


def parsed(text: str | bytes) -> Any:
    return json.loads(text)
