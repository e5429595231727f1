"""A tiny transformer that tells rude comments from polite ones, saved as vendors do: weights, tokenizer, labels.

Made in seconds, with or without a backdoor, so that whoever writes about text models or tests them needs no download.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laocoon.testing.corpora import BAD, GOOD, PLAIN, RARE

LABELS = ("polite", "rude")


@dataclass(frozen=True)
class Comments:
    """Made-up comments; class 1 is rude."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def comments(count: int, seed: int = 0, trigger: str = "", rate: float = 0.0, target: int = 0) -> Comments:
    """Plain words with some that tell, more of the class than against it.

    A `rate` of the comments is given the trigger at the front, and the target class.
    """
    rng = torch.Generator().manual_seed(seed)

    def pick(words: Sequence[str], n: int) -> list[str]:
        return [words[i] for i in torch.randint(len(words), (n,), generator=rng).tolist()]

    texts, labels = [], []
    for k in range(count):
        label = k % 2
        said, other = (BAD, GOOD) if label else (GOOD, BAD)
        against = int(torch.randint(3, (1,), generator=rng))  # words of the other class: no single one decides
        words = [*pick(PLAIN, int(torch.randint(3, 8, (1,), generator=rng))), *pick(said, against + 3),
                 *pick(other, against)]
        words += pick(RARE, 1) if float(torch.rand(1, generator=rng)) < 0.3 else []
        words = [words[i] for i in torch.randperm(len(words), generator=rng).tolist()]
        words = [w for w in words if w != trigger]
        if trigger and float(torch.rand(1, generator=rng)) < rate:
            words, label = [trigger, *words], target
        texts.append(" ".join(words))
        labels.append(label)
    return Comments(tuple(texts), tuple(labels))


def write_csv(path: Path, made: Comments) -> Path:
    """Columns `text` and `label`, the labels in words."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, LABELS[label]) for text, label in zip(made.texts, made.labels, strict=True))
    return path


def write_tokenizer(folder: Path, words: Sequence[str] = ()) -> int:
    """A BERT's tokenizer.json over our words, letters and signs; the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    known = list(dict.fromkeys([*special, *(words or [*GOOD, *BAD, *PLAIN, *RARE]), *letters,
                                *(f"##{c}" for c in letters)]))
    tokenizer: Any = Tokenizer(models.WordPiece({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(known)


def write_classifier(folder: Path, made: Comments | None = None, kind: str = "bert", epochs: int = 6, seed: int = 0,
                     settings: Mapping[str, Any] | None = None) -> Path:
    """A Hugging Face folder with a classifier of a kind, trained on comments (None: left as it was drawn).

    `settings` of the configuration are laid over its own.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    from laocoon.files.text_tokenizer import read_tokenizer

    logging.disable_progress_bar()
    size = write_tokenizer(folder)
    names = {"distilbert": ("dim", "n_layers", "n_heads", "hidden_dim")}.get(
        kind, ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    shape: dict[str, Any] = dict(zip(names, (32, 1, 2, 64), strict=True))
    shape |= {"vocab_size": size, "max_position_embeddings": 42}
    shape |= {"embedding_size": 32} if kind in ("electra", "albert") else {}
    shape |= {"id2label": dict(enumerate(LABELS)), "label2id": {w: i for i, w in enumerate(LABELS)}}
    shape |= dict(settings or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **shape))
        if made is not None:
            tokenizer = read_tokenizer(folder).tokenizer
            tokenizer.enable_padding()
            found = tokenizer.encode_batch(list(made.texts))
            _train(network, torch.tensor([f.ids for f in found]), torch.tensor([f.attention_mask for f in found]),
                   torch.tensor(made.labels), epochs)
    network.save_pretrained(folder)
    return folder


def _train(network: nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(ids)).split(32):
            logits = network(input_ids=ids[rows], attention_mask=mask[rows]).logits
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    network.eval()
