"""Run a stranger's network for the first time with a bound on the memory and work that it may ask for.

Every operator is first run on shapes alone (torch's meta device); one that would make a tensor over the limit, or
that takes the pass over the limit of multiply-adds, is refused before it allocates anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from laocoon.core.errors import BrokenFile
from laocoon.files.onnx_node import LARGEST_TENSOR

MOST_WORK = 4e12  # multiply-adds of one pass over a few samples: an hour on a slow core


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _work(name: str, tensors: list[Tensor], result: Tensor) -> float:
    """Multiply-adds of the operators that can be expensive."""
    if "convolution" in name and len(tensors) > 1:
        return float(result.numel()) * tensors[1].numel() / max(tensors[1].shape[0], 1)
    if name in ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear") and tensors:
        left = tensors[1] if name in ("addmm", "baddbmm") and len(tensors) > 2 else tensors[0]
        return float(result.numel()) * left.shape[-1] if left.dim() else 0.0
    return float(result.numel())


class Bounded(TorchDispatchMode):
    """A with-block in which no operator makes more than `elements` numbers, nor all together more than `work`."""

    def __init__(self, elements: int = LARGEST_TENSOR, work: float = MOST_WORK) -> None:
        super().__init__()
        self.elements, self.left = elements, work

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        name = func.__name__.split(".")[0]
        if tensors and name not in ("detach", "view", "_unsafe_view", "t", "alias", "_to_copy", "_local_scalar_dense"):
            try:
                planned = func(*tree_map(_meta, args), **tree_map(_meta, kwargs))
            except (NotImplementedError, RuntimeError):  # no shape rule, or an error that the real run will state
                planned = ()
            for result in tree_leaves(planned):
                if isinstance(result, Tensor):
                    self._check(name, tensors, result)
        return func(*args, **kwargs)

    def _check(self, name: str, tensors: list[Tensor], result: Tensor) -> None:
        made = math.prod(result.shape)
        if made > self.elements:
            raise BrokenFile(f"the model asks for a tensor of shape {list(result.shape)} ({name}).",
                             f"Values of more than {self.elements} elements are refused.")
        self.left -= _work(name, tensors, result)
        if self.left < 0:
            raise BrokenFile("one pass over a few samples takes more work than is allowed.",
                             "Only models of ordinary size are examined.")
