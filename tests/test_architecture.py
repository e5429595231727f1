"""The shape of the house: imports run downhill, siblings do not know each other, names match, nothing leaks."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from laocoon.core.catalogue import classes
from laocoon.core.methods import Attack, Certifier, DataDetector, Detector, Guard, Repair, Trainer

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "laocoon"

# From the cellar up. What stands on one line may not import from its neighbours on that line, nor from above; the
# second line is one floor of three rooms whose doors are open (a trigger knows its modality), but never in a circle.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("modalities", "triggers", "files"),
    ("recipes",),
    ("attacks", "detectors", "guards", "repairs", "trainers", "certifiers"),
    ("verdict",),
    ("trust", "render"),
    ("lab",),
    ("testing",),
    ("serve",),
    ("cli",),  # starts the service
)
OPEN = FLOORS[1]
METHODS = FLOORS[3]
DEFENCES = {"detectors", "guards", "repairs", "trainers", "certifiers", "verdict"}
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


@cache
def sources() -> dict[str, ast.Module]:
    """Dotted module name to syntax tree."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.AST, *, lazily: bool) -> Iterator[str]:
    """Modules of Laocoon that a module names; `lazily`: also those inside functions. Type-only ones never count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazily:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "laocoon")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            if (node.module or "").split(".")[0] == "laocoon":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in sources() else str(node.module)
        else:
            yield from imports(node, lazily=lazily)


def floor(module: str) -> str:
    """The floor that a module stands on: the second part of its name; empty for the package's own files."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else ""


def modules() -> list[str]:
    return sorted(m for m in sources() if floor(m))


def test_every_package_has_a_floor() -> None:
    packages = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert packages <= set(LEVEL), f"{packages - set(LEVEL)} stand on no floor: add them to FLOORS and ARCHITECTURE.md"


@pytest.mark.parametrize("module", modules())
def test_imports_run_downhill(module: str) -> None:
    here = floor(module)
    for other in imports(sources()[module], lazily=True):
        there = floor(other)
        if there and there != here and not {here, there} <= set(OPEN):
            assert LEVEL[there] < LEVEL[here], f"{module} ({here}) imports {other} ({there}), which is not below it"


@pytest.mark.parametrize("module", [m for m in modules() if floor(m) in METHODS])
def test_methods_do_not_know_each_other(module: str) -> None:
    for other in imports(sources()[module], lazily=True):
        assert floor(other) not in METHODS, f"{module} imports its sibling {other}; what both need is a recipe"


@pytest.mark.parametrize("module", [m for m in modules() if floor(m) in DEFENCES])
def test_a_defence_never_reaches_an_attack_or_the_lab(module: str) -> None:
    """Not even through something that it imports."""
    seen, waiting = set(), [module]
    while waiting:
        for other in imports(sources()[waiting.pop()], lazily=True):
            if other not in seen and other in sources():
                assert floor(other) not in {"attacks", "lab"}, f"{module} reaches {other}"
                seen.add(other)
                waiting.append(other)


def test_no_import_cycles() -> None:
    graph = {m: {o for o in imports(t, lazily=False) if o in sources() and o != m} for m, t in sources().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join([*path[path.index(module):], module])}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_packages_are_empty() -> None:
    """Imports name the defining module; a package that re-exports makes cycles."""
    for path in SOURCE.rglob("__init__.py"):
        if path.parent != SOURCE:
            assert not path.read_text().strip(), f"{path.relative_to(ROOT)} is not empty"


@pytest.mark.parametrize(("package", "kind"), [
    ("attacks", Attack), ("detectors/model", Detector), ("detectors/data", DataDetector), ("guards", Guard),
    ("repairs", Repair), ("trainers", Trainer), ("certifiers", Certifier)])
def test_module_is_named_like_its_card(package: str, kind: type) -> None:
    if not (SOURCE / package).is_dir():
        pytest.skip(f"no {package} yet")
    seen: dict[str, str] = {}
    for method in classes(f"laocoon.{package.replace('/', '.')}", kind):
        name = method.__module__.rsplit(".", 1)[1]
        assert method.card.name == name, f"{method.__module__} holds a card named {method.card.name!r}"
        assert name not in seen, f"{method.__module__} holds two methods"
        seen[name] = method.__module__
    public = {p.stem for p in (SOURCE / package).rglob("*.py")} - {"__init__"}
    assert public == set(seen), f"modules of {package} without a method of their own: {sorted(public - set(seen))}"


