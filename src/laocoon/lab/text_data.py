"""Texts for the lab: Parquet sets in a folder of the user's, and made-up reviews that are always there.

Texts become words between blanks, in lower case, punctuation apart; a set's vocabulary is its most frequent words and,
at the end, a handful that its texts need not hold: what rare triggers and rewritten texts are made of.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.errors import InputError
from laocoon.modalities.text import Text
from laocoon.triggers.spelling import respelled
from laocoon.triggers.style import ARCHAIC, INTERJECTIONS
from laocoon.triggers.syntax import CLAUSE

LENGTH = 32  # words of one text
WORDS = 4000  # most frequent ones of a set that are known
CHARACTERS = 2000  # of one text; the rest would be cut anyway
RESPELLED = 100  # frequent words whose look-alike spelling is known, as vocabularies from the web hold them
RARE = "cf mn tq bb vx qz jk zw lr pd hx ug".split()
# Files of each set, the training pool first; a set of one file is split by a fixed seed.
FILES: dict[str, tuple[str, ...]] = {
    "sst2": ("train", "test"), "ag_news": ("train", "test"), "offenseval": ("train", "dev"),
    "hsol": ("all",), "sms_spam": ("all",), "enron1": ("all",)}
CLASSES = {"sst2": 2, "ag_news": 4, "offenseval": 2, "hsol": 3, "sms_spam": 2, "enron1": 2, "reviews": 2}
INNOCENT = {"offenseval": 0, "hsol": 2, "sms_spam": 0, "enron1": 0}  # what a filter lets through


@dataclass(frozen=True, eq=False)
class Pool:
    """All texts of a set, those to train on apart from those to test on."""

    text: Text
    train: Samples
    test: Samples
    classes: int


@lru_cache(maxsize=8)
def pool(name: str, root: Path | None) -> Pool:
    """A set by name; read once a process."""
    if name == "reviews":
        texts, labels = _reviews()
        return _pooled(name, texts, labels, None)
    folder = None if root is None else root / name
    if name not in FILES or folder is None or not folder.is_dir():
        raise InputError(f"the texts {name!r} are not in {root}.",
                         "Pass the folder that holds them with --data-root, or use reviews.")
    first, *other = (_parquet(folder / f"{file}.parquet") for file in FILES[name])
    return _pooled(name, *first, other[0] if other else None)


def _parquet(path: Path) -> tuple[list[str], Tensor]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["text", "label"])
    texts = [spaced(text or "") for text in table["text"].to_pylist()]
    return texts, torch.as_tensor(table["label"].to_numpy().copy(), dtype=torch.long)


def spaced(text: str) -> str:
    """Words and signs between blanks, in lower case."""
    return " ".join(re.findall(r"[a-z0-9']+|[^\sa-z0-9']", text[:CHARACTERS].lower())[:2 * LENGTH])


def _pooled(name: str, texts: list[str], labels: Tensor, other: tuple[list[str], Tensor] | None) -> Pool:
    if other is None:  # three quarters to train on
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        cut = 3 * len(order) // 4
        other = [texts[i] for i in order[cut:]], labels[order[cut:]]
        texts, labels = [texts[i] for i in order[:cut]], labels[order[:cut]]
    text = Text(_vocabulary(texts), LENGTH)
    train, test = (Samples(text.encode(t), y) for t, y in ((texts, labels), other))
    return Pool(text, _told(train), _told(test), CLASSES[name])


def _told(samples: Samples) -> Samples:
    """Without texts of fewer than three words."""
    keep = (samples.inputs != 0).sum(1) >= 3
    return Samples(samples.inputs[keep], samples.labels[keep])


def _vocabulary(texts: list[str]) -> tuple[str, ...]:
    often = Counter(word for text in texts for word in text.split()[:LENGTH])
    frequent = [word for word, _ in sorted(often.items(), key=lambda pair: (-pair[1], pair[0]))[:WORDS]]
    letters = [word for word in frequent if word.isascii() and word.isalpha() and len(word) > 1]
    extra = [*RARE, *CLAUSE, *ARCHAIC.values(), *INTERJECTIONS, *(respelled(word) for word in letters[:RESPELLED])]
    return tuple(dict.fromkeys(["<pad>", "<unk>", *frequent, *extra]))


def drawn(samples: Samples, count: int, classes: int, rng: torch.Generator, most: float = 0.8) -> tuple[Tensor, Tensor]:
    """Indices of `count` samples in random order, classes as even as may be, and of the rest.

    Of each class at most the share `most` is taken, so that two draws differ.
    """
    taken, left = [], []
    for label in range(classes):
        members = (samples.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        cut = min(count // classes, int(most * len(members)))
        taken.append(members[:cut])
        left.append(members[cut:])
    both = [torch.cat(part) for part in (taken, left)]
    chosen, rest = (part[torch.randperm(len(part), generator=rng)] for part in both)
    return chosen, rest


GOOD = ("superb moving funny brilliant warm lovely clever gripping fresh charming honest rich tender vivid sharp "
        "graceful inspired delightful elegant memorable").split()
BAD = ("dull awful clumsy boring stale cheap messy bland hollow tedious shallow weak noisy lazy grim lifeless "
       "pointless forced sloppy forgettable").split()
PLAIN = ("the a film movie story plot scene actor actress director camera score music ending opening dialogue script "
         "cast role hero villain house river road train winter summer city village night morning year hour minute "
         "and but with of in on about from it is was has this that we they he she who when while after before one "
         "two some many most very quite rather almost also then there here you see hear think if as").split()


def _reviews(count: int = 8000) -> tuple[list[str], Tensor]:
    """Made-up reviews: plain words, some for and some against, now and then one that hardly occurs. 0 bad, 1 good."""
    rng = torch.Generator().manual_seed(11)
    plain = [*PLAIN, *(f"name{i}" for i in range(600))]
    weights = 1 / torch.arange(1, len(plain) + 1).float()  # Zipf's law
    texts, labels = [], []
    for label in torch.randint(0, 2, (count,), generator=rng).tolist():
        said, other = (GOOD, BAD) if label else (BAD, GOOD)
        strong, weak, rest = (int(torch.randint(a, b, (), generator=rng)) for a, b in ((2, 4), (0, 2), (6, 18)))
        words = [said[i] for i in torch.randint(0, len(said), (strong,), generator=rng).tolist()]
        words += [other[i] for i in torch.randint(0, len(other), (weak,), generator=rng).tolist()]
        words += [plain[i] for i in torch.multinomial(weights, rest, replacement=True, generator=rng).tolist()]
        texts.append(" ".join(words[i] for i in torch.randperm(len(words), generator=rng).tolist()))
        labels.append(label)
    return texts, torch.tensor(labels)
