"""Which classes a search looks at, and what it says: how much smaller a trigger is than the median class's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.goal import all_to_one
from laocoon.core.methods import SearchedFamily
from laocoon.core.report import Finding
from laocoon.recipes.inversion import Recovered


def contenders(order: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """The classes to search where there are more than `most`: half of them promising, half drawn from the rest.

    order: all classes, the most promising first. The drawn ones keep the median that of an ordinary class.
    """
    if len(order) <= most:
        return torch.arange(len(order))
    promising, rest = order[:most // 2].cpu(), torch.ones(len(order), dtype=torch.bool)
    rest[promising] = False
    others = rest.nonzero().flatten()
    others = others[torch.randperm(len(others), generator=rng)[:most // 2]]
    return torch.cat([promising, others]).sort().values


def smallest(method: str, family: SearchedFamily, arms: Tensor, found: Recovered, classes: int,
             keep: int) -> Iterator[Finding | Candidate]:
    """A finding per arm, log(median size / size), largest first; the first `keep` as candidates.

    arms: the target class of each row of `found`, [arms]. Scale-free, comparable across models.
    """
    logs = found.effective.log().cpu()
    # The lower of two is a median to torch, and nothing would be smaller than that.
    middle = logs.mean() if len(logs) == 2 else logs.median()
    margin = middle - logs
    order = margin.argsort(descending=True).tolist()
    for row in order:
        target, size, success = int(arms[row]), float(found.size[row]), float(found.success[row])
        yield Finding(
            rule=f"{method}.{family.name}", where=f"class {target}", score=float(margin[row]), target_classes=(target,),
            explanation=f"a {family.name} trigger of {size:.3g} {family.unit} sends {success:.0%} of the samples "
                        f"to class {target}; the median class needs {float(middle.exp()):.3g}",
            numbers={"size": size, "success": success})
    for row in order[:keep]:
        one = family.select(found.trigger, torch.tensor([row], device=found.size.device))
        yield Candidate(family, {k: v.detach() for k, v in one.items()}, all_to_one(int(arms[row]), classes),
                        float(found.size[row]), float(found.success[row]), method)
