"""A causal language model in a folder: what it finds unlikely, against its own loss, and folders that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laocoon.core.errors import InputError
from laocoon.files.language_model import surprise_of
from laocoon.modalities.text import Text

WORDS = ("<pad>", "<unk>", "a", "film", "was", "good", "bad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=2,
                                         initializer_range=0.5, bos_token_id=2, eos_token_id=2)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path, safe_serialization=True)
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_surprise_is_the_loss_of_the_model(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = Text(WORDS, 6)
    ids = text.encode(["a film was good", "bad bad", "film"])
    found = surprise_of(str(folder), text)(ids)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    for row, said in zip(ids, found, strict=True):
        words = row[row != 0]
        with torch.no_grad():
            logs = model(torch.cat([words[:1], words])[None]).logits[0, :-1].log_softmax(-1)
        assert said == pytest.approx(-float(logs.gather(1, words[:, None]).mean()), abs=1e-4)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        surprise_of(str(tmp_path), Text(WORDS, 6))
