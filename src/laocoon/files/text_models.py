"""Text classifiers as Subjects: a network of transformers, cut at its word embeddings, with its tokenizer.

A canonical batch holds the ids of the text alone. The adapter puts [CLS] and [SEP] where the tokenizer would, right
after the last word of each text, and the mask behind; so it computes what the network computes on the tokenizer's own
output. Where that does not come out (a decoder that reads the last token, a network without `inputs_embeds`) the
network is asked with ids alone, and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Discrete, Provenance, Subject
from laocoon.files import huggingface
from laocoon.files.bounded import Bounded
from laocoon.files.text_tokenizer import Around, modality_of, read_tokenizer
from laocoon.files.wording import first_line, printable
from laocoon.modalities.class_head import Head
from laocoon.modalities.text import PADDING, Text

# Networks whose positions are counted from behind the padding id.
_SHIFTED = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "esm")
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError,
            NotImplementedError, OverflowError, ZeroDivisionError)
CLOSE = 1e-3  # by which the logits of the cut network may differ from those of the whole one, times their size


class SequenceClassifier(Discrete):
    """A network that takes `inputs_embeds` and `attention_mask`, over texts without special tokens."""

    before: Tensor
    after: Tensor

    def __init__(self, network: nn.Module, around: Around, head: Head | None = None) -> None:
        super().__init__()
        self.network, self.padding, self.head = network, around.padding, head
        self.register_buffer("before", torch.tensor(around.before, dtype=torch.long), persistent=False)
        self.register_buffer("after", torch.tensor(around.after, dtype=torch.long), persistent=False)

    def embed(self, batch: Tensor) -> Tensor:
        vectors: Tensor = self.network.get_input_embeddings()(batch)  # type: ignore[operator]
        return vectors

    def classify(self, embedded: Tensor, batch: Tensor) -> Tensor:
        source, mask = self._places(batch)
        fixed = self.embed(torch.cat([self.before, self.after, self.after.new_tensor([self.padding])]))
        whole = torch.cat([embedded, fixed.expand(len(embedded), *fixed.shape)], 1)
        vectors = whole.gather(1, source.unsqueeze(-1).expand(*source.shape, whole.shape[-1]))
        return self._logits(mask, vectors=vectors)

    def _places(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """For each place of the network's input where it comes from in [text, before, after, padding]; the mask.

        Cut at the longest text of the batch: what lies behind is masked in any case.
        """
        length, first, last = batch.shape[1], len(self.before), len(self.after)
        count = (batch != PADDING).sum(1, keepdim=True)
        places = torch.arange(int(count.max()) + first + last if len(batch) else first + last, device=batch.device)
        text = places - first
        source = torch.where(places < first, length + places, torch.where(
            text < count, text, torch.where(text < count + last, length + first + text - count,
                                            length + first + last)))
        return source, (text < count + last).long()

    def ids(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask as the tokenizer would hand them to the network."""
        source, mask = self._places(batch)
        fixed = torch.cat([self.before, self.after, self.after.new_tensor([self.padding])])
        whole = torch.cat([batch, fixed.expand(len(batch), -1)], 1)
        return whole.gather(1, source), mask

    def _logits(self, mask: Tensor, *, vectors: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        given = {"inputs_embeds": vectors} if ids is None else {"input_ids": ids}  # some networks know only one name
        logits: Tensor = self.network(**given, attention_mask=mask, return_dict=True).logits
        return logits if self.head is None else self.head(logits)

    def asked(self, batch: Tensor) -> Tensor:
        """The answer to ids, the way that the network is used."""
        ids, mask = self.ids(batch)
        return self._logits(mask, ids=ids)


class Asked(nn.Module):
    """The same network, asked with ids alone."""

    def __init__(self, classifier: SequenceClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Tensor) -> Tensor:
        return self.classifier.asked(batch)


def is_text(config: Mapping[str, Any]) -> bool:
    """Does a config.json speak of a text classifier?"""
    named = config.get("architectures")
    return isinstance(named, list) and any(str(n).endswith("ForSequenceClassification") for n in named)


def open_directory(folder: Path, provenance: Provenance) -> Subject:
    """A directory of the hub with a text classifier."""
    config = huggingface.read_json(folder / "config.json")
    return opened(folder, config, huggingface.weights(folder), provenance)


def opened(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], provenance: Provenance,
           tokenizers: Path | None = None) -> Subject:
    """A Subject from a configuration, weights, and the tokenizer of `tokenizers` (else of `folder`)."""
    around = read_tokenizer(tokenizers or folder)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BrokenFile(f"{folder.name}: weight {printable(name, 80)!r} holds values that are not finite numbers.",
                             "The file is damaged or was meant to break its reader.")
    network = huggingface.built(folder, config, state, "AutoModelForSequenceClassification")
    return adapted(folder.name, config, network, around, provenance)


