"""Read a pickle's program without running it.

A pickle is a program for a stack machine. The walk here keeps an abstract stack (names of imported globals, strings,
unknowns), so that each call can be named with the opcode and the byte where it stands, also where the name is
assembled by STACK_GLOBAL from memoised strings. Everything outside of an allow-list of what tensors need is reported.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import IO, Any

from laocoon.core.errors import BrokenFile
from laocoon.files.danger import Danger
from laocoon.files.wording import first_line, printable

MOST_OPCODES = 3_000_000
SKOPS = "Ask for a scikit-learn model as a skops archive (skops.io.dump), which needs no pickle."
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Int", "Long", "Short", "Char", "Byte", "Bool", "QInt8", "QUInt8",
             "QInt32", "ComplexFloat", "ComplexDouble")
ALLOWED = frozenset({
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("_codecs", "encode"), ("builtins", "set"),
    ("builtins", "frozenset"), ("builtins", "complex"), ("builtins", "bytearray"), ("__builtin__", "set"),
    ("__builtin__", "complex"), ("builtins", "dict"), ("builtins", "list"), ("builtins", "int"), ("builtins", "float"),
    ("torch", "Size"), ("torch", "device"), ("torch", "Tensor"), ("torch", "storage"),
    ("torch.nn.parameter", "Parameter"), ("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage"),
    *(("torch._utils", f) for f in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
                                    "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_sparse_tensor",
                                    "_rebuild_device_tensor_from_numpy", "_rebuild_meta_tensor_no_storage")),
    ("torch._tensor", "_rebuild_from_type_v2"),
    *(("torch", f"{kind}Storage") for kind in _STORAGES), *(("torch.cuda", f"{kind}Storage") for kind in _STORAGES),
    *(("torch", d) for d in ("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64",
                             "bool", "complex64", "complex128", "quint8", "qint8", "qint32", "per_tensor_affine",
                             "per_channel_affine", "strided", "contiguous_format", "preserve_format")),
    *((m, n) for m in ("numpy.core.multiarray", "numpy._core.multiarray") for n in ("scalar", "_reconstruct")),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("argparse", "Namespace"),
    *(("numpy.dtypes", f"{k}DType") for k in ("Float16", "Float32", "Float64", "Int8", "Int16", "Int32", "Int64",
                                              "UInt8", "Bool")),
})
TORCHSCRIPT_ALLOWED = frozenset({("torch.jit._pickle", n) for n in (
    "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "build_tensor_from_id",
    "restore_type_tag")})
# Packages whose classes a pickled network names; anything else outside of the allow-list counts as code at once.
_NETWORKS = ("torch.nn.", "torchvision.models", "timm.", "transformers.models", "torch.fx", "torch.ao.nn")
_EXECUTORS = frozenset(
    {
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "builtins",
        "__builtin__",
        "commands",
        "runpy",
        "pty",
        "socket",
        "shutil",
        "webbrowser",
        "importlib",
        "ctypes",
        "pickle",
        "_pickle",
        "marshal",
        "types",
        "code",
        "codeop",
        "asyncio",
        "multiprocessing",
        "pip",
        "urllib",
        "urllib2",
        "http",
        "requests",
        "httplib",
        "tempfile",
        "operator",
        "_operator",
        "functools",
        "bdb",
        "pdb",
        "timeit",
        "cProfile",
        "profile",
        "doctest",
        "site",
        "venv",
        "ensurepip",
        "platform",
        "signal",
        "threading",
        "_thread",
        "ssl",
        "smtplib",
        "ftplib",
        "telnetlib",
        "poplib",
        "imaplib",
        "aiohttp",
        "idlelib",
        "lib2to3",
        "distutils",
        "setuptools",
        "numpy",
        "torch",
        "dill",
        "cloudpickle",
        "joblib",
        "pydoc",
        "zipimport",
        "io",
        "pathlib",
        "glob",
        "linecache",
        "inspect",
        "ast",
        "logging",
        "uuid",
        "trace",
        "nturl2path",
        "mailcap",
        "copyreg",
    }
)


@dataclass(frozen=True)
class Import:
    """A global that the pickle imports, and what it does with it."""

    module: str
    name: str
    position: int
    opcode: str

    @property
    def full(self) -> str:
        return printable(f"{self.module}.{self.name}", 80)


class _Mark:
    pass


@dataclass(frozen=True)
class Program:
    """What one pickle would do."""

    imports: tuple[Import, ...]
    calls: tuple[tuple[str, str, int], ...]  # opcode, what it calls, byte
    end: int


_CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})


def read_program(stream: IO[bytes]) -> Program:
    """Walk one pickle from the stream's position to its STOP."""
    imports: list[Import] = []
    calls: list[tuple[str, str, int]] = []
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    at, count = 0, 0
    try:
        for opcode, argument, position in pickletools.genops(stream):
            at, count = position or 0, count + 1
            if count > MOST_OPCODES:
                raise BrokenFile(f"a pickle has more than {MOST_OPCODES} opcodes.", "Files like that are refused.")
            _step(opcode, argument, at, stack, memo, imports, calls)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        if imports or calls:  # what was seen before the damage may already have run
            return Program(tuple(imports), tuple(calls), -1)
        raise BrokenFile(f"a pickle is damaged at byte {at} ({first_line(error, 80)}).",
                         "The file is truncated or malformed.") from error
    return Program(tuple(imports), tuple(calls), at + 1)


