"""A vote of networks: the ensemble that deep partition aggregation trains, and what a majority proves.

The answer is the class with most votes, the smaller number on a tie; both the module and the certificate use that rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Votes(nn.Module):
    """Members vote with their best class. `forward` gives scores whose best class is the vote's answer."""

    def __init__(self, members: Sequence[nn.Module], classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.classes = classes

    def ballots(self, x: Tensor) -> Tensor:
        """Each member's vote, [batch, members]."""
        return torch.stack([member(x).argmax(-1) for member in self.members], 1)

    def votes(self, x: Tensor) -> Tensor:
        """How many members voted for each class, [batch, classes]."""
        return counted(self.ballots(x), self.classes)

    def forward(self, x: Tensor) -> Tensor:
        """The counts, less a little for larger class numbers, so that ties fall to the smaller one."""
        counts = self.votes(x).to(x.dtype)
        return counts - torch.arange(self.classes, device=x.device) / (2.0 * self.classes)


def counted(ballots: Tensor, classes: int) -> Tensor:
    """[batch, members] votes to [batch, classes] counts."""
    counts = torch.zeros(len(ballots), classes, dtype=torch.long, device=ballots.device)
    return counts.scatter_add_(1, ballots, torch.ones_like(ballots))


def winners(counts: Tensor) -> Tensor:
    """The class with most votes, the smaller number on a tie; [batch]."""
    classes = counts.shape[1]
    return (counts * (classes + 1) - torch.arange(classes, device=counts.device)).argmax(1)


def robustness(counts: Tensor) -> Tensor:
    """How many members may change their vote, whichever they are, before the answer can; [batch].

    With n_c votes for the answer c, r changed votes leave n_c − r at least and give another class k at most n_k + r:
    c stays the answer while n_c − r > n_k + r, or equal and c < k. So r = min over k of ⌊(n_c − n_k − [k < c]) / 2⌋.
    """
    best = winners(counts)
    top = counts.gather(1, best[:, None])
    others = torch.arange(counts.shape[1], device=counts.device)[None]
    spare = top - counts - (others < best[:, None]).long()
    spare[torch.arange(len(counts)), best] = torch.iinfo(torch.long).max
    return torch.div(spare.amin(1), 2, rounding_mode="floor")
