"""A scikit-learn estimator from a skops archive: JSON and arrays, no pickle, and only classes of three libraries.

skops lists every type of an archive that it does not know to be harmless. Here only classes of scikit-learn, NumPy and
SciPy pass; a function (a tokenizer of the author's own, a FunctionTransformer's) is code and is refused.
"""

from __future__ import annotations

import importlib
import inspect
import zipfile
from pathlib import Path
from typing import Any

from laocoon.core.errors import BrokenFile, MissingExtra, UnsafeFile
from laocoon.files.wording import first_line, printable

SCHEMA = "schema.json"
LIBRARIES = ("sklearn", "numpy", "scipy")
_FAILURES = (ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, OSError, RuntimeError,
             zipfile.BadZipFile, RecursionError, AssertionError, NotImplementedError, EOFError)


def read(path: Path) -> Any:
    """The estimator. Raises UnsafeFile where the archive names code, BrokenFile where it cannot be read."""
    try:
        from skops import io
        from skops.io.exceptions import UnsupportedTypeException
    except ImportError as error:
        raise MissingExtra("a skops archive needs skops.", "pip install 'laocoon[skops]'") from error
    try:
        unknown = io.get_untrusted_types(file=path)
    except (*_FAILURES, UnsupportedTypeException) as error:
        raise BrokenFile(f"{path.name} cannot be read as a skops archive ({first_line(error, 120)}).",
                         "Save it again with skops.io.dump.") from error
    foreign = sorted(name for name in unknown if not _harmless(name))
    if foreign:
        raise UnsafeFile(f"{path.name} would import {printable(', '.join(foreign[:3]), 200)}, which is no class of "
                         "scikit-learn, NumPy or SciPy.", "Ask for a pipeline without functions of its author's own.",
                         rule="skops-types", details=tuple(printable(name, 120) for name in foreign[:32]))
    try:
        return io.load(path, trusted=unknown)
    except (*_FAILURES, UnsupportedTypeException) as error:
        raise BrokenFile(f"{path.name} cannot be loaded by skops ({first_line(error, 120)}).",
                         "Save it again, with the installed version of scikit-learn.") from error


def _harmless(name: str) -> bool:
    """A public or private class of one of the libraries, in a module of that library that defines it."""
    module, _, own = name.rpartition(".")
    if module.partition(".")[0] not in LIBRARIES or not own.isidentifier():
        return False
    try:
        found = getattr(importlib.import_module(module), own, None)
    except (ImportError, ValueError, TypeError):
        return False
    return inspect.isclass(found) and found.__module__.partition(".")[0] in LIBRARIES
