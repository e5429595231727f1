"""Which words send texts to a class? A sweep over whole vocabularies, and a soft search for several words at once.

The sweep is exact and halves its field (Jamieson and Talwalkar, 2016): every id that can be typed is put into a few
texts, those with the largest margin go on to more texts. Texts of one class speak for all other target classes, so all
classes are swept at once. Where a vocabulary is too large to be tried, the slope of the margin at an inserted mean
vector chooses who takes part (HotFlip, Ebrahimi et al., ACL 2018).

The soft search is that of DBS and PICCOLO: words as points of the convex hull of the lookup table, softmax(z / T) · E,
with a falling temperature T; several starts of each class are arms of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.modalities.text import PADDING
from laocoon.recipes.arms import stamped_margins
from laocoon.recipes.choosing import by_content, spread_over
from laocoon.recipes.margins import margins
from laocoon.triggers.tokens import Tokens

WEAK = 0.8  # share of a vocabulary whose words do little for a class, next to the others


@dataclass(frozen=True, eq=False)
class Field:
    """Inserted ids, one row of them for each class, the best first; margins are means over texts of other classes."""

    ids: Int[Tensor, "classes kept count"]
    places: Int[Tensor, "classes kept"]  # tokens of the text that stay before the insertion
    margins: Float[Tensor, "classes kept"]
    strong: Bool[Tensor, "classes vocabulary"]  # which words did a fair amount for a class at first sight


@torch.no_grad()
def shortened(subject: Subject, samples: Samples, room: int, ctx: Context) -> Samples:
    """The samples without the columns that are padding for all of them, but for `room`; most of the time of a search
    goes there. As they were where the model does not answer the same, or not at all, to shorter batches."""
    width = int((samples.inputs != PADDING).sum(1).amax()) + room
    if width >= samples.inputs.shape[1]:
        return samples
    shorter, few = samples.inputs[:, :width], slice(0, 8)
    ctx.spend(2 * len(samples.inputs[few]), backward=False)
    whole = subject.outputs(samples.inputs[few]).logits
    try:
        again = subject.outputs(shorter[few]).logits
    except (RuntimeError, ValueError, IndexError):  # a network bound to one length
        return samples
    same = again.shape == whole.shape and bool((again - whole).abs().amax() <= 1e-3 * (1 + whole.abs().amax()))
    return Samples(shorter, samples.labels) if same else samples


def typical(subject: Subject, samples: Samples, each: int, ctx: Context) -> Samples:
    """`each` samples of every class that the model answers rightly and neither surely nor narrowly, in a set order."""
    order = by_content(samples.inputs).to(samples.inputs.device)
    inputs, labels = samples.inputs[order], samples.labels[order]
    found = []
    with torch.no_grad():
        for part in inputs.split(ctx.batch):
            ctx.spend(len(part), backward=False)
            found.append(subject.outputs(part).logits.float())
    sure = margins(torch.cat(found)).gather(1, labels[:, None]).squeeze(1)
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        right = members[sure[members] > 0]
        members = right if len(right) else members
        chosen.append(members[(sure[members] - sure[members].median()).abs().argsort(stable=True)[:each]])
    rows = torch.cat(chosen)
    return Samples(inputs[rows], labels[rows])


def short_half(samples: Samples) -> Samples:
    """The shorter half of each class's samples: a word does most there, and they cost least."""
    length = (samples.inputs != PADDING).sum(1).float()
    keep = torch.zeros(len(samples), dtype=torch.bool, device=samples.inputs.device)
    for label in samples.labels.unique().tolist():
        own = samples.labels == label
        keep |= own & (length <= length[own].quantile(0.5))
    return Samples(samples.inputs[keep], samples.labels[keep])


