"""Sound bounds on a network's answers over boxes of inputs: interval bound propagation, then CROWN.

Zhang et al., Efficient Neural Network Robustness Certification with General Activation Functions, NeurIPS 2018. A
network of affine layers, ReLU and max-pooling is followed as it runs, whatever it is built from (residual sums too):

* intervals: an affine layer maps centre c and radius r to (Wc + b, |W|r); ReLU and max-pooling are monotone;
* CROWN: a ReLU with l < 0 < u lies between z·[u > −l] and u(z − l)/(u − l), a maximum between the input with the
  largest lower bound and the largest upper bound. A linear function of the answers is then bounded below by a linear
  function of the input: its coefficients are gradients, where the backward pass of each relaxed unit takes the lower
  line if the coefficient is positive and the upper one otherwise.

Written here: PyPI's `bound-propagation` is under the GPL and knows neither convolutions nor pooling.
All is computed in float64 without outward rounding; callers ask for a margin well above its error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from laocoon.core.errors import NotApplicable

_SAME = frozenset({  # the same function of centre and radius: no weights, or averages
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "mean", "avg_pool2d",
    "adaptive_avg_pool2d", "to", "float", "double", "clone", "detach", "movedim", "expand", "__getitem__"})
_SUMS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__", "sub", "__sub__", "__rsub__", "rsub"})
_PRODUCTS = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__", "true_divide"})
_RELU = frozenset({"relu", "relu_"})
_POOL = frozenset({"max_pool2d"})
_IDLE = frozenset({"dropout", "dropout2d", "identity"})
_QUESTIONS = frozenset({"__get__", "size", "dim", "__len__", "numel", "is_floating_point", "stride", "element_size"})


@dataclass(frozen=True, eq=False)
class Unit:
    """Bounds of what enters a relaxed unit, [batch, …]; for a maximum, of its chosen input and of the answer."""

    lower: Tensor
    upper: Tensor
    index: Tensor | None = None  # of a maximum: flat position of the input with the largest lower bound
    most: Tensor | None = None  # of a maximum: the largest upper bound of its inputs
    sure: Tensor | None = None  # of a maximum: the chosen input is the maximum everywhere


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower and upper bounds, [batch, …], and the units met on the way."""

    lower: Tensor
    upper: Tensor
    units: tuple[Unit, ...] = field(default=(), repr=False)


def sealed(module: nn.Module) -> nn.Module:
    """A float64 copy in eval mode without gradients, as the functions below want it."""
    return copy.deepcopy(module).double().eval().requires_grad_(False)


def intervals(module: nn.Module, lower: Tensor, upper: Tensor) -> Bounds:
    """Interval bounds of a sealed module's answers for lower ≤ x ≤ upper, [batch, …]."""
    centre = (lower + upper) / 2
    with torch.no_grad(), _Intervals() as mode:
        mode.put(centre, (upper - lower) / 2)
        answer = module(centre)
        radius = mode.radius(answer)
    return Bounds(answer - radius, answer + radius, tuple(mode.units))


