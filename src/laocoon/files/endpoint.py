"""A model behind an address that speaks the Open Inference Protocol v2: it can be asked, and nothing else.

    http://HOST:PORT/v2/models/NAME        or …/v2/models/NAME/versions/VERSION

Nothing that the server says is trusted: sizes, shapes, data types and numbers are checked at every answer, and an
answer of another form than the first one ends the matter. The first samples are asked about again at once and at the
end, past the memory of answers, so that a model that answers by chance, or that is exchanged meanwhile, is noticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files import table_models
from laocoon.files.endpoint_answers import Answers, Row, key_of
from laocoon.files.endpoint_http import Connection
from laocoon.files.endpoint_metadata import (
    FLOATS,
    WHOLE,
    Place,
    fits,
    metadata,
    names,
    place_of,
    refusal,
    speaks_binary,
    what,
)
from laocoon.files.endpoint_options import EndpointOptions
from laocoon.files.protocol import HEADER, ModelMetadata, read_response, write_request
from laocoon.files.tensors import DATATYPES, Array, Named
from laocoon.files.wording import printable
from laocoon.modalities.image import adapt
from laocoon.modalities.raw import ModelOptions, RawModel

FORMAT = "Open Inference Protocol v2"
MOST = 2**24  # numbers in an output
KEPT = 24  # samples of the check at the end
TWICE = 4  # of them, asked about twice at the beginning
DRIFT = 1e-3  # of the largest score: what rounding may change


class Endpoint(nn.Module):
    """The remote model as a network without weights: a batch in, its outputs by name, as numbers, out."""

    identity: Tensor

    def __init__(self, place: Place, connection: Connection, told: ModelMetadata, binary: bool,
                 options: EndpointOptions, wanted: str | int | None, classes: int | None) -> None:
        super().__init__()
        self.place, self.connection, self.binary, self.told = place, connection, binary, told
        self.takes = told.inputs[0]
        self.wanted = [o for i, o in enumerate(told.outputs) if wanted in (None, i, str(i), o.name)]
        if not self.wanted:
            raise InputError(f"the model has no output {printable(wanted, 60)!r}.",
                             f"It has {names(told.outputs)}.")
        scores = [o for o in self.wanted if o.datatype in FLOATS and (len(o.shape) > 1 and o.shape[-1] != 1)]
        self.wanted = scores or [o for o in self.wanted if o.datatype in (*FLOATS, *WHOLE)]
        if not self.wanted:
            raise InputError(f"the outputs of {printable(self.place.name, 60)!r} are no numbers "
                             f"({names(told.outputs)}).", "Only classifiers that answer with numbers are asked.")
        self.whole = not scores and self.wanted[0].datatype in WHOLE  # answers with the number of a class
        if self.whole:
            self.wanted = self.wanted[:1]
        self.classes = classes
        if self.whole and classes is None:
            raise InputError(f"the output {printable(self.wanted[0].name, 60)!r} is the number of a class; how many "
                             "classes there are, nobody says.", "Pass --classes N.")
        self.fixed = self.takes.shape[0] if self.takes.shape[0] > 0 else 0  # a server that takes so many at once
        self.per_request = self.fixed or options.per_request
        self.answers = Answers(max(1, options.queries - KEPT - 2 * TWICE))
        self.columns: list[tuple[str, tuple[int, ...]]] = []  # name and shape (of one sample) of what comes back
        self.first: list[tuple[Array, Row]] = []  # the first samples, as sent, with their answers
        self.noise = 0.0  # how much two answers to the same samples differ
        digest = hashlib.sha256(f"{place}{told.model_dump_json()}".encode()).digest()
        self.register_buffer("identity", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    def __deepcopy__(self, memo: Any) -> Endpoint:
        return self  # there is nothing here that a copy could change

    @property
    def digest(self) -> str:
        """Of the address and of what the server says of the model: of its weights nothing is known."""
        return bytes(self.identity.tolist()).hex()

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Outputs as float32, each [batch, …]; what was asked before is not asked again."""
        sent = self._sent(batch)
        keys = [key_of(row) for row in sent]
        fresh = list({k: i for i, k in reversed(list(enumerate(keys))) if self.answers.get(k) is None}.values())
        for start in range(0, len(fresh), self.per_request):
            part = sorted(fresh)[start:start + self.per_request]
            self.answers.spend(len(part))
            self.answers.add([keys[i] for i in part], self._asked(sent[part]))
        known = [r for k in keys if (r := self.answers.get(k)) is not None]
        self.first += list(zip(sent, known, strict=True))[:KEPT - len(self.first)]
        return self._split(torch.from_numpy(np.stack(known)).to(batch.device))

    def keep(self, path: Path) -> None:
        """Write answers to a file, and go on from those that it holds."""
        self.answers.keep(path, self.digest)

    def close(self) -> None:
        self.answers.close()
        self.connection.close()

    def settle(self) -> tuple[str, ...]:
        """Ask about the same samples again, twice; what is worth noting of the answers."""
        sent = np.stack([s for s, _ in self.first[:TWICE]])
        self.noise = _apart(self._past_memory(sent), self._past_memory(sent))
        if self.noise <= DRIFT:
            return ()
        return (f"the answers to the same input differ by {self.noise:.2g} of the largest score: the model is not "
                "deterministic, or there are several",)

    def changed(self) -> str:
        """A sentence where the model answers otherwise than at the beginning; empty where it does not."""
        before = np.stack([row for _, row in self.first])
        apart = _apart(before, self._past_memory(np.stack([s for s, _ in self.first])))
        if apart <= max(DRIFT, 3 * self.noise):
            return ""
        return (f"the model changed while it was asked: of {len(before)} samples some are answered otherwise than at "
                f"the beginning, by {apart:.2g} of the largest score")

    def _past_memory(self, sent: Array) -> Row:
        """Answers that are asked for again; what this costs was set aside."""
        return np.concatenate([self._asked(sent[i:i + self.per_request])
                               for i in range(0, len(sent), self.per_request)])

    def _sent(self, batch: Tensor) -> Array:
        array = batch.detach().float().cpu().numpy()
        if self.takes.datatype.startswith("UINT"):
            array = np.clip(np.rint(array), 0, 255)
        return np.ascontiguousarray(array, DATATYPES[self.takes.datatype])

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        widths = [int(np.prod(shape)) for _, shape in self.columns]
        parts = rows.split(widths, 1)
        found = {name: part.reshape(len(rows), *shape)
                 for (name, shape), part in zip(self.columns, parts, strict=True)}
        if self.whole and self.classes is not None:
            number = next(iter(found.values())).reshape(-1).long()
            return {self.columns[0][0]: nn.functional.one_hot(number, self.classes).float()}
        return found

    def _asked(self, sent: Array) -> Row:
        """One request: the wanted outputs, side by side, [samples, numbers]."""
        count = len(sent)
        if self.fixed > count:
            sent = np.concatenate([sent, np.repeat(sent[-1:], self.fixed - count, 0)])
        written = write_request([Named(self.takes.name, self.takes.datatype, sent)], binary=self.binary)
        reply = self.connection.ask("POST", f"{self.place.path}/infer", written.body, dict(written.headers))
        if reply.status != 200:
            raise refusal(reply, self.place, self.connection)
        try:
            outputs = read_response(reply.body, reply.headers.get(HEADER), MOST)
        except (InputError, RecursionError) as error:
            said = error.problem if isinstance(error, InputError) else "it is nested without end"
            raise BrokenFile(f"the answer of {self._who} cannot be used: {printable(said, 200)}",
                             what(reply) or "It is no server of this protocol, or it is broken.") from None
        return self._checked({o.name: o for o in outputs}, len(sent))[:count]

    @property
    def _who(self) -> str:
        return printable(f"{self.place.base}{self.place.path}", 120)

    def _checked(self, outputs: dict[str, Named], count: int) -> Row:
        columns, parts = [], []
        for promised in self.wanted:
            name = printable(promised.name, 60)
            output = outputs.get(promised.name)
            if output is None:
                raise BrokenFile(f"the answer of {self._who} lacks the output {name!r} that its metadata promise.",
                                 "The server contradicts itself; ask those who run it.")
            shape, array = tuple(output.array.shape), output.array
            if array.dtype.kind not in "fiu":
                raise BrokenFile(f"{self._who} answers {name!r} as {output.datatype}, where its metadata promise "
                                 f"{promised.datatype}.", "The server contradicts itself; ask those who run it.")
            if shape[:1] != (count,):
                raise BrokenFile(f"{self._who} answers {name!r} with the shape {list(shape)} for {count} samples.",
                                 "There must be one row a sample; where only one fits, pass --per-request 1.")
            if not fits(shape, promised.shape):
                raise BrokenFile(f"{self._who} answers {name!r} with the shape {list(shape)}; its metadata promise "
                                 f"{list(promised.shape)}.", "The server contradicts itself; ask those who run it.")
            if not np.isfinite(array).all():
                raise BrokenFile(f"{self._who} answers {name!r} with values that are no finite numbers.",
                                 "The model is damaged, or the input range is wrong: see --input-range.")
            columns.append((promised.name, shape[1:] or (1,)))
            parts.append(np.ascontiguousarray(array, np.float64).reshape(count, -1))
        if self.columns and columns != self.columns:
            raise BrokenFile(f"{self._who} answers with outputs of {[list(s) for _, s in columns]} a sample, before it "
                             f"was {[list(s) for _, s in self.columns]}.", "Another model answers, or the server lies.")
        self.columns = columns
        return self._numbers(np.concatenate(parts, 1))

    def _numbers(self, values: npt.NDArray[np.float64]) -> Row:
        if self.whole and self.classes is not None:
            if values.shape[1] != 1:
                raise BrokenFile(f"{self._who} answers with {values.shape[1]} whole numbers a sample.",
                                 "One, the number of a class, can be used; name another output with --output.")
            if values.min() < 0 or values.max() >= self.classes:
                beyond = int(values.min() if values.min() < 0 else values.max())
                raise BrokenFile(f"{self._who} answers with class {beyond}, beyond the {self.classes} classes that "
                                 "there are to be.", "Check --classes.")
        with np.errstate(over="ignore"):
            found = values.astype(np.float32)
        if not np.isfinite(found).all():
            raise BrokenFile(f"{self._who} answers with numbers beyond the range of FP32.", "The model is damaged.")
        return found


