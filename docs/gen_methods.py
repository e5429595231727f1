"""MkDocs hook: one page per method and the tables of methods, made from the Cards, so that nothing is written twice.

A page's parameters, their defaults and their meanings are the fields of the method's dataclass and the comments
beside them.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from laocoon.core.card import Card
from laocoon.core.catalogue import classes
from laocoon.core.methods import Attack, Certifier, DataDetector, Detector, Guard, Repair, Trainer

# package, folder of the pages, title, contract, what they do
KINDS: tuple[tuple[str, str, str, type, str], ...] = (
    ("detectors.model", "detectors", "Detectors", Detector,
     "examine a model; `laocoon scan` runs those of the model's modality"),
    ("detectors.data", "data_detectors", "Data detectors", DataDetector,
     "judge the samples of a training set; `laocoon sift` runs them"),
    ("guards", "guards", "Guards", Guard, "judge requests at run time"),
    ("repairs", "repairs", "Repairs", Repair, "remove a backdoor from a copy of a model"),
    ("trainers", "trainers", "Trainers", Trainer, "train on data that may hold poison"),
    ("certifiers", "certifiers", "Certifiers", Certifier, "prove a statement about a model, and say what it is"),
    ("attacks", "attacks", "Attacks", Attack,
     "plant backdoors for measuring defences: the lab and the positive control only"),
)
PACKAGE = Path(__file__).parent.parent / "src" / "laocoon"


@dataclass(frozen=True)
class Page:
    path: str
    title: str
    text: str


def meanings(method: type) -> dict[str, str]:
    """The comment beside each field, by name."""
    lines = inspect.getsourcelines(method)[0]
    source = "".join(lines)
    found = {}
    for node in ast.parse(inspect.cleandoc("\n" + source)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            line = lines[(node.end_lineno or 1) - 1]
            found[node.target.id] = line.split("#", 1)[1].strip() if "#" in line else ""
    return found


def parameters(method: type) -> str:
    """A table of the method's fields."""
    comments: dict[str, str] = {}
    for parent in reversed(method.__mro__):
        if "__dataclass_fields__" in vars(parent):
            comments |= meanings(parent)
    rows = [f"| `{f.name}` | `{f.type}` | `{f.default!r}` | {_cell(comments.get(f.name, ''))} |"
            for f in fields(method) if f.default is not MISSING]
    if not rows:
        return "It has no parameters."
    body = "\n".join(rows)
    return f"| parameter | type | default | meaning |\n|---|---|---|---|\n{body}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def method_page(method: Any, folder: str) -> Page:
    card: Card = method.card
    doc = inspect.getdoc(inspect.getmodule(method)) or ""
    needs = ", ".join(sorted(n.value for n in card.needs)) or "nothing beyond the model"
    parts = [f"# {card.name}", card.summary[:1].upper() + card.summary[1:].rstrip(".") + ".",
             f"**Paper:** [{card.paper}]({card.url})  \n**Modalities:** {', '.join(sorted(card.modalities))}  \n"
             f"**Needs:** {needs}"]
    if card.misses:
        parts.append(f'!!! warning "What it is known to miss"\n    {card.misses}')
    parts += ["## How it works", doc, "## Parameters", parameters(method)]
    if card.fails:
        known = "\n".join(f"- `{check}`: {reason}" for check, reason in sorted(card.fails.items()))
        parts += ["## Contract checks that it is known to fail", known]
    return Page(f"methods/{folder}/{card.name}.md", card.name, "\n\n".join(parts) + "\n")


def installed() -> list[tuple[str, str, str, list[Any]]]:
    """Kind by kind: folder, title, what they do, methods."""
    return [(folder, title, what, list(classes(f"laocoon.{package}", kind)))
            for package, folder, title, kind, what in KINDS
            if (PACKAGE / package.replace(".", "/") / "__init__.py").is_file()]


def index_page() -> Page:
    parts = ["# Methods", "One published method per file; these pages are made from the code. "
             "A method that is not here can be [plugged in](../plugins.md)."]
    for folder, title, what, methods in installed():
        rows = "\n".join(f"| [{m.card.name}]({folder}/{m.card.name}.md) | {', '.join(sorted(m.card.modalities))} | "
                         f"{_cell(m.card.summary.rstrip('.'))} | {_cell(m.card.misses)} |" for m in methods)
        parts += [f"## {title}", f"They {what}.",
                  f"| method | modalities | what it looks for | what it misses |\n|---|---|---|---|\n{rows}"]
    return Page("methods/index.md", "Methods", "\n\n".join(parts) + "\n")


def pages() -> list[Page]:
    return [index_page(), *(method_page(m, folder) for folder, _, _, methods in installed() for m in methods)]


def passes_table(*, quick: bool = False) -> str:
    """What each detector spends on the twin of its modality, measured; `quick` under its card's quick parameters."""
    from laocoon.core.context import Context
    from laocoon.testing.twins import twins

    rows = []
    for method in classes("laocoon.detectors", Detector):  # type: ignore[type-abstract]
        for modality in sorted(method.card.modalities):
            case = twins(modality).planted
            report = method(**(method.card.quick if quick else {})).examine(case, Context())
            samples = 0 if case.fit is None else len(case.fit)
            said = f"{report.spent:,.0f}" if not report.skipped else f"skipped: {report.reason}"
            rows.append(f"| [{method.card.name}](methods/detectors/{method.card.name}.md) | {modality} | "
                        f"{case.subject.classes} | {samples} | {said} |")
    head = "| method | modality | classes | clean samples | passes, default parameters, no limit |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


# The hook's entry points; MkDocs calls them by name.


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return markdown.replace("<!-- passes -->", passes_table()) if "<!-- passes -->" in markdown else markdown


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    section: list[Any] = [{"All methods": "methods/index.md"}]
    for folder, title, _, methods in installed():
        section.append({title: [{m.card.name: f"methods/{folder}/{m.card.name}.md"} for m in methods]})
    config["nav"].insert(-1, {"Methods": section})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page in pages():
        files.append(File.generated(config, page.path, content=page.text))
    return files
