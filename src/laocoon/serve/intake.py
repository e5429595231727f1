"""What is taken from a client: so many bytes, one tensor, as the model's inputs come in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from torch import Tensor

from laocoon.core.errors import InputError
from laocoon.files.protocol import Asked, read_request
from laocoon.files.wording import printable
from laocoon.serve.engine import Facts
from laocoon.serve.refusal import Refused

INPUT, LOGITS, LABEL = "input", "logits", "label"
_USUAL = 16 * 2**20  # bytes of a body, unless told otherwise: bodies in memory are so many times --concurrency


def enough(batch: int, facts: Facts) -> int:
    """Bytes that a request of so many samples may have, as JSON: not without bound, but room for one at least."""
    return 65536 + facts.takes.largest * max(1, min(batch, _USUAL // facts.takes.largest))


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], most: int) -> bytes:
    """Counted while it comes in, whatever its length was said to be."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed bodies are not taken.", "Send it as it is.")
    too_much = Refused(413, f"the body has more than {most} bytes.", "Send fewer samples, or as binary data.")
    said = headers.get("content-length", "0")
    if len(said) > 15 or not said.isdecimal() or int(said) > most:
        raise too_much
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise too_much
        parts.append(chunk)
    return b"".join(parts)


def understood(body: bytes, header: str | None, facts: Facts, most: int, *, local: bool) -> tuple[Asked, Tensor]:
    """The request and its canonical batch. `local`: the outputs are ours, so that their names are known."""
    asked = read_request(body, header, most * facts.elements)
    names = [t.name for t in asked.inputs]
    if names != [INPUT]:
        raise InputError(f"the inputs are {printable(names, 100)}.", f"Send {INPUT!r} alone.")
    tensor, takes = asked.inputs[0], facts.takes
    shape = tensor.array.shape[1:]
    if tensor.datatype not in takes.datatypes or (shape != takes.shape and (takes.shape or shape != (1,))):
        wanted = f"[{', '.join(['samples', *map(str, takes.shape)])}]"
        raise InputError(f"the input is {tensor.datatype} {list(tensor.array.shape)}.",
                         f"It must be {' or '.join(takes.datatypes)} {wanted}.")
    if not 1 <= len(tensor.array) <= most:
        raise InputError(f"the request holds {len(tensor.array)} samples.", f"Send 1 to {most}.")
    unknown = sorted({w for w, _ in asked.wishes} - {LOGITS, LABEL})
    if unknown and local:
        raise InputError(f"there is no output {printable(unknown[0], 60)!r}.", f"There are {LOGITS} and {LABEL}.")
    return asked, takes.read(tensor)
