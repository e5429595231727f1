"""A model behind an address: what it takes to ask it, and a clear sentence for every way in which that fails."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.endpoint.asked import QUICK, complaint, hasty, opened, outputs, says
from tests.endpoint.server import CLASSES, SHAPE, Handler, Server, labels, quarters

from laocoon.core.card import Capability
from laocoon.core.errors import BudgetSpent, InputError
from laocoon.files.endpoint import KEPT, TWICE, endpoint_of
from laocoon.files.endpoint_http import VARIABLE, Connection
from laocoon.files.endpoint_metadata import place_of
from laocoon.files.endpoint_options import EndpointOptions
from laocoon.files.open import load_model

__all__ = ["hasty"]

@pytest.mark.parametrize("binary", [True, False])
def test_answers_as_the_model_does(binary):
    with Server(binary=binary) as server:
        subject = opened(server)
        x = torch.rand(70, *SHAPE, generator=torch.Generator().manual_seed(0))
        said = subject.outputs(x).logits
        endpoint_of(subject).close()
    assert torch.allclose(said, torch.from_numpy(quarters(x.numpy())["scores"]))
    assert subject.capabilities == {Capability.QUERY} and subject.classes == CLASSES and subject.input_shape == SHAPE
    assert subject.provenance.path == server.address and len(subject.provenance.sha256) == 64
    assert not any("deterministic" in n for n in subject.provenance.notes)


def test_no_question_is_asked_twice_and_all_are_counted():
    with Server() as server:
        subject = opened(server, replace(QUICK, queries=100))
        endpoint = endpoint_of(subject)
        before, counted = server.samples, endpoint.answers.asked
        x = torch.rand(10, *SHAPE)
        subject.outputs(torch.cat([x, x]))
        subject.outputs(x.flip(0))
        assert (server.samples - before, endpoint.answers.asked - counted) == (10, 10)
        with pytest.raises(BudgetSpent, match=r"--queries"):
            subject.outputs(torch.rand(90, *SHAPE))
        assert server.samples <= 100 - KEPT + TWICE
        endpoint.close()


def test_answers_outlive_an_interruption(tmp_path):
    x = torch.rand(10, *SHAPE)
    with Server() as server:
        for turn in range(2):
            subject = opened(server)
            endpoint = endpoint_of(subject)
            endpoint.keep(tmp_path / "answers.sqlite")
            before, counted = server.samples, endpoint.answers.asked
            first = subject.outputs(x).logits if turn == 0 else first
            assert torch.equal(subject.outputs(x).logits, first)
            assert server.samples - before == (0 if turn else 10)
            assert counted >= (18 if turn else 4)
            endpoint.close()
    with Server(quarters) as other:  # another address
        subject = opened(other)
        with pytest.raises(InputError, match="another model"):
            endpoint_of(subject).keep(tmp_path / "answers.sqlite")
        endpoint_of(subject).close()
        (tmp_path / "broken.sqlite").write_bytes(b"not a database" * 100)
        subject = opened(other)
        with pytest.raises(InputError, match="cannot be read"):
            endpoint_of(subject).keep(tmp_path / "broken.sqlite")
        endpoint_of(subject).close()


def test_labels_only():
    with Server(labels) as server:
        subject = opened(server, classes=CLASSES)
        x = torch.rand(9, *SHAPE)
        said = subject.outputs(x).logits
        endpoint_of(subject).close()
    assert subject.capabilities == {Capability.QUERY, Capability.HARD_LABEL}
    assert said.argmax(1).tolist() == labels(x.numpy())["label"].tolist()
    one_hot = lambda x: {"scores": np.eye(CLASSES, dtype=np.float32)[labels(x)["label"]]}  # noqa: E731
    with Server(one_hot) as server:
        subject = opened(server)
        endpoint_of(subject).close()
    assert Capability.HARD_LABEL in subject.capabilities
    assert "--classes" in complaint(Server(labels))
    assert "beyond the 2 classes" in complaint(Server(lambda x: {"label": np.full(len(x), 3)}), classes=2)


def test_scores_are_preferred_to_labels_unless_asked_for():
    both = lambda x: {**labels(x), **quarters(x)}  # noqa: E731
    with Server(both) as server:
        subject = opened(server)
        endpoint_of(subject).close()
        assert subject.capabilities == {Capability.QUERY}
        subject = opened(server, output="label", classes=CLASSES)
        endpoint_of(subject).close()
        assert Capability.HARD_LABEL in subject.capabilities


def test_rows_and_bytes_as_inputs():
    with Server(lambda x: {"scores": x[:, :3]}, shape=(7,)) as server:
        subject = opened(server)
        endpoint_of(subject).close()
    assert subject.modality.name == "tabular" and subject.capabilities == {Capability.QUERY}
    seen = []
    takes = [{"name": "input", "datatype": "UINT8", "shape": [-1, *SHAPE]}]

    def model(x):
        seen.append((x.dtype, int(x.max(initial=0))))
        return quarters(x.astype(np.float32) / 255)

    with Server(model, inputs=takes) as server:
        subject = opened(server)
        endpoint_of(subject).close()
    assert (np.dtype("u1"), 255) in seen


def test_a_server_that_takes_so_many_at_once():
    takes = [{"name": "input", "datatype": "FP32", "shape": [3, *SHAPE]}]

    def model(x):
        assert len(x) in (2, 3)  # two: the server's own trial
        return quarters(x)

    with Server(model, inputs=takes) as server:
        subject = opened(server)
        x = torch.rand(7, *SHAPE)
        assert torch.allclose(subject.outputs(x).logits, torch.from_numpy(quarters(x.numpy())["scores"]))
        endpoint_of(subject).close()


def test_trouble_that_passes_is_waited_for():
    turns = iter(range(10**6))

    def sometimes(handler: Handler, what: str) -> bool:
        if what == "infer" and next(turns) % 3 != 2:
            handler.raw(503, b"later", {"retry-after": "1"})
            return True
        return False

    with Server(spoil=sometimes) as server:
        endpoint_of(opened(server)).close()


def test_a_model_that_rolls_dice_is_noted_and_one_that_changes_is_noticed():
    rng = np.random.default_rng(0)
    with Server(spoil=outputs(lambda s: s + rng.normal(size=s.shape))) as server:
        subject = opened(server)
        endpoint_of(subject).close()
    assert any("not deterministic" in n for n in subject.provenance.notes)
    with Server() as server:
        subject = opened(server)
        endpoint = endpoint_of(subject)
        subject.outputs(torch.rand(30, *SHAPE))
        assert endpoint.changed() == ""
        server.spoil = outputs(lambda s: s[:, ::-1])
        assert "changed while it was asked" in endpoint.changed()
        endpoint.close()


def test_404_names_the_models_that_are_there():
    for lists, expected in ((True, "there are there, other"), (False, "does not list")):
        with Server(lists=lists) as server, pytest.raises(InputError, match=expected):
            load_model(f"{server.base}/v2/models/elsewhere", asking=QUICK)
    with Server(lists=True) as server, pytest.raises(InputError, match=r"names no model.*there, other"):
        load_model(server.base, asking=QUICK)


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with pytest.raises(InputError, match="refuses connections"):
            load_model(f"http://127.0.0.1:{taken.getsockname()[1]}/v2/models/m", asking=QUICK)
    with pytest.raises(InputError, match="is not known"):
        load_model("http://nobody.invalid/v2/models/m", asking=QUICK)


@pytest.mark.parametrize(("address", "expected"), [
    ("http://user:secret@host/v2/models/m", "name or a password"),
    ("http://host/v2/models/m?key=secret", "a query"),
    ("http://host:99999/v2/models/m", "no valid port"),
    ("http:///v2/models/m", "names no host"),
    ("http://host/v2/models/a b", "blanks"),
])
def test_addresses_that_are_none(address, expected):
    with pytest.raises(InputError, match=expected) as told:
        load_model(address)
    assert "secret" not in str(told.value)


def test_addresses():
    place = place_of("https://host:8443/prefix/v2/models/a%2Fb/versions/3/")
    assert (place.base, place.name, place.version) == ("https://host:8443/prefix", "a/b", "3")
    assert place.path == "/v2/models/a%2Fb/versions/3"


def test_the_key_comes_from_the_environment_and_travels_only_safely(monkeypatch):
    monkeypatch.setenv(VARIABLE, "hush-hush")
    with Server() as server:
        subject = opened(server)
        endpoint_of(subject).close()
        assert all(h.get("authorization") == "Bearer hush-hush" for _, _, h in server.requests)
    assert "hush" not in repr(subject.provenance)
    assert "not accepted" in complaint(Server(spoil=says(401)))
    with pytest.raises(InputError, match="unencrypted"):
        load_model("http://far.example/v2/models/m")
    monkeypatch.setenv(VARIABLE, "with blank")
    with pytest.raises(InputError, match="no key has"):
        load_model("https://far.example/v2/models/m")


def test_the_rate_is_kept():
    with Server() as server:
        connection = Connection(server.base, replace(QUICK, rate=20))
        start = time.monotonic()
        for _ in range(5):
            connection.ask("GET", "/v2")
        connection.close()
    assert 0.2 <= time.monotonic() - start < 2


@pytest.mark.parametrize("change", [{"queries": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"per_request": 0},
                                    {"timeout": -1.0}, {"retries": 99}])
def test_options_that_make_no_sense(change):
    with pytest.raises(InputError, match=f"--{next(iter(change)).replace('_', '-')}"):
        EndpointOptions(**change)