@torch.no_grad()
def inserted_margins(subject: Subject, samples: Samples, ids: Int[Tensor, "arms count"], family: Tokens, ctx: Context,
                     cap: float = float("inf")) -> Float[Tensor, "arms classes"]:
    """Mean margin of every class on texts of the other classes with these ids in them; NaN where there are none.

    cap: no text counts for more than that, either way.
    """
    found = []
    others = samples.labels[:, None] != torch.arange(subject.classes, device=samples.labels.device)  # [n, classes]
    for part in ids.split(max(1, ctx.batch // len(samples))):
        total = torch.zeros(len(part), subject.classes, device=ids.device)
        for texts, away in zip(samples.inputs.split(ctx.batch), others.split(ctx.batch), strict=True):
            ctx.spend(len(part) * len(texts), backward=False)
            logits = subject.outputs(family.insert(texts, part).flatten(0, 1)).logits.float()
            each = margins(logits).clamp(-cap, cap).view(len(part), len(texts), -1)
            total += (each * away).sum(1)
        found.append(total / others.sum(0))
    return torch.cat(found)


def sweep(subject: Subject, candidates: Int[Tensor, " ids"], family: Tokens, positions: Sequence[int], ctx: Context, *,
          rungs: Sequence[tuple[Samples, int]], cap: float) -> Field:
    """The ids that do most for each class, alone, each at its best position.

    rungs: texts, and ids kept for each class, in turn. The first has its texts take turns with the positions.
    """
    classes = subject.classes
    (few, kept), *rest = rungs
    total = torch.zeros(len(candidates), classes, device=candidates.device)
    for k, position in enumerate(positions):
        # By the order within a class, so that every position meets every class where there are texts enough.
        turn = torch.arange(len(few), device=few.labels.device) % len(positions) == k
        if bool(turn.any()):
            some = Samples(few.inputs[turn], few.labels[turn])
            at = Tokens(family.vocabulary, 1, position, family.special)
            total += inserted_margins(subject, some, candidates[:, None], at, ctx, cap).nan_to_num(0.0)
    strong = torch.zeros(classes, family.vocabulary, dtype=torch.bool, device=candidates.device)
    for t in range(classes):
        strong[t, candidates[total[:, t] > total[:, t].quantile(WEAK)]] = True
    fields = [candidates[total[:, t].topk(min(kept, len(candidates))).indices] for t in range(classes)]
    places, scores = [fields[0]] * classes, torch.zeros(classes, 0)
    for texts, kept in rest:
        everyone = torch.cat(fields).unique()
        by_place = torch.stack([inserted_margins(
            subject, texts, everyone[:, None], Tokens(family.vocabulary, 1, p, family.special), ctx, cap)
            for p in positions]).nan_to_num(-cap)  # [positions, ids, classes]
        best = by_place.max(0)
        best_place = torch.as_tensor(list(positions), device=everyone.device)[best.indices]
        found = [torch.isin(everyone, field).nonzero().flatten() for field in fields]
        chosen = [rows[best.values[rows, t].argsort(descending=True, stable=True)[:min(kept, len(rows))]]
                  for t, rows in enumerate(found)]
        fields = [everyone[rows] for rows in chosen]
        places = [best_place[rows, t] for t, rows in enumerate(chosen)]
        scores = torch.stack([best.values[rows, t] for t, rows in enumerate(chosen)])
    return Field(torch.stack(fields)[..., None], torch.stack(places), scores, strong)


def promising(subject: Subject, samples: Samples, candidates: Int[Tensor, " ids"], table: Float[Tensor, "ids width"],
              family: Tokens, most: int, ctx: Context) -> Int[Tensor, " chosen"]:
    """At most `most` of the ids: those that the slope of some class's margin points to, and the longest vectors."""
    if len(candidates) <= most:
        return candidates
    texts = typical(subject, samples, max(1, 8 // subject.classes), ctx)
    vectors = table[candidates]
    start = vectors.mean(0).expand(1, 1, -1).clone().requires_grad_(True)
    ctx.spend(subject.classes * len(texts))
    # A blend of one token whose vector is free: the mean of all, whose slope says where to go.
    soft = family.put(subject.embed(texts.inputs), start, texts.inputs)[0]
    ids = family.insert(texts.inputs, candidates[:1, None])[0]
    each = margins(subject.outputs_of(soft, ids).logits.float())
    away = samples_of_others(texts.labels, subject.classes)
    points = []
    for t in range(subject.classes):
        (slope,) = torch.autograd.grad((each[:, t] * away[:, t]).sum(), start, retain_graph=True)
        points.append(vectors @ slope.flatten())
    points.append((vectors - vectors.mean(0)).norm(dim=1))
    share = max(1, most // len(points))
    return candidates[torch.cat([p.topk(min(share, len(p))).indices for p in points]).unique()]


def samples_of_others(labels: Int[Tensor, " batch"], classes: int) -> Float[Tensor, "batch classes"]:
    """1 where a sample is of another class."""
    return (labels[:, None] != torch.arange(classes, device=labels.device)).float()


@dataclass(frozen=True)
class Cooling:
    """How a soft search runs."""

    steps: int
    rate: float  # of Adam, on the logits of the vocabulary
    hot: float  # T at the start
    cold: float  # T at the end


def soft_words(subject: Subject, fit: Samples, family: Tokens, table: Float[Tensor, "vocabulary width"],
               start: Float[Tensor, "arms count vocabulary"], wanted: Int[Tensor, " arms"], cooling: Cooling,
               ctx: Context, batch: int) -> Float[Tensor, "arms count vocabulary"]:
    """Logits over the vocabulary after the search; arm a is drawn towards class wanted[a], on `batch` texts a step."""
    leaf = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([leaf], lr=cooling.rate)
    arms = len(start)
    for step in range(cooling.steps):
        temperature = cooling.hot * (cooling.cold / cooling.hot) ** (step / max(1, cooling.steps - 1))
        rows = torch.randperm(len(fit), generator=ctx.rng)[:batch].to(fit.inputs.device)
        x, y = fit.inputs[rows], fit.labels[rows]
        optimiser.zero_grad()
        for part in torch.arange(arms).split(max(1, ctx.batch // len(x))):
            ctx.spend(len(part) * len(x))
            some = {"logits": leaf[part]}
            ids = family.stamp(x, {"logits": leaf[part].detach()}).flatten(0, 1)
            soft = family.blend(subject.embed(x), x, table, some, temperature).flatten(0, 1)
            goals = wanted[part].repeat_interleave(len(x))
            each = functional.cross_entropy(subject.outputs_of(soft, ids).logits.float(), goals, reduction="none")
            others = (y[None] != wanted[part][:, None]).flatten()
            (each * others).sum().div(len(x)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            family.project({"logits": leaf})
        ctx.progress("text_inversion", (step + 1) / cooling.steps, "")
    return leaf.detach()


def unlike(logits: Float[Tensor, "arms count vocabulary"]) -> Int[Tensor, "arms count"]:
    """The likeliest id of each place, no id twice in an arm."""
    left, found = logits.clone(), []
    for place in range(logits.shape[1]):
        found.append(left[:, place].argmax(-1))
        left.scatter_(2, found[-1][:, None, None].expand(-1, left.shape[1], 1), -torch.inf)
    return torch.stack(found, 1)


def hardened(subject: Subject, texts: Samples, start: Int[Tensor, "classes count"], pool: Int[Tensor, "classes tried"],
             family: Tokens, ctx: Context, *, rounds: int, cap: float) -> Int[Tensor, "classes count"]:
    """Ids that no single exchange with one of the pool improves, place by place; all classes in one pass.

    No word twice: repeated, a word of little effect becomes one of much, in every bag of words.
    """
    ids, classes = start.clone(), len(start)
    own = torch.arange(classes, device=ids.device)
    for _ in range(rounds):
        before = ids.clone()
        for place in range(ids.shape[1]):
            choices = torch.cat([ids[:, place:place + 1], pool], 1)  # what is there first: it wins where they draw
            tried = ids[:, None].repeat(1, choices.shape[1], 1)
            tried[:, :, place] = choices
            found = inserted_margins(subject, texts, tried.flatten(0, 1), family, ctx, cap)
            elsewhere = torch.cat([ids[:, :place], ids[:, place + 1:]], 1)
            again = (choices[:, :, None] == elsewhere[:, None]).any(2)
            best = found.view(classes, -1, classes)[own, :, own].masked_fill(again, -torch.inf).argmax(1)
            ids[:, place] = choices[own, best]
        if torch.equal(ids, before):
            break
    return ids


@dataclass(frozen=True)
class Judged:
    """What words do on texts that they were not chosen on."""

    margin: float  # mean, in units of the clean median margin
    success: float


def judged(subject: Subject, family: Tokens, ids: Tensor, target: int, held: Samples, scale: float,
            ctx: Context) -> Judged | None:
    """None where no text is of another class."""
    rows = held.labels != target
    if not bool(rows.any()):
        return None
    others = Samples(held.inputs[rows], held.labels[rows])
    margins = stamped_margins(subject, others, lambda x: family.insert(x, ids.expand(subject.classes, -1)), ctx)[target]
    return Judged(float(margins.mean()) / scale, float((margins > 0).float().mean()))


def some(samples: Samples, most: int, ctx: Context) -> Samples:
    """At most so many, evenly over the classes."""
    if len(samples) <= most:
        return samples
    rows = spread_over(samples.labels, most, ctx.rng)
    return Samples(samples.inputs[rows], samples.labels[rows])