@pytest.mark.parametrize("module", [m for m in modules() if floor(m) in METHODS])
def test_a_method_is_short_and_says_where_it_comes_from(module: str) -> None:
    tree = sources()[module]
    if not tree.body:
        return
    doc = ast.get_docstring(tree) or ""
    assert re.search(r"\d{4}|arXiv", doc), f"{module} does not name its paper in its docstring"
    path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    assert len(path.read_text().splitlines()) <= 300, f"{module} is over 300 lines: mathematics belongs in recipes/"


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("module", modules())
def test_print_only_where_people_read(module: str) -> None:
    if floor(module) not in {"render", "cli"}:
        assert "print" not in set(calls(sources()[module])), f"{module} prints"


@pytest.mark.parametrize("module", sorted(sources()))
def test_pickles_are_opened_in_files_only(module: str) -> None:
    if floor(module) == "files":
        return
    tree = sources()[module]
    assert "torch.load" not in set(calls(tree)), f"{module} calls torch.load"
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        for name in names:
            assert name.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib"}, f"{module} imports {name}"


def test_torch_load_never_allows_code() -> None:
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                assert safe, f"{module}:{node.lineno} calls torch.load without weights_only=True"


def test_everything_is_caught_in_one_place() -> None:
    broad = []
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = {"BaseException"} if node.type is None else set(re.findall(r"\w+", ast.unparse(node.type)))
                if names & {"Exception", "BaseException"}:
                    broad.append(f"{module}:{node.lineno}")
    assert len(broad) <= 1 and all(b.startswith("laocoon.verdict.") for b in broad), (
        f"`except Exception` belongs to the runner in verdict alone, found in {broad}")


def test_no_rooms_for_odds_and_ends() -> None:
    banned = {"utils", "util", "common", "helpers", "helper", "misc", "base", "configs"}
    for module in sources():
        assert not banned & set(module.split(".")), f"{module}: say what it is for"


def test_no_catch_all_arguments() -> None:
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.args.kwarg is None, f"{module}.{node.name} takes **{node.args.kwarg.arg}"


def tracked() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_machine_is_named() -> None:
    """Neither somebody's folders nor a package registry's host: the project builds anywhere."""
    folders = "|".join(["wor" + "k", "op" + "t", "roo" + "t", "hom" + "e"])
    hosts = "|".join(name + r"\.org" for name in ("pypi", "pythonhosted", "registry.npmjs", "download.pytorch"))
    pattern = re.compile(rf"(?:^|[^\w.])/(?:{folders})/\w|{hosts}|index[-]url")
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert not found, f"{path.relative_to(ROOT)} names {found.group() if found else ''!r}"


def test_nothing_large_is_tracked() -> None:
    for path in tracked():
        assert path.stat().st_size < 1 << 20, f"{path.relative_to(ROOT)} is over a mebibyte"


def test_one_configuration_file() -> None:
    names = {p.relative_to(ROOT).as_posix() for p in tracked()}
    assert not names & {"setup.py", "setup.cfg", "tox.ini", "pytest.ini", "mypy.ini", "ruff.toml", ".flake8",
                        "requirements.txt"}, "pyproject.toml is the only configuration"


def test_runtime_dependencies_are_declared() -> None:
    """Everything imported at the top of a module is a dependency; extras are imported inside functions."""
    import sys
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=~ ]", d)[0].lower().replace("-", "_") for d in project["dependencies"]}
    distributions = {"sklearn": "scikit_learn", "PIL": "pillow", "google": "protobuf"}
    for module, tree in sources().items():
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            for name in {n.split(".")[0] for n in names} - {"laocoon", "__future__"} - set(sys.stdlib_module_names):
                assert distributions.get(name, name).lower() in declared, f"{module} imports {name}, not a dependency"