def _step(opcode: Any, argument: Any, at: int, stack: list[Any], memo: dict[int, Any], imports: list[Import],
          calls: list[tuple[str, str, int]]) -> None:
    """One opcode's effect on the abstract stack."""
    name = opcode.name
    if name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = stack[-1] if stack else None
        return
    if name == "MEMOIZE":
        memo[len(memo)] = stack[-1] if stack else None
        return
    if name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo.get(int(argument)))
        return
    if name == "DUP":
        stack.append(stack[-1] if stack else None)
        return
    taken: list[Any] = []
    for kind in reversed(opcode.stack_before):
        if kind.name == "mark":
            if stack and isinstance(stack[-1], _Mark):
                stack.pop()
        elif kind.name == "stackslice":
            while stack and not isinstance(stack[-1], _Mark):
                taken.append(stack.pop())
        elif stack:
            taken.append(stack.pop())
    taken.reverse()
    result: Any = None
    if name in ("GLOBAL", "INST"):
        module, _, attribute = str(argument).partition(" ")
        result = Import(module, attribute, at, name)
        imports.append(result)
    elif name == "STACK_GLOBAL":
        module, attribute, *_ = [*(t if isinstance(t, str) else "?" for t in taken[-2:]), "?", "?"]
        result = Import(module, attribute, at, name)
        imports.append(result)
    elif name in ("EXT1", "EXT2", "EXT4"):
        result = Import("copyreg", f"extension {argument}", at, name)
        imports.append(result)
    elif isinstance(argument, str):
        result = argument
    if name in _CALLS:
        target = result if name == "INST" else taken[0] if taken else None
        called = target.full if isinstance(target, Import) else "an object"
        if not (name == "BUILD" and called == "an object"):
            calls.append((name, called, at))
        result = taken[0] if name == "BUILD" and taken else Import(target.module, target.name, at, "instance") \
            if isinstance(target, Import) and name in ("NEWOBJ", "NEWOBJ_EX", "OBJ") else None
    for kind in opcode.stack_after:
        stack.append(_Mark() if kind.name == "mark" else result)


def dangers(program: Program, where: str, extra: frozenset[tuple[str, str]] = frozenset(), *,
            script: bool = False) -> list[Danger]:
    """What of a program is not needed to rebuild tensors. `script`: the archive is TorchScript, whose own types are
    named __torch__ and are not imported."""
    bad = [i for i in program.imports if (i.module, i.name) not in ALLOWED and (i.module, i.name) not in extra
           and not (script and i.module.startswith("__torch__"))]
    if not bad:
        return []
    code = [i for i in bad if not i.module.startswith(_NETWORKS) and (
        i.module.split(".")[0] in _EXECUTORS or "?" in (i.module, i.name) or "." in i.name
        or i.opcode.startswith("EXT"))]
    chosen = code or bad
    details = [f"{i.opcode} {i.full} at byte {i.position}" for i in chosen]
    names = {i.full for i in chosen}
    details += [f"{op} calls {called} at byte {at}" for op, called, at in program.calls if called in names]
    shown = tuple(dict.fromkeys(details))[:32]
    first = ", ".join(sorted(names)[:3])
    learned = any(i.module.startswith("sklearn.") for i in bad)
    if code:
        return [Danger("pickle-code", f"the pickle {where} would run {first} when it is loaded", shown,
                       f"Do not load this file. {SKOPS}" if learned else Danger.remedy)]
    return [
        Danger(
            "pickle-imports",
            f"the pickle {where} is not plain weights: it would import and call {first}",
            shown,
            SKOPS if learned else "Ask for the weights alone, as safetensors or as a saved state_dict().",
            0.7,
        )
    ]


def looks_like_pickle(head: bytes) -> bool:
    """A protocol header, or the start of a text pickle that can be walked."""
    if len(head) > 1 and head[0] == 0x80 and 1 < head[1] <= 5:
        return True
    if not head or head[:1] not in b"(c]}lI\x8cVSL":
        return False
    try:
        for count, _ in enumerate(pickletools.genops(io.BytesIO(head))):
            if count >= 3:
                return True
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError):
        return False
    return True


def inspect_stream(stream: IO[bytes], where: str, size: int, *, script: bool = False) -> list[Danger]:
    """All pickles that follow each other in a stream (the old format of torch.save has five, then raw data)."""
    found: list[Danger] = []
    extra = TORCHSCRIPT_ALLOWED if script else frozenset()
    for number in range(64):
        position = stream.tell()
        head = stream.read(2)
        stream.seek(position)
        if not head or (number and not looks_like_pickle(head + b"\0")):
            break
        try:
            program = read_program(stream)
        except BrokenFile:
            if number:
                break
            raise
        found.extend(dangers(program, where, extra, script=script))
        if program.end < 0 or stream.tell() >= size:
            break
    return found
