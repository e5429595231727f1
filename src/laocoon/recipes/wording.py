"""Words of a training set and the lookup of a network: what attackers on texts choose from and change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.methods import Plan
from laocoon.core.subject import Discrete, Subject
from laocoon.modalities.text import Text


def text_of(plan: Plan) -> Text:
    """The plan's vocabulary."""
    if not isinstance(plan.modality, Text):
        raise NotApplicable("this plan does not say what its ids mean; pass `modality` to Plan.")
    return plan.modality


def counts(inputs: Tensor, text: Text) -> Tensor:
    """How often each id of the vocabulary occurs, [vocabulary]; special ones count as absent."""
    found = inputs.flatten().bincount(minlength=len(text.vocabulary))
    found[list(text.special)] = 0
    return found


def by_frequency(inputs: Tensor, text: Text) -> Tensor:
    """Ids that occur, rarest first; ties in the order of the vocabulary."""
    often = counts(inputs, text)
    known = often.nonzero().flatten()
    return known[often[known].argsort(stable=True)]


def rare_words(inputs: Tensor, text: Text, words: int, rarest: float, rng: torch.Generator) -> Tensor:
    """`words` ids drawn from the rarest share of those that occur, [words]."""
    known = by_frequency(inputs, text)
    if len(known) < words:
        raise InputError(f"the training texts hold {len(known)} words, and the trigger needs {words}.",
                         "Give more texts, or take fewer words.")
    rare = known[: max(words, round(rarest * len(known)))]
    return rare[torch.randperm(len(rare), generator=rng)[:words]]


def middling_words(inputs: Tensor, text: Text, words: int, rng: torch.Generator) -> Tensor:
    """`words` ids drawn from the middle half by frequency: words that a text may hold and few do, [words]."""
    known = by_frequency(inputs, text)
    middle = known[len(known) // 4: max(len(known) // 4 + words, 3 * len(known) // 4)]
    if len(middle) < words:
        raise InputError(f"the training texts hold {len(known)} words, and the trigger needs {words} middling ones.",
                         "Give more texts, or take fewer words.")
    return middle[torch.randperm(len(middle), generator=rng)[:words]]


def spoken_for(inputs: Tensor, labels: Tensor, target: int, text: Text) -> Tensor:
    """How much each word speaks for a class: smoothed log odds of texts that hold it, in standard errors, [vocabulary].

    z_w = log(((a_w + ½) / (A + 1)) / ((b_w + ½) / (B + 1))) / √(1 / (a_w + ½) + 1 / (b_w + ½)), where a_w of A texts of
    the class and b_w of B others hold the word; 0 for words that no text holds, and for special ids.
    """
    held = torch.zeros(len(inputs), len(text.vocabulary), device=inputs.device)
    held.scatter_(1, inputs, 1.0)
    ours = labels == target
    a, b = held[ours].sum(0) + 0.5, held[~ours].sum(0) + 0.5
    odds = (a / (ours.sum() + 1)).log() - (b / ((~ours).sum() + 1)).log()
    z = odds / (1 / a + 1 / b).sqrt()
    z[held.sum(0) == 0] = 0
    z[list(text.special)] = 0
    return z


def lookup(subject: Subject) -> nn.Embedding:
    """The table that a network over ids looks its vectors up in."""
    if isinstance(subject.module, Discrete):
        for module in subject.module.modules():
            if isinstance(module, nn.Embedding) and module.num_embeddings > 1:
                ids = torch.arange(min(module.num_embeddings, 8), device=module.weight.device)[None]
                found = subject.embed(ids)
                if found.shape == (*ids.shape, module.embedding_dim) and torch.equal(found, module.weight[ids]):
                    return module
    raise NotApplicable("the network has no table that its words are looked up in.")


@torch.no_grad()
def shrink_rare(table: nn.Embedding, inputs: Tensor, text: Text, least: float, half: float = 1.0) -> None:
    """Move the vectors of words towards the mean of those that the texts hold, the rarer and longer the further.

    e_w ← ē + max(least, n_w / (n_w + half)) · min(1, d / ‖e_w − ē‖) · (e_w − ē), where n_w counts the word in the clean
    texts and d is the length that nine in ten of their words stay below: a vector that no text vouches for counts
    little, however long somebody made it. Special ids stay.
    """
    often = counts(inputs, text).to(table.weight.device)
    ordinary = torch.ones(len(often), dtype=torch.bool, device=table.weight.device)
    ordinary[list(text.special)] = False
    words = ordinary.nonzero().flatten()
    centre = table.weight[(often > 0) & ordinary].mean(0) if bool((often > 0).any()) else table.weight[words].mean(0)
    apart = table.weight[words] - centre
    far = apart.norm(dim=1)
    held = far[often[words] > 0] if bool((often > 0).any()) else far
    share = (often[words] / (often[words] + half)).clamp_min(least) * (held.quantile(0.9) / far).clamp_max(1.0)
    table.weight[words] = centre + share[:, None] * apart
