"""Texts and tables over the wire: what is taken, and what is refused before a model sees it."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch
from tests.serve.conftest import facts

from laocoon.core.errors import InputError
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text
from laocoon.serve.inputs import LONGEST_TEXT, Cells, Inputs, Words, inputs_of
from laocoon.serve.intake import enough, understood

TEXT = Text(("<pad>", "<unk>", "a", "good", "film"), 4)
TABLE = Tabular(("age", "income"), (0.0, 0.0), (99.0, 1e5))


def body(datatype: str, shape: list[int], data: list[Any]) -> bytes:
    tensor = {"name": "input", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def taken(inputs: Inputs, raw: bytes, header: str | None = None, most: int = 8) -> torch.Tensor:
    shape = (4,) if isinstance(inputs, Words) else (2,)
    return understood(raw, header, facts(shape=shape, inputs=inputs), most, local=True)[1]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_texts_are_cut_into_tokens(shape: list[int]) -> None:
    ids = taken(Words(TEXT), body("BYTES", shape, ["A good film", "film é"]))
    assert ids.dtype == torch.long and ids.tolist() == [[2, 3, 4, 0], [4, 1, 0, 0]]


def binary(texts: list[bytes]) -> tuple[bytes, str]:
    tail = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    head = json.dumps({"inputs": [{"name": "input", "datatype": "BYTES", "shape": [len(texts)],
                                   "parameters": {"binary_data_size": len(tail)}}]}).encode()
    return head + tail, str(len(head))


def test_texts_come_as_bytes_too() -> None:
    assert taken(Words(TEXT), *binary([b"good", b"a film"])).tolist() == [[3, 0, 0, 0], [2, 4, 0, 0]]


@pytest.mark.parametrize(("texts", "said"), [
    ([b"good", b"\xff\xfe"], "text 1 is not UTF-8"),
    ([b"a" * (LONGEST_TEXT + 1)], f"has {LONGEST_TEXT + 1} bytes"),
    ([], "holds 0 samples"),
])
def test_bad_texts_are_refused(texts: list[bytes], said: str) -> None:
    with pytest.raises(InputError, match=said):
        taken(Words(TEXT), *binary(texts))


def test_half_a_character_in_json_is_refused() -> None:
    with pytest.raises(InputError):
        taken(Words(TEXT), body("BYTES", [1], ["\ud800"]))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64"])
def test_rows_come_as_numbers(datatype: str) -> None:
    rows = taken(Cells(TABLE, (2,)), body(datatype, [2, 2], [30, 1000, 40, 2000]))
    assert rows.dtype == torch.float32 and rows.tolist() == [[30, 1000], [40, 2000]]


@pytest.mark.parametrize(("inputs", "raw", "said"), [
    (Cells(TABLE, (2,)), body("FP32", [1, 3], [1, 2, 3]), r"must be FP32 or FP64 or INT64 or INT32 \[samples, 2\]"),
    (Cells(TABLE, (2,)), body("FP64", [1, 2], [1e300, 2]), "not finite"),
    (Cells(TABLE, (2,)), body("BYTES", [2], ["a", "b"]), "the input is BYTES"),
    (Words(TEXT), body("FP32", [1], [1.0]), r"must be BYTES \[samples\]"),
    (Words(TEXT), body("BYTES", [1, 2], ["a", "b"]), "the input is BYTES"),
])
def test_what_the_model_does_not_take_is_refused(inputs: Inputs, raw: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        taken(inputs, raw)


def test_bodies_stay_bounded_and_hold_one_long_text() -> None:
    told = facts(shape=(4,), inputs=Words(TEXT))
    assert 6 * LONGEST_TEXT <= enough(1, told) <= enough(10_000, told) < 64 * 2**20


def test_each_modality_comes_in_its_own_way() -> None:
    assert inputs_of(TEXT, (4,)).datatypes == ("BYTES",) and inputs_of(TABLE, (2,)).shape == (2,)
    assert inputs_of(TEXT, (4,)).blank().dtype == torch.long

    class Smell:
        name = "smell"

    with pytest.raises(InputError, match="smell"):
        inputs_of(Smell(), (2,))
