"""What a network makes of many samples, layer by layer: read once, in chunks, kept small enough for memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.recipes.sites import PROBE, Penultimate, Site, head_of, noise_sites, reading, survey

FARTHEST = 1000.0  # standard deviations that an extreme may count
WIDEST = 2048  # features of a layer that are kept; wider layers are sketched


def last_layer(subject: Subject, inputs: Tensor, ctx: Context) -> Penultimate:
    """Penultimate features [n, width] (means over positions) and logits [n, classes] of samples, on the processor."""
    example = inputs[:PROBE].to(ctx.device)
    site = head_of(subject, survey(subject, example, ctx), example, ctx)
    features, logits = [], []
    with reading(subject, site) as seen, torch.no_grad():
        for chunk in inputs.split(ctx.batch):
            ctx.spend(len(chunk), backward=False)
            logits.append(subject.outputs(chunk.to(ctx.device)).logits.float().cpu())
            features.append(sketch(site.pooled(seen[site]).float()).cpu())
    return Penultimate(torch.cat(features), torch.cat(logits))


def sketch(features: Tensor, widest: int = WIDEST) -> Tensor:
    """[n, width] to [n, at most `widest`]: count sketch (Charikar et al., 2002), which keeps inner products on average.

    Each feature is added, with a random sign, to one of `widest` sums; always the same ones.
    """
    width = features.shape[1]
    if width <= widest:
        return features
    rng = torch.Generator().manual_seed(0)
    place = torch.randint(0, widest, (width,), generator=rng).to(features.device)
    sign = (torch.randint(0, 2, (width,), generator=rng) * 2 - 1).to(features)
    return features.new_zeros(len(features), widest).index_add_(1, place, features * sign)


@dataclass(frozen=True, eq=False)
class Extremes:
    """How far each channel of each layer goes from its mean on each sample, in its own standard deviations."""

    # [n, columns] in half precision: for each layer in turn, the largest and then the smallest value of every channel.
    values: Tensor
    widths: tuple[int, ...]  # columns of each layer, in order of execution

    def up_to(self, layers: int) -> Tensor:
        """The columns of the first so many layers."""
        return self.values[:, : sum(self.widths[:layers])]


def extremes(subject: Subject, inputs: Tensor, ctx: Context, most: int = 4096) -> Extremes:
    """Largest and smallest activation of each channel before the head, standardised by the channel's own moments.

    The moments are those of the samples themselves (the first thousand or so): a batch norm's are no others, and
    networks without one are served alike. Channels are put together in threes, fours … where all of them would make
    more than `most` columns: the larger of the large, the smaller of the small.
    """
    example = inputs[:PROBE].to(ctx.device)
    sites = survey(subject, example, ctx)
    places = noise_sites(sites, head_of(subject, sites, example, ctx))
    each = max(1, most // (2 * len(places)))
    moments: dict[Site, Tensor] = {}  # count, sum and sum of squares of each channel
    found: list[Tensor] = []
    with reading(subject, *places) as seen, torch.no_grad():
        stride = max(1, len(inputs) // 1024)
        for part in inputs[::stride][:1024].split(ctx.batch):
            _pass(subject, part, ctx)
            for site in places:
                flat = seen[site].movedim(site.axis, -1).flatten(0, -2).float()
                sums = torch.stack([torch.full_like(flat[0], len(flat)), flat.sum(0), flat.square().sum(0)])
                moments[site] = sums if site not in moments else moments[site] + sums
        for part in inputs.split(ctx.batch):
            _pass(subject, part, ctx)
            columns = []
            for site in places:
                count, total, square = moments[site]
                mean = total / count
                spread = (square / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
                maps = seen[site].movedim(site.axis, 1).flatten(2).float() if seen[site].dim() > 2 else (
                    seen[site].unsqueeze(-1).float())
                high, low = ((edge - mean) / spread for edge in (maps.amax(2), maps.amin(2)))
                columns += [_grouped(high, each), -_grouped(-low, each)]
            found.append(torch.cat(columns, 1).clamp(-FARTHEST, FARTHEST).half().cpu())
    return Extremes(torch.cat(found), tuple(2 * min(s.channels, each) for s in places))


def _pass(subject: Subject, part: Tensor, ctx: Context) -> None:
    ctx.spend(len(part), backward=False)
    subject.outputs(part.to(ctx.device))


def _grouped(values: Tensor, most: int) -> Tensor:
    """[n, channels] to [n, at most `most`]: the largest of neighbouring channels."""
    return values if values.shape[1] <= most else functional.adaptive_max_pool1d(values[:, None], most)[:, 0]


def label_losses(subject: Subject, inputs: Tensor, labels: Tensor, ctx: Context) -> Tensor:
    """Cross entropy of each sample's own label, [n], on the processor; the model at rest."""
    found, at = [], 0
    with torch.no_grad():
        for part in inputs.split(ctx.batch):
            ctx.spend(len(part), backward=False)
            wanted = labels[at: at + len(part)].to(ctx.device)
            found.append(functional.cross_entropy(subject.outputs(part.to(ctx.device)).logits.float(), wanted,
                                                  reduction="none").cpu())
            at += len(part)
    return torch.cat(found)
