"""A causal language model of transformers as a measure of how likely a text is: safetensors and tokenizer.json only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError
from laocoon.files.huggingface import built, read_json, weights
from laocoon.files.text_tokenizer import Around, read_tokenizer
from laocoon.modalities.text import Text

MOST = 64  # texts in one pass
LONGEST = 256  # tokens of one text


def surprise_of(folder: str, text: Text) -> Callable[[Tensor], Tensor]:
    """Ids of a vocabulary [n, length] to −mean log p of their texts [n], by the model in a folder.

    Texts are decoded, and encoded again by the language model's own tokenizer.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise InputError(f"the language model {folder!r} is no folder with a config.json.",
                         "Name a folder with config.json, model.safetensors and tokenizer.json.")
    network = built(path, read_json(path / "config.json"), weights(path), "AutoModelForCausalLM").eval()
    network.requires_grad_(False)
    around = read_tokenizer(path)

    def surprise(ids: Tensor) -> Tensor:
        texts = [text.decode(row) for row in ids]
        return torch.cat([_surprise(network, around, texts[k:k + MOST]) for k in range(0, len(texts), MOST)])

    return surprise


@torch.no_grad()
def _surprise(network: nn.Module, around: Around, texts: list[str]) -> Tensor:
    rows = [one.ids[:LONGEST] for one in around.tokenizer.encode_batch(texts, add_special_tokens=False)]
    # A model that knows no beginning of a text is given the first token twice, so that every token has one before it.
    rows = [[*(around.before or tuple(row[:1])), *row] for row in rows]
    longest = max(2, *(len(row) for row in rows)) if len(rows) > 1 else max(2, len(rows[0]))
    ids = torch.tensor([row + [around.padding] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits: Tensor = network(input_ids=ids, attention_mask=mask, return_dict=True).logits
    logs = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    there = mask[:, 1:].float()
    return -(logs * there).sum(1) / there.sum(1).clamp_min(1)
