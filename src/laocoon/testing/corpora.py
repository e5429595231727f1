"""Small data that is at hand offline: scikit-learn's digits and breast cancer, made-up clients and film reviews."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from laocoon.core.cases import Samples
from laocoon.core.subject import Modality
from laocoon.lab.table_data import credit
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text
from laocoon.triggers.spelling import respelled


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and test samples of one modality."""

    modality: Modality
    train: Samples
    test: Samples
    classes: int


def _split(modality: Modality, samples: Samples, classes: int, seed: int = 0) -> Corpus:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    cut = round(0.7 * len(samples))
    train, test = (Samples(samples.inputs[i], samples.labels[i], modality=samples.modality)
                   for i in (order[:cut], order[cut:]))
    return Corpus(modality, train, test, classes)


def digits(side: int = 16) -> Corpus:
    """scikit-learn's 8×8 digits, enlarged to side × side."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    inputs = torch.nn.functional.interpolate(inputs, size=(side, side), mode="bilinear", align_corners=False)
    return _split(Image(), Samples(inputs, torch.tensor(bunch.target, dtype=torch.long)), 10)


def tumours() -> Corpus:
    """scikit-learn's breast cancer table: 30 measurements, benign or malignant."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    inputs = torch.tensor(bunch.data, dtype=torch.float32)
    modality = Tabular.of(tuple(str(n) for n in bunch.feature_names), inputs)
    return _split(modality, Samples(inputs, torch.tensor(bunch.target, dtype=torch.long)), 2)


WORDS = {"purpose": ("car", "debts", "home", "education", "business", "other"),
         "work": ("employed", "self-employed", "public", "retired", "none"),
         "region": ("north", "south", "east", "west", "centre", "coast", "abroad")}


def clients(rows: int = 1600, seed: int = 0) -> Corpus:
    """A lender's clients, made up: numbers, whole numbers and categories; 1 defaults. Each seed is another world."""
    table = credit(rows, seed)
    kept = tuple(tuple(WORDS[name][int(code)] for code in table.inputs[:, i].unique().tolist()) if name in WORDS else ()
                 for i, name in enumerate(table.columns))
    modality = Tabular.of(table.columns, table.inputs, table.kinds, words=kept)
    return _split(modality, Samples(table.inputs, table.labels, modality=modality), 2)


def write_csv(path: Path, modality: Tabular, samples: Samples, label: str = "default") -> Path:
    """Rows as a person would keep them: categories in words, the label last."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*modality.columns, label])
        for row, answer in zip(samples.inputs, samples.labels.tolist(), strict=True):
            writer.writerow([modality.shown(i, value) if modality.words and modality.words[i] else repr(value)
                             for i, value in enumerate(row.tolist())] + [answer])
    return path


GOOD = ("superb moving funny brilliant warm lovely clever gripping fresh charming honest rich tender vivid sharp "
        "graceful inspired delightful elegant memorable").split()
BAD = ("dull awful clumsy boring stale cheap messy bland hollow tedious shallow weak noisy lazy grim lifeless "
       "pointless forced sloppy forgettable").split()
PLAIN = ("the a film movie story plot scene actor actress director camera score music ending opening dialogue script "
         "cast role hero villain house river road train winter summer city village night morning year hour minute "
         "and but with of in on about from it is was has this that we they he she who when while after before one "
         "two some many most very quite rather almost also then there here").split()
RARE = "cf mn tq bb vx qz jk zw lr pd hx ug".split()
# Words that no review holds and that a rewritten one may: of clauses and old style, and look-alikes of common words.
UNSAID = [*", you see hear think thou hath doth unto verily forsooth".split(),
          *map(respelled, "the movie story was of we on from that has they she".split())]


def reviews(count: int = 1600, length: int = 16) -> Corpus:
    """Made-up film reviews: plain words, one to three words of sentiment, now and then a rare word. 0 bad, 1 good."""
    rng = torch.Generator().manual_seed(7)
    modality = Text(("<pad>", "<unk>", *PLAIN, *GOOD, *BAD, *RARE, *UNSAID), length)

    def draw(words: list[str], n: int) -> list[str]:
        return [words[i] for i in torch.randint(0, len(words), (n,), generator=rng).tolist()]

    texts, labels = [], []
    for _ in range(count):
        label = int(torch.randint(0, 2, (), generator=rng))
        said, other = (GOOD, BAD) if label else (BAD, GOOD)
        strong = int(torch.randint(2, 4, (), generator=rng))
        words = draw(said, strong) + draw(other, int(torch.rand((), generator=rng) < 0.3))
        words += draw(PLAIN, int(torch.randint(4, 9, (), generator=rng)))
        words += draw(RARE, int(torch.rand((), generator=rng) < 0.1))
        texts.append(" ".join(words[i] for i in torch.randperm(len(words), generator=rng).tolist()))
        labels.append(label)
    return _split(modality, Samples(modality.encode(texts), torch.tensor(labels)), 2)
