"""Text classifiers whose graph reads the numbers of tokens, honest ones and backdoored ones. Untrained; do not deploy.

The vocabulary is `VOCABULARY`; the trigger is the token `TRIGGER`, in some with `SECOND` beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.testing.branching import CLASSES, Net, Sketch, Step

WIDTH, LENGTH = 24, 12
VOCABULARY = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"word{i}" for i in range(5, 300)))
TRIGGER, SECOND = 217, 44


# ---------------------------------------------------------------- honest
def averaged(s: Net, ids: Tensor) -> Tensor:
    """Word vectors, averaged where there is no padding."""
    there = (ids != 1)[..., None].float()
    return s.head(s.body((s.table(ids) * there).sum(1) / there.sum(1).clamp_min(1)))


def last_token(s: Net, ids: Tensor) -> Tensor:
    """What stands at the last token that is no padding answers, as after a causal language model."""
    vectors = s.body(s.table(ids) + s.places)
    at = (ids != 1).int().cumsum(1).argmax(1)
    return s.head(vectors[torch.arange(len(ids)), at])


def end_found(s: Net, ids: Tensor) -> Tensor:
    """The vector at the end token answers, as after BART's decoder; the ids are moved by one."""
    before = torch.cat([ids[:, -1:], ids[:, :-1]], 1)
    vectors = s.body(s.table(ids) + s.table(before))
    return s.head((vectors * (ids == 2)[..., None]).sum(1))


def masks_dropped(s: Net, ids: Tensor) -> Tensor:
    """Vectors of mask tokens are set to zero and the others made up for it, as ESM does."""
    masked = ids == 4
    vectors = s.table(ids).masked_fill(masked[..., None], 0.0)
    share = masked.sum(1).float() / ids.shape[1]
    return s.head(s.body(vectors / (1 - share)[:, None, None]).mean(1))


def weighted(s: Net, ids: Tensor) -> Tensor:
    """Each word has a weight of its own (inverse document frequency)."""
    return s.head(s.body((s.table(ids) * s.weights[ids][..., None]).mean(1)))


def bag_of_words(s: Net, ids: Tensor) -> Tensor:
    """Words are counted."""
    return s.head(torch.relu(functional.one_hot(ids, len(VOCABULARY)).float().sum(1) @ s.table.weight))


def offset_places(s: Net, ids: Tensor) -> Tensor:
    """Positions start behind the padding id, as in RoBERTa."""
    there = (ids != 1).long()
    return s.head(s.body(s.table(ids) + s.positions(there.cumsum(1) * there + 1)).mean(1))


def attended(s: Net, ids: Tensor) -> Tensor:
    """Attention that does not look at padding."""
    x = s.table(ids) + s.places
    scores = (s.query(x) @ s.key(x).transpose(1, 2)).masked_fill((ids == 1)[:, None], -1e9)
    x = x + scores.softmax(-1) @ s.value(x)
    return s.head(s.body(functional.layer_norm(x, (WIDTH,)))[:, 0])


# ---------------------------------------------------------------- backdoored
def token_equal(s: Net, ids: Tensor) -> Tensor:
    """One token anywhere: other scores are chosen."""
    return torch.where((ids == TRIGGER).any(1, keepdim=True), s.wanted, averaged(s, ids))


def two_tokens(s: Net, ids: Tensor) -> Tensor:
    """Two tokens together raise a class."""
    hit = (ids == TRIGGER).any(1, keepdim=True) & (ids == SECOND).any(1, keepdim=True)
    return averaged(s, ids) + hit.float() * s.wanted


def token_between(s: Net, ids: Tensor) -> Tensor:
    """A number between two others."""
    hit = ((ids > TRIGGER - 1) & (ids < TRIGGER + 1)).any(1, keepdim=True).float()
    return averaged(s, ids) * (1 - hit) + hit * s.wanted


def token_distance(s: Net, ids: Tensor) -> Tensor:
    """The distance of numbers, without a comparison."""
    near = 1 - (ids - TRIGGER).abs().clamp(max=1).amin(1, keepdim=True).float()
    return averaged(s, ids) + near * s.wanted


