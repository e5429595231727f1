"""TorchScript as an operator graph, from the code texts of the archive alone.

TorchScript's serialised code is a subset of Python's grammar. It is parsed, never evaluated: calls of methods and of
functions in the archive are followed, branches are laid flat, loops are walked once, everything else is an operator.
Constants live in a pickle that is not opened here: their values stay unknown, and their shapes too unless handed over.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from laocoon.core.errors import BrokenFile
from laocoon.recipes.operator_graph import DEEPEST, Graph, Node
from laocoon.recipes.operator_sink import Sink, Value

LARGEST_CODE = 8_000_000  # characters
MOST_CALLS = 20_000
EARLY = "return"  # where a scope keeps what was returned under a condition; no variable can have this name


def from_torchscript(code: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """`code` maps the archive's paths that end in .py to their text, `shapes` names of weights to their shapes.

    The model is the outermost class with a forward method that no other class holds.
    """
    classes, functions = _definitions(code)
    called = {name for c in classes.values() for name in c.attributes.values()}
    roots = [n for n in classes if "forward" in classes[n].methods and n not in called]
    if not roots:
        raise BrokenFile("the TorchScript archive has no module with a forward method.", "The file is malformed.")
    reader = _Reader(classes, functions, shapes or {})
    return reader.model(min(roots, key=lambda n: (n.count("."), n)))


@dataclass
class _Class:
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)  # name -> class, where the attribute is a module


@dataclass(frozen=True)
class _Module:
    """An object of the archive: a module, known by its class and its path from the root."""

    kind: str
    path: str


class _Tuple(tuple[object, ...]):
    """Several values."""


def _definitions(code: Mapping[str, str]) -> tuple[dict[str, _Class], dict[str, ast.FunctionDef]]:
    if sum(map(len, code.values())) > LARGEST_CODE:
        raise BrokenFile("the TorchScript archive holds too much code.", f"At most {LARGEST_CODE} characters are read.")
    classes: dict[str, _Class] = {}
    functions: dict[str, ast.FunctionDef] = {}
    for path, text in sorted(code.items()):
        inside = path.split("code/", 1)[-1]
        module = inside.removesuffix(".py").replace("/", ".")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BrokenFile(f"the TorchScript code {inside[:80]!r} cannot be parsed ({type(error).__name__}).",
                             "The file is malformed.") from error
        for item in tree.body:
            if isinstance(item, ast.FunctionDef):
                functions[f"{module}.{item.name}"] = item
            elif isinstance(item, ast.ClassDef):
                classes[f"{module}.{item.name}"] = _class(item)
    return classes, functions


def _class(item: ast.ClassDef) -> _Class:
    found = _Class()
    for part in item.body:
        if isinstance(part, ast.FunctionDef):
            found.methods[part.name] = part
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.attributes[part.target.id] = _dotted(part.annotation)
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Subscript):  # __annotations__["0"] = …
            key = part.targets[0].slice
            if isinstance(key, ast.Constant):
                found.attributes[str(key.value)] = _dotted(part.value)
    return found


def _dotted(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


class _Return(Exception):
    """A function's value; unwinds the walk over its statements."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Reader:
    def __init__(self, classes: dict[str, _Class], functions: dict[str, ast.FunctionDef],
                 known: Mapping[str, tuple[int, ...]]) -> None:
        self.classes, self.functions, self.known = classes, functions, known
        self.sink = Sink()
        self.count = self.calls = 0

    def model(self, root: str) -> Graph:
        forward = self.classes[root].methods["forward"]
        inputs = tuple(a.arg for a in forward.args.args[1:])
        try:
            result = self._run(forward, [_Module(root, "self"), *inputs], 0)
        except RecursionError as error:
            raise BrokenFile("the TorchScript code is nested too deeply.", "The file is malformed.") from error
        return self.sink.graph("torchscript", inputs, tuple(_names(result)))

    # ------------------------------------------------------------ statements
    def _run(self, function: ast.FunctionDef, arguments: Sequence[object], depth: int) -> object:
        self.calls += 1
        if depth > DEEPEST or self.calls > MOST_CALLS:
            raise BrokenFile("the TorchScript code calls too deeply or too often.", "Such models are not examined.")
        formal = [a.arg for a in function.args.args]
        defaults: list[object] = [None] * (len(formal) - len(function.args.defaults))
        defaults += [self._value(d, {}, depth) for d in function.args.defaults]
        scope = dict(zip(formal, [*arguments, *defaults[len(arguments):]], strict=False))
        try:
            self._block(function.body, scope, depth)
        except _Return as end:
            return end.value
        return None

    def _block(self, body: Sequence[ast.stmt], scope: dict[str, object], depth: int) -> None:
        for statement in body:
            if isinstance(statement, ast.Return):
                value = self._value(statement.value, scope, depth) if statement.value is not None else None
                for condition, early in reversed(scope.get(EARLY, [])):  # type: ignore[call-overload]
                    value = self._choice(condition, early, value)
                raise _Return(value)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                value = self._value(statement.value, scope, depth)
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for target in targets:
                    self._assign(target, value, scope)
            elif isinstance(statement, ast.If):
                self._branches(statement, scope, depth)
            elif isinstance(statement, ast.While | ast.For):
                if isinstance(statement, ast.For):
                    self._assign(statement.target, self._value(statement.iter, scope, depth), scope)
                self._block(statement.body, scope, depth)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value, scope, depth)

    def _assign(self, target: ast.expr, value: object, scope: dict[str, object]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            parts = list(value) if isinstance(value, tuple | list) else [value] * len(target.elts)
            for inner, part in zip(target.elts, parts, strict=False):
                self._assign(inner, part, scope)

    def _branches(self, statement: ast.If, scope: dict[str, object], depth: int) -> None:
        condition = self._value(statement.test, scope, depth)
        ends: list[dict[str, object]] = []
        returned: list[object] = []
        for body in (statement.body, statement.orelse):
            inside: dict[str, object] = {**scope, EARLY: []}
            try:
                self._block(body, inside, depth)
                ends.append(inside)
            except _Return as end:
                returned.append(end.value)
        if len(returned) == 2:
            raise _Return(self._choice(condition, *returned))
        if returned:  # the rest of the function is the other branch
            pending = scope.get(EARLY, [])
            scope.update(ends[0])
            scope[EARLY] = [*pending, (condition, returned[0])]  # type: ignore[misc]
            return
        for name in (ends[0].keys() | ends[1].keys()) - {EARLY}:
            one, other = ends[0].get(name), ends[1].get(name)
            if one is other or one == other or one is None or other is None:
                scope[name] = one if one is not None else other
            elif isinstance(one, _Module) or isinstance(other, _Module):
                scope[name] = one
            else:
                scope[name] = self._choice(condition, one, other)

    def _choice(self, condition: object, one: object, other: object) -> object:
        output = self._fresh("if")
        names = [self._one(v) for v in (condition, one, other)]
        self.sink.append(Node("If", output, tuple(names), (output,)))
        return output

    # ------------------------------------------------------------ expressions
    def _value(self, node: ast.expr, scope: Mapping[str, object], depth: int) -> object:
        if isinstance(node, ast.Constant):
            # Text is no value; an empty list keeps its place among the arguments.
            return node.value if isinstance(node.value, bool | int | float) else None
        if isinstance(node, ast.Name):
            return scope.get(node.id, None)
        if isinstance(node, ast.List | ast.Tuple):
            return _Tuple(self._value(e, scope, depth) for e in node.elts)
        if isinstance(node, ast.UnaryOp):
            inner = self._value(node.operand, scope, depth)
            return -inner if isinstance(node.op, ast.USub) and isinstance(inner, int | float) else inner
        if isinstance(node, ast.Attribute):
            return self._attribute(node, scope, depth)
        if isinstance(node, ast.Subscript):
            return self._element(node, scope, depth)
        if isinstance(node, ast.Call):
            return self._call(node, scope, depth)
        if isinstance(node, ast.IfExp):
            parts = [self._value(e, scope, depth) for e in (node.test, node.body, node.orelse)]
            return self._choice(*parts)
        inner_values = [self._value(e, scope, depth) for e in ast.iter_child_nodes(node) if isinstance(e, ast.expr)]
        return self._operator({ast.BoolOp: "logical_and", ast.Compare: "eq"}.get(type(node), type(node).__name__),
                              inner_values)

    def _attribute(self, node: ast.Attribute, scope: Mapping[str, object], depth: int) -> object:
        owner = self._value(node.value, scope, depth)
        return self._member(owner, node.attr) if isinstance(owner, _Module) else self._held(_dotted(node))

    def _member(self, owner: _Module, name: str) -> object:
        kind = self.classes[owner.kind].attributes.get(name, "")
        path = f"{owner.path}.{name}"
        return _Module(kind, path) if kind in self.classes else self._held(path)

    def _held(self, path: str) -> object:
        """A tensor or number of the archive."""
        if path and path not in self.sink.constants:
            self.sink.constant(path, self.known.get(path.removeprefix("self.")))
        return path or None

    def _element(self, node: ast.Subscript, scope: Mapping[str, object], depth: int) -> object:
        value = self._value(node.value, scope, depth)
        index = self._value(node.slice, scope, depth)
        if isinstance(value, tuple) and isinstance(index, int) and -len(value) <= index < len(value):
            return value[index]
        return value

    def _call(self, node: ast.Call, scope: Mapping[str, object], depth: int) -> object:
        name = _dotted(node.func)
        if name == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            owner = self._value(node.args[0], scope, depth)
            return self._member(owner, str(node.args[1].value)) if isinstance(owner, _Module) else None
        arguments = [self._value(a, scope, depth) for a in node.args]
        arguments += [self._value(k.value, scope, depth) for k in node.keywords]
        if isinstance(node.func, ast.Attribute):
            owner = self._value(node.func.value, scope, depth)
            if isinstance(owner, _Module):
                method = self.classes[owner.kind].methods.get(node.func.attr)
                return self._run(method, [owner, *arguments], depth + 1) if method is not None else None
        aliased = scope.get(name, name)  # `_0 = __torch__.torch.nn.functional.relu` comes first
        name = aliased if isinstance(aliased, str) else name
        if name in self.functions:
            return self._run(self.functions[name], arguments, depth + 1)
        if name in ("annotate", "unchecked_cast", "uninitialized"):
            return arguments[-1] if arguments else None
        if name.endswith(("RaiseException", "print", "append")):
            return None
        return self._operator(name or "call", arguments)

    def _operator(self, target: str, arguments: Sequence[object]) -> object:
        if not any(_names(a) for a in arguments):
            return None
        output = self._fresh(target)
        self.sink.operator(target, [_plain(a) for a in arguments], output, (output,))
        return output

    def _fresh(self, target: str) -> str:
        self.count += 1
        return f"{target} {self.count}"

    def _one(self, value: object) -> str:
        if isinstance(value, bool | int | float):
            return self.sink.number(float(value))
        return next(iter(_names(value)), "")


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [n for v in value for n in _names(v)] if isinstance(value, tuple | list) else []


def _plain(value: object) -> Value:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | bool | int | float) else None
