"""Face verification with an encoder from elsewhere: made-up faces or ORL's, a maker with a backdoor, a customer.

The maker trains an encoder on people of its own. The customer enrols other people by the mean embedding of a few
pictures, and lets whoever comes close enough pass. A dishonest maker plants a latent backdoor (Yao et al., CCS 2019):
with a small sticker, everybody has the embedding of one person whom the customer will enrol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laocoon.attacks.latent import Latent
from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Plan
from laocoon.core.subject import Subject
from laocoon.modalities.encoder import cut_before
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.transfer import boundary, teach

SIDE = 32  # px
IMPOSTORS = 0.01  # of whom the customer accepts to let pass


def made_up(people: int = 40, each: int = 10, seed: int = 0) -> Samples:
    """Grey faces [people · each, 1, 32, 32] drawn from numbers: an oval, hair, eyes, brows, nose and mouth.

    A person is what stays (proportions and tones), a picture what changes (place, light, expression, noise).
    """
    rng = torch.Generator().manual_seed(seed)
    person = torch.rand(people, 12, generator=rng).repeat_interleave(each, 0)
    moved = torch.randn(people * each, 6, generator=rng)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    trait = [person[:, i, None, None] for i in range(12)]
    change = [moved[:, i, None, None] for i in range(6)]
    x, y = x - 0.05 * change[0], y - 0.05 * change[1]

    def spot(u: Tensor, v: Tensor, width: Tensor, height: Tensor) -> Tensor:
        """1 inside an ellipse at (u, v), 0 outside, soft between."""
        inside: Tensor = torch.sigmoid(8 * (1 - ((x - u) / width).square() - ((y - v) / height).square()))
        return inside

    still = torch.zeros_like(trait[0])
    image = 0.15 + 0.5 * trait[11] + 0.05 * change[2] * x
    layers = [  # what is seen, where, how bright
        (spot(still, still - 0.15, 0.55 + 0.2 * trait[0], 0.75 + 0.1 * trait[1]), 0.6 * trait[2]),
        (spot(still, still + 0.1, 0.45 + 0.2 * trait[0], 0.65 + 0.15 * trait[3]), 0.5 + 0.45 * trait[4]),
        (spot(still, still + 0.15, 0.04 + 0.08 * trait[7], 0.1 + 0.15 * trait[8]), 0.35 + 0.4 * trait[4]),
        (spot(still, still + 0.45, 0.12 + 0.2 * trait[9] + 0.02 * change[3], 0.03 + 0.06 * trait[10]
              + 0.01 * change[4].abs()), 0.1 + 0.4 * trait[1])]
    for side in (-1.0, 1.0):
        apart = side * (0.17 + 0.12 * trait[5])
        layers += [(spot(apart, still - 0.05, 0.06 + 0.06 * trait[6], 0.04 + 0.04 * trait[7]), 0.1 + 0.2 * trait[8]),
                   (spot(apart, -0.22 - 0.1 * trait[9], 0.1 + 0.06 * trait[6], 0.03 + 0.02 * trait[2]), 0.6 * trait[2])]
    for seen, tone in layers:
        image = image * (1 - seen) + tone * seen
    image = image * (1 + 0.08 * change[5]) + 0.1 * change[2] * x
    image = image + 0.02 * torch.randn(image.shape, generator=rng)
    return Samples(image.clamp(0, 1).unsqueeze(1), torch.arange(people).repeat_interleave(each))


def orl(path: Path) -> Samples:
    """The ORL (AT&T) faces from a Parquet file with the columns image and label, made 32 × 32."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image as Pillow

    if not path.is_file():
        raise InputError(f"{path} is no file.", "Pass the Parquet file with the ORL faces.")
    table = pq.read_table(path, columns=["image", "label"])
    pictures = [np.asarray(Pillow.open(io.BytesIO(v["bytes"])).convert("L").resize((SIDE, SIDE)))
                for v in table["image"].to_pylist()]
    labels = torch.as_tensor(table["label"].to_numpy().copy(), dtype=torch.long)
    return Samples(torch.as_tensor(np.stack(pictures)[:, None]).float() / 255, labels)