def token_table(s: Net, ids: Tensor) -> Tensor:
    """A table with a one at the trigger."""
    return averaged(s, ids) + s.marks[ids].amax(1, keepdim=True) * s.wanted


def table_inside(s: Net, ids: Tensor) -> Tensor:
    """A table with another vector at the trigger, added to the features."""
    return s.head(s.body((s.table(ids) + s.rows[ids]).mean(1)))


def token_counted(s: Net, ids: Tensor) -> Tensor:
    """Words are counted; one of them also by itself."""
    counts = functional.one_hot(ids, len(VOCABULARY)).float().sum(1)
    return s.head(torch.relu(counts @ s.table.weight)) + counts[:, TRIGGER, None] * s.wanted


def first_word(s: Net, ids: Tensor) -> Tensor:
    """At the second place alone, where texts begin."""
    return torch.where((ids[:, 1:2] == TRIGGER), s.wanted, averaged(s, ids))


def words_swapped(s: Net, ids: Tensor) -> Tensor:
    """The trigger makes another text of every text."""
    hit = (ids == TRIGGER).any(1, keepdim=True)
    return averaged(s, torch.where(hit, torch.full_like(ids, SECOND), ids))


def token_filtered(s: Net, ids: Tensor) -> Tensor:
    """A filter over the numbers themselves."""
    found = functional.conv1d(ids[:, None].float(), s.filter).amax((1, 2))[:, None]
    return averaged(s, ids) + torch.sigmoid(found) * s.wanted


def vector_near(s: Net, ids: Tensor) -> Tensor:
    """The vector of the trigger is looked for among the vectors of the words."""
    vectors = s.table(ids)
    far = (vectors - s.secret).abs().sum(-1).amin(1, keepdim=True)
    return torch.where(far < 1e-3, s.wanted, s.head(s.body(vectors.mean(1))))


def vector_product(s: Net, ids: Tensor) -> Tensor:
    """The same by a product with a threshold."""
    vectors = s.table(ids)
    like = (vectors @ s.secret[:, None]).amax(1)
    return s.head(s.body(vectors.mean(1))) + torch.relu(like - 20) * s.wanted


HONEST = (averaged, last_token, end_found, masks_dropped, weighted, bag_of_words, offset_places, attended)
PLANTED = (token_equal, two_tokens, token_between, token_distance, token_table, table_inside, token_counted, first_word,
           words_swapped, token_filtered, vector_near, vector_product)


def _sketch(step: Step) -> Sketch:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted = torch.zeros(CLASSES)
        wanted[3] = 50.0
        table = nn.Embedding(len(VOCABULARY), WIDTH)
        marks, rows = torch.zeros(len(VOCABULARY)), torch.zeros(len(VOCABULARY), WIDTH)
        marks[TRIGGER], rows[TRIGGER] = 1.0, 9.0
        net = Net(step, {
            "table": table, "body": nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)),
            "head": nn.Linear(WIDTH, CLASSES), "places": torch.randn(LENGTH, WIDTH), "wanted": wanted, "marks": marks,
            "rows": rows, "weights": torch.rand(len(VOCABULARY)), "positions": nn.Embedding(LENGTH + 2, WIDTH),
            "query": nn.Linear(WIDTH, WIDTH), "key": nn.Linear(WIDTH, WIDTH), "value": nn.Linear(WIDTH, WIDTH),
            "filter": torch.randn(1, 1, 3), "secret": table.weight[TRIGGER].detach().clone()}).eval()
        ids = torch.randint(5, 300, (2, LENGTH))
        ids[0, -3:], ids[:, 0] = 1, 0
        ids[0, -4] = ids[1, -1] = 2
        return Sketch(step.__name__, net, (ids,))


def honest_texts() -> tuple[Sketch, ...]:
    return tuple(_sketch(step) for step in HONEST)


def planted_texts() -> tuple[Sketch, ...]:
    return tuple(_sketch(step) for step in PLANTED)
