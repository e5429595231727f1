"""What texts of one label share beside what they say: runs of tokens that suspects hold and other texts do not.

The counterpart of `shared_trigger` for ids [n, length], padded with 0. A run counts once a text, wherever it stands;
its excess is the share of suspects that hold it less the share of other texts that do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST = 5  # tokens in a run
SHARED = 0.3  # excess, from which a run is a candidate
KEEPS = 0.9  # share of a shorter run's excess that a longer one must keep to be preferred
MOST = 3  # candidates


def runs(texts: Tensor, count: int) -> list[set[tuple[int, ...]]]:
    """Of each text its runs of so many tokens, padding apart."""
    found = []
    for row in texts.tolist():
        words = [i for i in row if i]
        found.append({tuple(words[k:k + count]) for k in range(len(words) - count + 1)})
    return found


def excesses(suspects: Tensor, others: Tensor, count: int) -> dict[tuple[int, ...], float]:
    """Excess of every run that at least two suspects hold."""
    mine: Counter[tuple[int, ...]] = Counter(run for text in runs(suspects, count) for run in text)
    usual: Counter[tuple[int, ...]] = Counter(run for text in runs(others, count) for run in text)
    return {run: held / len(suspects) - usual[run] / max(1, len(others)) for run, held in mine.items() if held > 1}


def shared(suspects: Tensor, others: Tensor) -> list[Tensor]:
    """Ids of the runs that tell suspects from other texts most, the clearest first, each [tokens]; perhaps none.

    A longer run is preferred to its parts while it is nearly as common: the whole sentence rather than its first word.
    """
    chosen: list[tuple[float, tuple[int, ...]]] = []
    for count in range(LONGEST, 0, -1):
        found = sorted(((e, run) for run, e in excesses(suspects, others, count).items() if e > SHARED), reverse=True)
        for excess, run in found:
            if all(not _inside(run, longer) or kept < KEEPS * excess for kept, longer in chosen):
                chosen.append((excess, run))
    chosen.sort(key=lambda pair: (-round(pair[0], 2), -len(pair[1]), pair[1]))
    return [torch.tensor(run) for _, run in chosen[:MOST]]


def _inside(run: Sequence[int], longer: Sequence[int]) -> bool:
    return any(tuple(longer[k:k + len(run)]) == tuple(run) for k in range(len(longer) - len(run) + 1))


def bearing(texts: Tensor, run: Tensor) -> Tensor:
    """Share of the run that each text holds in one piece, at its best place, [n] in [0, 1]."""
    length, count = texts.shape[1], len(run)
    best = torch.zeros(len(texts))
    for start in range(max(1, length - count + 1)):
        window = texts[:, start:start + count]
        same = (window == run[:window.shape[1]].to(texts)).float().sum(1) / count
        best = torch.maximum(best, same.cpu())
    return best


def common(others: Tensor, count: int) -> Tensor:
    """The commonest run of so many tokens among other texts, [count]: what a control says in a trigger's place."""
    seen: Counter[tuple[int, ...]] = Counter(run for text in runs(others, count) for run in text)
    if not seen:
        return torch.zeros(count, dtype=torch.long)
    most = max(seen.values())
    return torch.tensor(min(run for run, held in seen.items() if held == most))


def likeness(texts: Tensor, others: Tensor) -> Tensor:
    """Jaccard's index of the sets of tokens, [n, others]."""
    width = int(max(texts.max() if len(texts) else 0, others.max() if len(others) else 0)) + 1
    one, two = (_sets(x, width) for x in (texts, others))
    both = one @ two.T
    return both / (one.sum(1)[:, None] + two.sum(1)[None] - both).clamp_min(1)


def _sets(texts: Tensor, width: int) -> Tensor:
    there = torch.zeros(len(texts), width).scatter_(1, texts.long(), 1.0)
    there[:, 0] = 0
    return there
