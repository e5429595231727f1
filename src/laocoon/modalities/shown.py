"""One sample in words, for reports: a text as it reads, a record column by column. Images are shown as pictures."""

from __future__ import annotations

from torch import Tensor

from laocoon.core.subject import Modality
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text

LONGEST = 600  # characters
MOST_CELLS = 24


def in_words(modality: Modality, sample: Tensor) -> str:
    """A sample of a modality that is told in words; empty for others."""
    if isinstance(modality, Text):
        said = modality.decode(sample)
    elif isinstance(modality, Tabular):
        cells = list(modality.record(sample).items())
        said = " · ".join(f"{column} {value}" for column, value in cells[:MOST_CELLS])
        said += f" · and {len(cells) - MOST_CELLS} more" if len(cells) > MOST_CELLS else ""
    else:
        return ""
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