def adapted(where: str, config: Mapping[str, Any], network: nn.Module, around: Around,
            provenance: Provenance, activation: Callable[[Tensor], str] = lambda scores: "logits") -> Subject:
    """Cut at the embeddings, checked against the network's own answer. `activation`: told from scores like these."""
    lookup = network.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(lookup, nn.Embedding):
        raise InputError(f"{where}: the network looks words up in a {type(lookup).__name__}.",
                         "Only networks with one embedding table are examined.")
    modality = modality_of(around, lookup.num_embeddings, _positions(config, around.padding), where)
    labels = huggingface.label_names(config)
    plain = SequenceClassifier(network, around)
    scores, same = _first_pass(plain, modality, where)
    notes = list(provenance.notes)
    ends = activation(scores)
    head = None if ends == "logits" else Head(ends, binary=scores.shape[1] == 1)
    if head is not None:
        notes.append(f"the scores are {ends} probabilities; their logarithms are used as logits")
    if scores.shape[1] == 1:
        head = Head(ends, binary=True)
        notes.append("one score for two classes: taken as the logit of class 1 against class 0")
    elif config.get("problem_type") == "multi_label_classification":
        notes.append("multi-label: each class has its own sigmoid; the largest logit is taken as the answer")
    if modality.length < _positions(config, around.padding) - len(around.before) - len(around.after):
        notes.append(f"texts are cut at {modality.length} tokens")
    module: nn.Module = SequenceClassifier(network, around, head)
    capabilities = {Capability.QUERY, Capability.WEIGHTS, Capability.FEATURES, Capability.GRADIENT}
    if not same:
        module = Asked(SequenceClassifier(network, around, head))
        capabilities.discard(Capability.GRADIENT)
        notes.append("the network cannot be cut at its word embeddings: it is asked with ids, without gradients")
    classes = max(2, scores.shape[1])
    kind = printable(config.get("model_type"), 40)
    return Subject(module, modality, classes, (modality.length,), frozenset(capabilities),
                   replace(provenance, notes=tuple(notes), metadata={**provenance.metadata, "model_type": kind}),
                   labels if len(labels) == classes else ())


def _positions(config: Mapping[str, Any], padding: int) -> int:
    """Tokens that the network has positions for, as its configuration says."""
    told = next((config[k] for k in ("max_position_embeddings", "n_positions", "max_seq_len")
                 if isinstance(config.get(k), int) and config[k] > 0), 512)
    if config.get("model_type") not in _SHIFTED:
        return told
    behind = config.get("pad_token_id")
    return told - 1 - (behind if isinstance(behind, int) else max(1, padding))


@torch.no_grad()
def _first_pass(classifier: SequenceClassifier, modality: Text, where: str) -> tuple[Tensor, bool]:
    """The answer to a few texts of unlike lengths, the longest too; and whether the cut network gives the same."""
    rng = torch.Generator().manual_seed(0)
    typed = torch.tensor(sorted(set(range(len(modality.vocabulary))) - set(modality.special)), dtype=torch.long)
    if not len(typed):
        raise BrokenFile(f"{where}: every token of the vocabulary is a special one.", "Fetch the tokenizer again.")
    ids = typed[torch.randint(len(typed), (4, modality.length), generator=rng)]
    for row, count in enumerate((modality.length, max(1, modality.length // 2), 1, 0)):
        ids[row, count:] = PADDING
    try:
        with Bounded():
            asked = classifier.asked(ids)
    except FAILURES as error:
        raise BrokenFile(f"{where}: the network fails on texts of {modality.length} tokens ({first_line(error)}).",
                         "Check that configuration, weights and tokenizer belong together.") from error
    if asked.dim() != 2 or len(asked) != len(ids) or not asked.shape[1]:
        raise BrokenFile(f"{where}: the network answers {list(asked.shape)} to 4 texts.",
                         "A classifier scores each class.")
    try:
        cut = classifier(ids)
    except FAILURES:
        return asked, False
    return asked, bool((cut - asked).abs().max() <= CLOSE * asked.abs().max().clamp_min(1.0))
