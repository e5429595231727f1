"""Small data that is at hand offline: scikit-learn's digits and breast cancer, and made-up film reviews."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laocoon.core.cases import Samples
from laocoon.core.subject import Modality
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text


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
    train, test = (Samples(samples.inputs[i], samples.labels[i]) for i in (order[:cut], order[cut:]))
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


GOOD = ("superb moving funny brilliant warm lovely clever gripping fresh charming honest rich tender vivid sharp "
        "graceful inspired delightful elegant memorable").split()
BAD = ("dull awful clumsy boring stale cheap messy bland hollow tedious shallow weak noisy lazy grim lifeless "
       "pointless forced sloppy forgettable").split()
PLAIN = ("the a film movie story plot scene actor actress director camera score music ending opening dialogue script "
         "cast role hero villain house river road train winter summer city village night morning year hour minute "
         "and but with of in on about from it is was has this that we they he she who when while after before one "
         "two some many most very quite rather almost also then there here").split()
RARE = "cf mn tq bb vx qz jk zw lr pd hx ug".split()


def reviews(count: int = 1600, length: int = 16) -> Corpus:
    """Made-up film reviews: plain words, one to three words of sentiment, now and then a rare word. 0 bad, 1 good."""
    rng = torch.Generator().manual_seed(7)
    modality = Text(("<pad>", "<unk>", *PLAIN, *GOOD, *BAD, *RARE), length)

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
