"""A data set on the Hugging Face hub: its Parquet files are fetched, no script of it ever runs."""

from __future__ import annotations

from pathlib import Path

from laocoon.core.errors import InputError, MissingExtra
from laocoon.files.hub import is_hub_id
from laocoon.files.images_parquet import choose_split
from laocoon.files.images_source import DataOptions
from laocoon.files.wording import first_line, printable

CONVERTED = "refs/convert/parquet"  # the hub keeps a Parquet copy of most data sets on this branch
LARGEST_DOWNLOAD = 4 * 2**30


def is_data_id(text: str) -> bool:
    """`owner/name`, not the name of a file."""
    return is_hub_id(text) and not text.endswith((".parquet", ".npz", ".npy", ".zip", ".tar", ".gz", ".csv"))


def fetch_parquet(text: str, options: DataOptions) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Local Parquet files of one split, and notes on what was chosen."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra(
            f"{printable(text)} is not here; to fetch it from the hub needs huggingface_hub.",
            "pip install 'laocoon[hub]', or check the path.",
        ) from None
    name, _, revision = text.removeprefix("hf:").partition("@")
    failures = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError)
    try:
        for branch in (revision or None, CONVERTED):
            info = HfApi().dataset_info(name, revision=branch, files_metadata=True, timeout=20)
            files = {s.rfilename: s.size or 0 for s in info.siblings or () if s.rfilename.endswith(".parquet")}
            if files:
                break
        if not files:
            raise InputError(f"the data set {printable(name)} has no Parquet files.", "Download it, and pass a folder.")
        chosen, notes = choose_split([Path(f) for f in sorted(files)], options.split)
        size = sum(files[f.as_posix()] for f in chosen)
        if size > LARGEST_DOWNLOAD:
            raise InputError(
                f"the split of {printable(name)} has {size} bytes.",
                f"At most {LARGEST_DOWNLOAD} are fetched; choose another --split, or pass local files.",
            )
        here = tuple(Path(hf_hub_download(name, f.as_posix(), repo_type="dataset", revision=info.sha)) for f in chosen)
        return here, (*notes, f"fetched {name} at {info.sha}")
    except failures as error:
        raise InputError(
            f"no file or folder {printable(text)!r} is here, and the hub data set cannot be fetched "
            f"({first_line(error, 120)}).",
            "Check the path, the name and the network.",
        ) from error
