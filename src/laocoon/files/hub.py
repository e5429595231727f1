"""A hub id (`owner/name`, optionally `@revision`): only configuration, safetensors and ONNX are fetched."""

from __future__ import annotations

import re
from pathlib import Path

from laocoon.core.errors import InputError, MissingExtra
from laocoon.files.wording import first_line

_ID = re.compile(r"^(?:hf:)?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?$")
LARGEST_DOWNLOAD = 16 * 2**30


def is_hub_id(text: str) -> bool:
    """An owner, one slash, a name that has no suffix of a model file."""
    found = _ID.match(text)
    return bool(found) and not re.search(r"\.(onnx|pt2?|pth|bin|pkl|h5|keras|safetensors|zip|npz|ckpt|json)$", text)


def fetch(text: str) -> Path:
    """The local folder of a hub id; downloads what is missing."""
    found = _ID.match(text)
    if found is None:
        raise InputError(f"{text!r} is not a hub id.", "It has the form owner/name.")
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra("a hub id needs huggingface_hub.", "pip install 'laocoon[hub]'") from error
    name, revision = found.groups()
    patterns = ["config.json", "preprocessor_config.json", "*.safetensors", "model.safetensors.index.json",
                "tokenizer.json", "vocab.txt", "adapter_config.json"]
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)
        files = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        if not any(f.endswith(".safetensors") for f in files):
            patterns = ["*.onnx", "config.json", "tokenizer.json", "vocab.txt"]
        wanted = sum(size for f, size in files.items() if f.endswith((".safetensors", ".onnx", ".json")))
        if wanted > LARGEST_DOWNLOAD:
            raise InputError(f"{name} has {wanted} bytes of weights.", f"At most {LARGEST_DOWNLOAD} are fetched.")
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"no file or folder {text!r} is here, and the hub model cannot be fetched "
                         f"({first_line(error, 120)}).", "Check the path, the name and the network.") from error