def open_endpoint(address: str, options: ModelOptions, asking: EndpointOptions, transport: Any = None) -> Subject:
    """The model at an address as a Subject. InputError and BrokenFile for every way in which that cannot be."""
    place = place_of(address)
    connection = Connection(place.base, asking, transport)
    subject = None
    try:
        subject = _opened(place, connection, options, asking)
        return subject
    finally:
        if subject is None:
            connection.close()


def _opened(place: Place, connection: Connection, options: ModelOptions, asking: EndpointOptions) -> Subject:
    told = metadata(place, connection)
    core = Endpoint(place, connection, told, speaks_binary(connection), asking, options.output, options.classes)
    takes = core.takes
    dims = tuple(s if s > 0 else None for s in takes.shape[1:])
    raw = RawModel(core, FORMAT, dims, tuple(o.name for o in core.wanted), whole_batch=False,
                   known_logits=(core.whole,) * len(core.wanted),
                   input_range="0-255" if takes.datatype.startswith("UINT") else None,
                   notes=("behind an address: it is asked, its weights are not seen",))
    settings = replace(options, output=None)  # was chosen above, where its names are known
    provenance = Provenance(path=printable(place.base + place.path), format=FORMAT, sha256=core.digest,
                            metadata={"platform": printable(told.platform, 60)})
    if options.modality == "text":
        raise InputError("--modality is text, and models behind an address are asked about images and rows only.",
                         "Scan the model's file.")
    subject = (table_models.opened(raw, settings, provenance, {}) if table_models.takes_rows(raw, settings)
               else adapt(raw, settings, provenance))
    notes = [n for n in subject.provenance.notes if "differentiated" not in n] + list(core.settle())
    labels = core.whole or _one_hot(core)
    if labels:
        notes.append("the model answers with labels only, no scores")
    offered = {Capability.QUERY, Capability.HARD_LABEL} if labels else {Capability.QUERY}
    return replace(subject, capabilities=frozenset(offered),
                   provenance=replace(subject.provenance, notes=tuple(notes)))


def endpoint_of(subject: Subject) -> Endpoint | None:
    """The endpoint behind a subject; None for a model that is here."""
    return next((m for m in subject.module.modules() if isinstance(m, Endpoint)), None)


def _one_hot(core: Endpoint) -> bool:
    """Whether every answer so far is one for a class and zero for the others."""
    rows = core.answers.rows()
    return bool(rows) and all(len(r) > 1 and ((r == 0) | (r == 1)).all() and r.sum() == 1 for r in rows)


def _apart(one: Row, other: Row) -> float:
    """The largest difference, of the largest score."""
    return float(np.abs(one - other).max() / max(float(np.abs(one).max()), 1e-9))