def crown(module: nn.Module, lower: Tensor, upper: Tensor, units: Sequence[Unit],
          wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds of linear functions of the answers, and the coefficients of the input.

    wanted [batch, specs, answers] holds the functions; the bounds are [batch, specs], the coefficients of the input
    [batch, specs, …]. Each function is a sample of the pass: batch · specs samples go forward, backward and forward.
    """
    n, specs = wanted.shape[:2]

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(specs, 0)

    low, high = repeated(lower), repeated(upper)
    relaxed = [_Relaxed(Unit(*(None if v is None else repeated(v) for v in (
        u.lower, u.upper, u.index, u.most, u.sure)))) for u in units]  # type: ignore[arg-type]
    centre = ((low + high) / 2).requires_grad_()
    weights = wanted.reshape(n * specs, -1)

    def value(x: Tensor) -> Tensor:
        with _Relaxation(relaxed):
            answer = module(x)
        total: Tensor = (answer * weights).sum(1)
        return total

    with torch.enable_grad():
        (slope,) = torch.autograd.grad(value(centre).sum(), centre)
    for each in relaxed:
        each.settled = True
    with torch.no_grad():
        at_centre = value(centre)
        bound = at_centre - (slope.abs() * (high - low) / 2).flatten(1).sum(1)
    return bound.view(n, specs), slope.view(n, specs, *lower.shape[1:])


def _named(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__name__", ""))
    return name if name.startswith("__") else name.lstrip("_")


def _refused(name: str) -> NotApplicable:
    return NotApplicable(f"the network uses {name!r}, which the bounds do not know: they follow affine layers, ReLU "
                         "and max-pooling.")


def _tensors(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    if isinstance(args, list | tuple):
        return [t for a in args for t in _tensors(a)]
    return [t for a in args.values() for t in _tensors(a)] if isinstance(args, dict) else []


def _pooling(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    told = {**dict(zip(names, args[1:], strict=False)), **{k: v for k, v in kwargs.items() if k in names}}
    return {k: v for k, v in told.items() if v is not None and v != []}


class _Intervals(TorchFunctionMode):
    """Follows centres through the network and keeps the radius of each in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.units = list[Unit]()
        self.table: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor is kept, so that its id stays its own

    def put(self, centre: Tensor, radius: Tensor) -> Tensor:
        self.table[id(centre)] = (centre, radius)
        return centre

    def radius(self, tensor: Tensor) -> Tensor:
        found = self.table.get(id(tensor))
        return torch.zeros_like(tensor) if found is None else found[1]

    def knows(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and id(tensor) in self.table

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _named(function)
        known = [t for t in _tensors([args, kwargs]) if self.knows(t)]
        if not known or name in _QUESTIONS:
            return function(*args, **kwargs)
        if name in _IDLE:
            return args[0]
        if name in _RELU:
            return self._unit(args[0])
        if name in _POOL:
            return self._pool(args[0], _pooling(args, kwargs))
        if not self.knows(args[0]) and name not in _SUMS | _PRODUCTS:
            raise _refused(name)
        if name in _SAME:
            if len(known) > 1:
                raise _refused(name)
            return self.put(function(*args, **kwargs), function(self.radius(args[0]), *args[1:], **kwargs))
        return self._affine(function, name, args, kwargs)

    def _affine(self, function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Tensor:
        if name in _SUMS:
            if kwargs.get("alpha", 1) != 1:
                raise _refused(name)
            radius = sum(self.radius(t) for t in args[:2] if isinstance(t, Tensor))
            answer = function(*args, **kwargs)
            return self.put(answer, radius.expand_as(answer))  # type: ignore[union-attr]
        if name in _PRODUCTS:
            first, second = args[:2]
            if self.knows(second) and (self.knows(first) or "div" in name):
                raise _refused(f"{name} of two answers")
            radius = (self.radius(first) if self.knows(first) else first.abs() if isinstance(first, Tensor)
                      else abs(first))
            factor = (self.radius(second) if self.knows(second) else second.abs() if isinstance(second, Tensor)
                      else abs(second))
            return self.put(function(first, second), function(radius, factor))
        if name == "addcmul" and self.knows(args[1]) and not self.knows(args[0]) and not self.knows(args[2]):
            answer = function(*args, **kwargs)
            return self.put(answer, (self.radius(args[1]) * args[2].abs()).expand_as(answer))
        if name in ("conv2d", "linear"):
            rest = list(args[1:])
            told = dict(kwargs)
            weight = rest[0] if rest else told["weight"]
            if len(rest) > 1:
                rest[1] = None
            told.pop("bias", None)
            if rest:
                rest[0] = weight.abs()
            else:
                told["weight"] = weight.abs()
            return self.put(function(*args, **kwargs), function(self.radius(args[0]), *rest, **told))
        if name == "batch_norm":
            answer = function(*args, **kwargs)
            zero, one = torch.zeros_like(args[0]), torch.ones_like(args[0])
            gain = (function(one, *args[1:], **kwargs) - function(zero, *args[1:], **kwargs)).abs()
            return self.put(answer, gain * self.radius(args[0]))
        raise _refused(name)

    def _box(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.put((lower + upper) / 2, (upper - lower) / 2)

    def _unit(self, centre: Tensor) -> Tensor:
        radius = self.radius(centre)
        lower, upper = centre - radius, centre + radius
        self.units.append(Unit(lower, upper))
        return self._box(lower.clamp_min(0), upper.clamp_min(0))

    def _pool(self, centre: Tensor, told: dict[str, Any]) -> Tensor:
        radius = self.radius(centre)
        lower, upper = centre - radius, centre + radius
        least, index = functional.max_pool2d(lower, **told, return_indices=True)
        most = functional.max_pool2d(upper, **told)
        chosen = upper.flatten(2).gather(2, index.flatten(2)).view_as(least)
        others = upper.flatten(2).scatter(2, index.flatten(2), -torch.inf)
        # An input may be the choice of one window and a rival in another: only windows that do not overlap are told
        # apart this way; elsewhere nothing is sure.
        step = told.get("stride", told["kernel_size"])
        apart = step == told["kernel_size"] and told.get("padding", 0) in (0, (0, 0), [0, 0])
        rival = functional.max_pool2d(others.view_as(upper), **told)
        sure = (least >= rival) if apart else torch.zeros_like(least, dtype=torch.bool)
        self.units.append(Unit(least, chosen, index, most, sure))
        return self._box(least, most)


class _Relaxed:
    """A unit in a CROWN pass: two lines, and which of them the backward pass chose."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.settled = unit, False
        low, high = unit.lower, unit.upper
        if unit.index is None:
            gap = (high - low).clamp_min(1e-300)
            open_ = (low < 0) & (high > 0)
            on = (low >= 0).to(low)
            self.upper_slope = torch.where(open_, high / gap, on)
            self.upper_offset = torch.where(open_, -high * low / gap, torch.zeros_like(low))
            self.lower_slope = torch.where(open_, (high > -low).to(low), on)
        else:
            assert unit.sure is not None and unit.most is not None
            self.upper_slope = unit.sure.to(low)
            self.upper_offset = torch.where(unit.sure, torch.zeros_like(low), unit.most)
            self.lower_slope = torch.ones_like(low)
        self.below: Tensor = torch.zeros(0)

    def lines(self, z: Tensor) -> Tensor:
        """The chosen lines at z."""
        return torch.where(self.below, self.lower_slope * z, self.upper_slope * z + self.upper_offset)


class _Choose(torch.autograd.Function):
    """Backward: the lower line where the coefficient is positive, else the upper one."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, relaxed: _Relaxed) -> Tensor:
        ctx.relaxed = relaxed
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        coefficient, relaxed = gradients[0], ctx.relaxed
        relaxed.below = coefficient >= 0
        return coefficient * torch.where(relaxed.below, relaxed.lower_slope, relaxed.upper_slope), None


class _Relaxation(TorchFunctionMode):
    """Replaces each unit, in the order in which the intervals met them, by its lines."""

    def __init__(self, relaxed: Sequence[_Relaxed]) -> None:
        super().__init__()
        self.relaxed, self.count = relaxed, 0

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _named(function)
        if name not in _RELU | _POOL:
            return function(*args, **kwargs)
        z = args[0]
        each = self.relaxed[self.count]
        self.count += 1
        if each.unit.index is not None:
            z = z.flatten(2).gather(2, each.unit.index.flatten(2)).view_as(each.unit.lower)
        return each.lines(z) if each.settled else _Choose.apply(z, each)  # type: ignore[no-untyped-call]
