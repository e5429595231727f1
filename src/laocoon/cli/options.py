"""Command-line options made from the fields of dataclasses, so that nothing is written twice.

A field's name is the option's, its comment the help, its default the default. The source is read instead of imported:
`laocoon --help` must not wait for torch.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from laocoon.core.errors import InputError

_SHORT = {"out": "-o", "label_key": "--label"}
_SIMPLE: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "Path": Path}


@dataclass(frozen=True)
class Option:
    """One field as an option."""

    field: str
    kind: str  # its annotation without "| None"
    default: Any
    help: str
    panel: str

    @property
    def flag(self) -> str:
        return f"--{self.field.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        if self.kind.startswith("tuple[int, int"):
            return "HEIGHTxWIDTH"
        if self.kind.startswith("tuple["):
            return "A,B,…"
        return {"str": "TEXT", "int": "N", "float": "X", "Path": "FILE"}.get(self.kind, "TEXT").replace(
            "FILE", "FOLDER" if self.field == "resume" else "FILE"
        )

    def parsed(self, value: Any) -> Any:
        """A value from the command line as the field wants it."""
        if value is None or self.kind in _SIMPLE:
            return value
        text = str(value)
        try:
            if self.kind.startswith("tuple[int, int"):
                parts = text.lower().replace("×", "x").replace(",", "x").split("x")
                height, width = (parts[0], parts[-1]) if len(parts) <= 2 else ("", "")
                return int(height), int(width)
            if self.kind.startswith("tuple["):
                of = {"tuple[float": float, "tuple[int": int}.get(self.kind.split(",")[0], str)
                return tuple(of(p.strip()) for p in text.split(",") if p.strip())
        except ValueError:
            raise InputError(f"{self.flag} is {text!r}.", f"It has the form {self.metavar}.") from None
        return int(text) if text.isdecimal() and "int" in self.kind else text


def options_of(module: str, name: str, panel: str) -> tuple[Option, ...]:
    """The fields of a dataclass, read from its module's source."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    source = Path(spec.origin).read_text(encoding="utf-8")
    lines = source.splitlines()
    found = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
    options = []
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation).removesuffix(" | None")
            default = None if node.value is None else ast.literal_eval(node.value)
            _, _, comment = lines[(node.end_lineno or 1) - 1].partition("  # ")
            options.append(Option(node.target.id, kind, default, _sentence(comment), panel))
    return tuple(options)


def _sentence(comment: str) -> str:
    return comment.strip().rstrip(".")


def command(
    run: Callable[[Mapping[str, Any]], None], options: Sequence[Option], arguments: Mapping[str, str], doc: str
) -> Callable[..., None]:
    """A function for Typer: `arguments` (name to help) first, then the options; `run` is given all values by name."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[str, typer.Argument(help=help, show_default=False)],
        )
        for name, help in arguments.items()
    ]
    parameters += [_parameter(option) for option in options]
    # Typer hands values over by name, and reads from the signature below which names there are.
    function: Any = lambda **values: run(values)  # noqa: E731
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    function.__doc__, function.__name__ = doc, "command"
    return function  # type: ignore[no-any-return]


def _parameter(option: Option) -> inspect.Parameter:
    simple = _SIMPLE.get(option.kind, str)
    info: Any
    if simple is bool:
        info = typer.Option(
            f"{option.flag}/--no-{option.flag[2:]}" if option.default else option.flag,
            help=option.help,
            rich_help_panel=option.panel,
        )
    else:
        info = typer.Option(
            option.flag,
            *([_SHORT[option.field]] if option.field in _SHORT else []),
            parser=_number(simple) if simple in (int, float) else None,
            help=option.help,
            metavar=option.metavar,
            rich_help_panel=option.panel,
            show_default=option.default is not None,
        )
    kind: Any = simple if option.default is not None else simple | None
    default = option.default
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _number(kind: type) -> Callable[[Any], Any]:
    """Typer's own complaint does not say what was given."""

    def parse(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{str(value)[:80]!r} is not {what}.") from None

    parse.__name__ = kind.__name__
    return parse


def values_of(options: Sequence[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The parsed values of some options, by field."""
    return {o.field: o.parsed(values[o.field]) for o in options}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(options: Sequence[Option]) -> str:
    """The options as a table for the documents."""
    rows = [
        f"| `{o.flag} {o.metavar}` | {'' if o.default is None else f'`{o.default}`'} | {_cell(o.help)} |"
        for o in options
    ]
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])
