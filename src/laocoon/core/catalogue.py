"""What is installed: a walk of the package plus the entry-point group `laocoon.methods`. No registry, no cache."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules(package: str) -> list[ModuleType]:
    """Every module under a package, in name order."""
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}.") if not info.ispkg)
    return [importlib.import_module(name) for name in names]


def classes(package: str, kind: type[T]) -> list[type[T]]:
    """Concrete subclasses of `kind` defined under `package` or offered by plug-ins, in name order of their Card."""
    found: dict[str, type[T]] = {}
    plugins = [p.load() for p in entry_points(group="laocoon.methods")]
    members = [m for module in modules(package) for m in vars(module).values()
               if inspect.isclass(m) and m.__module__ == module.__name__]
    for member in [*members, *plugins]:
        usable = inspect.isclass(member) and issubclass(member, kind) and not inspect.isabstract(member)
        if usable and getattr(member, "card", None) is not None:
            found[member.card.name] = member
    return [found[name] for name in sorted(found)]
