"""Method pages are made from the cards, one each, and links between documents lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gen_methods", ROOT / "docs" / "gen_methods.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["gen_methods"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


GENERATOR = generator()
METHODS = [(folder, method) for folder, _, _, methods in GENERATOR.installed() for method in methods]


@pytest.mark.parametrize(("folder", "method"), METHODS, ids=[m.card.name for _, m in METHODS])
def test_a_page_per_method(folder: str, method: type) -> None:
    page = GENERATOR.method_page(method, folder)
    card = method.card  # type: ignore[attr-defined]
    assert page.path == f"methods/{folder}/{card.name}.md"
    assert f"# {card.name}\n" in page.text and card.url in page.text and card.misses in page.text
    for field in fields(method):
        if field.default is not MISSING:
            assert f"| `{field.name}` |" in page.text


def test_every_detector_says_what_it_misses() -> None:
    for folder, method in METHODS:
        if folder == "detectors":
            assert method.card.misses.strip(), f"{method.card.name} claims to miss nothing"


def test_the_index_lists_every_method() -> None:
    index = GENERATOR.index_page().text
    for folder, method in METHODS:
        assert f"[{method.card.name}]({folder}/{method.card.name}.md)" in index


def test_comments_become_meanings() -> None:
    from laocoon.detectors.model.text_inversion import TextInversion

    assert "tokens in the trigger" in GENERATOR.meanings(TextInversion)["words"]


def test_the_table_of_passes_is_measured() -> None:
    table = GENERATOR.passes_table(quick=True)
    row = next(line for line in table.splitlines() if "text_inversion" in line)
    assert float(row.split("|")[-2].replace(",", "")) > 100
    assert "<!-- passes -->" in (ROOT / "docs" / "budget.md").read_text()


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    made = {(ROOT / "docs" / p.path).resolve() for p in GENERATOR.pages()}
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            path = (page.parent / target).resolve()
            assert path.exists() or path in made, f"{page.name} links to {target}, which is not there"


def test_navigation_names_pages_that_exist() -> None:
    for name in re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M):
        assert (ROOT / "docs" / name).exists(), f"mkdocs.yml names {name}"
