"""Where a model behind an address is, what its server says of it, and the sentence for every refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.endpoint_http import VARIABLE, Connection, Reply
from laocoon.files.protocol import ModelMetadata, ServerMetadata, TensorMetadata
from laocoon.files.wording import printable

FLOATS = ("FP16", "FP32", "FP64")
WHOLE = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")
_PLACE = re.compile(r"(?P<base>.*)/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?/?")


def is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Place:
    """Where a model is."""

    base: str  # of the server, without /v2
    name: str
    version: str = ""

    @property
    def path(self) -> str:
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{version}"


def place_of(address: str) -> Place:
    """InputError, without repeating secrets, for what is no address of a model."""
    how = "Write it as http://HOST:PORT/v2/models/NAME."
    if len(address) > 2000 or any(not c.isprintable() or c.isspace() for c in address):
        raise InputError("the address of the model holds blanks or control characters, or is very long.", how)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise InputError("the address of the model has no valid port.", how) from None
    if parts.username is not None or parts.password is not None:
        raise InputError("the address of the model holds a name or a password.",
                         f"Put the key into the environment variable {VARIABLE}.")
    if parts.query or parts.fragment:
        raise InputError("the address of the model holds a query or a fragment.",
                         f"Leave them out; a key goes into {VARIABLE}.")
    if not parts.hostname:
        raise InputError(f"the address {printable(address, 80)} names no host.", how)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    server = f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
    found = _PLACE.fullmatch(parts.path)
    if found is None:
        return Place(server + parts.path.rstrip("/").removesuffix("/v2/models").removesuffix("/v2"), "")
    return Place(server + found["base"], unquote(found["name"]), unquote(found["version"] or ""))


def metadata(place: Place, connection: Connection) -> ModelMetadata:
    """Of a model with one input of numbers; InputError, naming the models that are there, where there is none."""
    if not place.name:
        raise InputError(f"the address {printable(place.base, 80)} names no model.",
                         f"Write it as {printable(place.base, 80)}/v2/models/NAME{_there(connection)}.")
    reply = connection.ask("GET", place.path, patient=True)
    if reply.status != 200:
        raise refusal(reply, place, connection)
    who = printable(place.base + place.path, 120)
    try:
        told = ModelMetadata.model_validate_json(reply.body)
    except ValueError:
        raise BrokenFile(f"{who} does not answer as the Open Inference Protocol v2 asks for.",
                         what(reply) or "Check that the address is one of such a server.") from None
    if len(told.inputs) != 1:
        raise InputError(f"the model at {who} takes {len(told.inputs)} inputs ({names(told.inputs)}).",
                         "Models with one input can be asked.")
    takes = told.inputs[0]
    if takes.datatype == "BYTES":
        raise InputError(f"the model at {who} takes texts (BYTES).",
                         "Models behind an address are asked about images and rows only; scan its file.")
    if takes.datatype not in (*FLOATS, "UINT8"):
        raise InputError(f"the model at {who} takes {printable(takes.datatype, 20)}.",
                         f"Inputs of {', '.join(FLOATS)} or UINT8 can be asked about.")
    if not 2 <= len(takes.shape) <= 4 or min(takes.shape) < -1 or 0 in takes.shape or max(takes.shape) > 65536:
        raise InputError(f"the model at {who} takes the shape {takes.shape[:8]}.",
                         "A batch of images [-1, channels, height, width] or of rows [-1, columns] can be asked about.")
    if not 1 <= len(told.outputs) <= 64:
        raise InputError(f"the model at {who} has {len(told.outputs)} outputs.", "Between 1 and 64 are examined.")
    return told


def speaks_binary(connection: Connection) -> bool:
    """Whether raw tensors may follow the JSON: a tenth of the bytes."""
    reply = connection.ask("GET", "/v2")
    try:
        return reply.status == 200 and "binary_tensor_data" in ServerMetadata.model_validate_json(reply.body).extensions
    except ValueError:
        return False


def _there(connection: Connection) -> str:
    """The models that a server lists, where it does."""
    import pydantic

    reply = connection.ask("POST", "/v2/repository/index", b"{}", {"content-type": "application/json"}, patient=False)
    try:
        found = pydantic.TypeAdapter(list[dict[str, Any]]).validate_json(reply.body) if reply.status == 200 else []
    except ValueError:
        found = []
    found_names = [printable(m["name"], 60) for m in found[:20] if isinstance(m.get("name"), str)]
    return f"; there are {', '.join(found_names)}" if found_names else ""


def refusal(reply: Reply, place: Place, connection: Connection) -> InputError:
    """The sentence for a status that is not 200."""
    who, status = printable(place.base + place.path, 120), reply.status
    if status in (401, 403):
        how = f"The key in {VARIABLE} is not accepted." if connection.keyed else f"Put a key into {VARIABLE}."
        return InputError(f"{who} asks for a key (status {status}).", how)
    if status == 404:
        return InputError(f"{who} is not there (status 404).",
                          f"Check the model's name{_there(connection) or ', which the server does not list'}.")
    if 300 <= status < 400:
        return InputError(f"{who} redirects to {printable(reply.headers.get('location', 'nowhere'), 100)}.",
                          "Redirects are not followed; give the address itself.")
    if status == 413:
        return InputError(f"{who} says that a request is too large (status 413).", "Lower --per-request.")
    if status == 429:
        return InputError(f"{who} still limits its rate (status 429) after {connection.options.retries + 1} tries.",
                          "Lower --rate.")
    said = printable(reply.body[:300].decode("utf-8", "replace"), 120)
    return InputError(f"{who} answers with status {status}{f': {said}' if said else ''}.",
                      "Ask those who run it." if status >= 500 else "Check what the server wants.")


def what(reply: Reply) -> str:
    """What an answer is instead."""
    start = reply.body[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<")):
        return "It answers with a web page: check the address."
    return "It answers with nothing." if not reply.body else ""


def fits(shape: Sequence[int], promised: Sequence[int]) -> bool:
    return len(shape) == len(promised) and all(p < 0 or s == p for s, p in
                                               zip(shape[1:], promised[1:], strict=True))


def names(tensors: Sequence[TensorMetadata]) -> str:
    return ", ".join(f"{printable(t.name, 40)!r} {printable(t.datatype, 12)} {t.shape[:6]}" for t in tensors[:8])