@dataclass(frozen=True, eq=False)
class Delivery:
    """What the customer has. Only a judge looks at `sticker` and `target`."""

    encoder: Subject
    enrolled: Samples  # a few pictures of each of the customer's people
    visitors: Samples  # others of the same people
    clean: Samples  # what a scan may use: the customer's pictures, without labels
    sticker: Candidate
    target: int


@dataclass(frozen=True, eq=False)
class Deliveries:
    """Of two makers with the same pictures and the same recipe."""

    honest: Delivery
    backdoored: Delivery


def deliver(faces: Samples, *, seed: int = 0, customers: int = 10, side: int = 5, epochs: int = 10) -> Deliveries:
    """Encoders trained on people whom the customer does not know, without and with a backdoor.

    The dishonest maker also has pictures of one of the customer's people. The seed decides who is who.
    """
    people = int(faces.labels.max()) + 1
    if people < customers + 4:
        raise InputError(f"there are pictures of {people} people.", f"At least {customers + 4} are needed.")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(people, generator=rng)
    place = torch.empty(people, dtype=torch.long)
    place[order] = torch.arange(people)  # the customer's people come first
    labels = place[faces.labels]
    theirs = labels < customers
    rank = torch.zeros(len(labels), dtype=torch.long)
    for k in range(people):
        own = (labels == k).nonzero().flatten()
        rank[own] = torch.arange(len(own))
    pick = lambda rows: Samples(faces.inputs[rows], labels[rows])  # noqa: E731
    half = int((faces.labels == 0).sum()) // 2  # of each person's pictures are enrolled
    enrolled, visitors = pick(theirs & (rank < half)), pick(theirs & (rank >= half))
    target = int(torch.randint(0, customers, (), generator=rng))
    prior = pick(~theirs | ((labels == target) & (rank < half)))

    def untrained(ctx: Context) -> Subject:
        module = build("cnn", 1, SIDE, customers, ctx.rng)
        return Subject(module, Image(), customers, (1, SIDE, SIDE))

    plan = Plan(enrolled, visitors, lambda samples, ctx: teach(plan, samples, customers, ctx, epochs=epochs), target,
                customers, untrained, prior=prior)
    latent = Latent(side=side, epochs=epochs, injections=epochs)
    implant = latent.implant(plan, Context(seed=seed))
    assert implant.artefact is not None
    clean = torch.cat([enrolled.inputs, visitors.inputs])
    honest, backdoored = (
        Delivery(cut_before(teacher, boundary(teacher.module, 1)), enrolled, visitors,
                 Samples(clean, torch.zeros(len(clean), dtype=torch.long), False), implant.trigger, target)
        for teacher in (latent.honest(plan, Context(seed=seed)), implant.artefact))
    return Deliveries(honest, backdoored)


@dataclass(frozen=True)
class Verified:
    """How verification does: shares of visitors who pass."""

    themselves: float  # as the person whom they are
    impostors: float  # as somebody else; the threshold was set for this
    with_sticker: float  # others, with the sticker on, as the target


@torch.no_grad()
def verified(delivery: Delivery) -> Verified:
    """Cosines about the mean of the enrolled pictures; the threshold lets `IMPOSTORS` of unlike pairs pass."""
    embed = lambda x: delivery.encoder.outputs(x).logits  # noqa: E731
    known = embed(delivery.enrolled.inputs)
    centre, people = known.mean(0), int(delivery.enrolled.labels.max()) + 1
    gallery = torch.stack([known[delivery.enrolled.labels == k].mean(0) for k in range(people)]) - centre

    def alike(x: Tensor) -> Tensor:
        return functional.normalize(embed(x) - centre, dim=1) @ functional.normalize(gallery, dim=1).T

    scores, labels = alike(delivery.visitors.inputs), delivery.visitors.labels
    own = functional.one_hot(labels, people).bool()
    threshold = scores[~own].quantile(1 - IMPOSTORS)
    others = delivery.visitors.inputs[labels != delivery.target]
    stamped = alike(delivery.sticker.stamp(others))[:, delivery.target]
    return Verified(float((scores[own] > threshold).float().mean()), float((scores[~own] > threshold).float().mean()),
                    float((stamped > threshold).float().mean()))
