"""The Open Inference Protocol v2 over HTTP: what a request holds and how an answer is written.

Every field of the schema is checked, sizes before contents. The binary-data extension puts raw tensors behind the JSON;
`Inference-Header-Content-Length` says where the JSON ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from laocoon.core.errors import InputError
from laocoon.files.tensors import Named, from_bytes, from_json, to_bytes, to_json
from laocoon.files.wording import printable

HEADER = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)

_Message = TypeVar("_Message", bound=BaseModel)
Name = Annotated[str, Field(min_length=1, max_length=256)]
Parameter = str | int | float | bool
Parameters = Annotated[dict[str, Parameter], Field(max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class TensorHeader(_Strict):
    """A tensor of a request or of an answer."""

    name: Name
    shape: Annotated[list[int], Field(min_length=1, max_length=16)]
    datatype: Annotated[str, Field(max_length=16)]
    parameters: Parameters = {}
    data: list[Any] | None = None


class Wish(_Strict):
    """An output that the client asks for."""

    name: Name
    parameters: Parameters = {}


class InferRequest(_Strict):
    """The JSON of POST …/infer."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[TensorHeader], Field(min_length=1, max_length=16)]
    outputs: Annotated[list[Wish], Field(max_length=64)] = []


class InferResponse(_Strict):
    """The JSON of an answer."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters = {}
    outputs: Annotated[list[TensorHeader], Field(max_length=64)]


class ServerMetadata(_Strict):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Strict):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Strict):
    """GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Parameters = {}


@dataclass(frozen=True, eq=False)
class Asked:
    """A request as far as the protocol goes."""

    id: str | None
    inputs: tuple[Named, ...]
    wishes: tuple[tuple[str, bool], ...]  # outputs with whether they shall be binary; empty: all of them
    binary: bool  # where no output is named: whether all shall be binary


def read_request(body: bytes, header: str | None, most: int) -> Asked:
    """InputError for whatever is not a request of tensors of at most `most` elements."""
    head, tail = _split(body, header)
    request = _validated(InferRequest, head)
    names = [t.name for t in request.inputs]
    if len(set(names)) != len(names):
        raise InputError("two inputs have the same name.", "Give each its own.")
    binary = request.parameters.get("binary_data_output") is True
    wishes = tuple((w.name, w.parameters.get("binary_data", binary) is True) for w in request.outputs)
    if len({w[0] for w in wishes}) != len(wishes):
        raise InputError("two outputs have the same name.", "Name each once.")
    return Asked(request.id, _tensors(request.inputs, tail, most), wishes, binary)


def read_response(body: bytes, header: str | None, most: int) -> tuple[Named, ...]:
    """The outputs of another server's answer."""
    head, tail = _split(body, header)
    return _tensors(_validated(InferResponse, head).outputs, tail, most)


def _split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    if header is None:
        return body, b""
    if not (header.isascii() and header.isdecimal() and len(header) < 12 and int(header) <= len(body)):
        raise InputError(
            f"Inference-Header-Content-Length is {header[:40]!r} in a body of {len(body)} bytes.",
            "It is the number of bytes of the JSON before the tensors.",
        )
    return body[: int(header)], body[int(header) :]


def _validated(kind: type[_Message], text: bytes) -> _Message:
    try:
        return kind.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        raise InputError(
            f"the JSON is not what the protocol asks for: {printable(place, 80)}: {printable(first['msg'])}.",
            "See the Open Inference Protocol v2.",
        ) from None


def _tensors(headers: Sequence[TensorHeader], tail: bytes, most: int) -> tuple[Named, ...]:
    found: list[Named] = []
    place = 0
    for tensor in headers:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if tensor.data is None:
                raise InputError(f"the tensor {tensor.name!r} has no data.", "Give `data` or `binary_data_size`.")
            found.append(from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data, most))
            continue
        if tensor.data is not None or not isinstance(size, int) or not 0 <= size <= len(tail) - place:
            raise InputError(
                f"the tensor {tensor.name!r} has binary_data_size {size!r}, {len(tail) - place} bytes are left.",
                "Give the number of its bytes behind the JSON, and no `data`.",
            )
        found.append(from_bytes(tensor.name, tensor.datatype, tensor.shape, tail[place : place + size], most))
        place += size
    if place != len(tail):
        raise InputError(f"{len(tail) - place} bytes follow the last tensor.", "Send what is announced, no more.")
    return tuple(found)


@dataclass(frozen=True)
class Written:
    body: bytes
    headers: Mapping[str, str]


def write_request(inputs: Sequence[Named], *, binary: bool = True) -> Written:
    """For another server: everything binary, both ways, or everything JSON."""
    if not binary:
        return _written({"inputs": [_head(t, None, to_json(t)) for t in inputs]}, [])
    heads = [_head(t, to_bytes(t), None) for t in inputs]
    return _written({"inputs": heads, "parameters": {"binary_data_output": True}}, [to_bytes(t) for t in inputs])


def write_response(
    asked: Asked, name: str, version: str, outputs: Sequence[Named], parameters: Mapping[str, Parameter]
) -> Written:
    """The outputs that were wished for, in that order. InputError for one that there is not."""
    by_name = {o.name: o for o in outputs}
    wishes = asked.wishes or tuple((o.name, asked.binary) for o in outputs)
    for wish, _ in wishes:
        if wish not in by_name:
            raise InputError(f"there is no output {printable(wish, 60)!r}.", f"There are {', '.join(by_name)}.")
    heads, tails = [], []
    for wish, binary in wishes:
        raw = to_bytes(by_name[wish]) if binary else None
        heads.append(_head(by_name[wish], raw, None if binary else to_json(by_name[wish])))
        tails.append(raw or b"")
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if asked.id is not None:
        answer["id"] = asked.id
    return _written({**answer, "parameters": dict(parameters), "outputs": heads}, tails)


def _head(tensor: Named, raw: bytes | None, data: list[Any] | None) -> dict[str, Any]:
    head: dict[str, Any] = {"name": tensor.name, "shape": list(np.shape(tensor.array)), "datatype": tensor.datatype}
    if raw is not None:
        return {**head, "parameters": {"binary_data_size": len(raw)}}
    return {**head, "data": data}


def _written(message: Mapping[str, Any], tails: Sequence[bytes]) -> Written:
    head = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    if not any(tails):
        return Written(head, {"content-type": "application/json"})
    return Written(head + b"".join(tails), {"content-type": "application/octet-stream", HEADER: str(len(head))})
