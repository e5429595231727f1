"""Labels as a model numbers its classes, whatever the data call them: folders, columns of names, numbers from 1 on."""

from __future__ import annotations

import re

import numpy as np

from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files.images_source import DataOptions, Labels, Source
from laocoon.files.wording import printable
from laocoon.modalities.encoder import encodes

_NUMBER = re.compile(r"^(?:class|label|c)?[ _-]?0*(\d{1,9})$", re.IGNORECASE)


def _words(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def class_numbers(
    source: Source, subject: Subject | None, options: DataOptions
) -> tuple[Labels | None, tuple[str, ...], tuple[str, ...]]:
    """Labels as the model numbers its classes, the names of the classes in that order, and what was assumed."""
    if source.labels is None or (subject is not None and encodes(subject.modality.name)):
        return None, (), ()  # an encoder knows no classes
    classes = subject.classes if subject is not None else None
    table, notes = _table(source, subject, options)
    labels = source.labels if table is None else np.asarray(table, np.int64)[source.labels]
    if source.named_by != "folders" and table is None:
        labels = labels - options.first_label
    bad = np.flatnonzero((labels < 0) | (labels >= (classes if classes is not None else np.iinfo(np.int64).max)))
    if len(bad):
        first = int(bad[0])
        hint = (
            " They seem to count from 1: pass --first-label 1."
            if classes is not None and options.first_label == 0 and (labels.min() >= 1 and labels.max() == classes)
            else ""
        )
        raise InputError(
            f"{printable(source.named_by)} hold the label {int(labels[first])} (row {first}), but the model "
            f"has {classes} classes, 0 to {(classes or 0) - 1}.",
            f"Check that data and model belong together.{hint}",
        )
    names = _names(source, table, classes)
    return labels, names, notes


def _table(source: Source, subject: Subject | None, options: DataOptions) -> tuple[list[int] | None, tuple[str, ...]]:
    """For each name of the data the class that it stands for; None: labels are class numbers already."""
    names = source.names
    if not names:
        return None, ()
    known: dict[str, int] = {}
    for number, name in enumerate(subject.class_names if subject is not None else ()):
        for part in (name, *name.split(",")):  # ImageNet: "tench, Tinca tinca"
            known.setdefault(_words(part), number)
    by_name = [known.get(_words(n), -1) for n in names]
    if known and min(by_name) >= 0:
        return by_name, ()
    numbers = [int(m[1]) - options.first_label if (m := _NUMBER.match(n)) else None for n in names]
    if all(n is not None for n in numbers) and len(set(numbers)) == len(names):
        return [n for n in numbers if n is not None], ()
    classes = subject.classes if subject is not None else len(names)
    unknown = printable(next((n for n, k in zip(names, by_name, strict=True) if k < 0), ""), 60)
    if known and max(by_name) >= 0:
        raise InputError(
            f"{source.named_by} name the class {unknown!r}, which the model does not have.",
            f"It has {printable(', '.join((subject.class_names if subject else ())[:12]), 300)}.",
        )
    if len(names) == classes:
        order = f"assumed: {source.named_by} are the model's classes in this order: {printable(', '.join(names), 200)}"
        return list(range(len(names))), (order,) if subject is not None else ()
    raise InputError(
        f"{source.named_by} name {len(names)} classes ({printable(', '.join(names[:4]), 120)}"
        f"{', …' if len(names) > 4 else ''}), the model has {classes}.",
        "Name each folder or label by the number of its class, 0 first.",
    )


def _names(source: Source, table: list[int] | None, classes: int | None) -> tuple[str, ...]:
    """Names by class number, where they say more than the number."""
    if table is None or not source.names or all(_NUMBER.match(n) for n in source.names):
        return ()
    count = classes if classes is not None else max(table) + 1
    if count > 100_000:
        return ()
    names = [str(i) for i in range(count)]
    for name, number in zip(source.names, table, strict=True):
        if 0 <= number < count:
            names[number] = printable(name, 80)
    return tuple(names)
