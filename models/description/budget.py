"""What a model description may cost, known before it is paid: a short file can ask for more than any machine has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAX_PARAMETERS = 500_000_000  # YOLOv5's largest model has 144 million
MAX_LAYERS = 500  # rows, repeated ones as often as they are repeated
MAX_NUMBER = 1_000_000  # in the arguments of a row
MAX_VALUES = 1 << 28  # numbers in all maps that are made in one pass over a blank image of 256 x 256 pixels
MAX_PRODUCTS = 200_000_000_000  # multiplications of that pass, ten times those of the largest model


def check_numbers(value: Any) -> None:
    """Raise ValueError for an argument that is, or has in it, a number nothing is built of."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            check_numbers(part)
    elif isinstance(value, (int, float)) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError(f"a number is larger than {MAX_NUMBER:,}, or none at all")


def check_counts(layers: int, parameters: int) -> None:
    """Raise ValueError for more layers or parameters than are believable."""
    if layers > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS:,} layers, repeats counted")
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"more than {MAX_PARAMETERS:,} parameters up to here; make channels or kernels smaller")


class CostGuard(TorchFunctionMode):
    """While it is entered, what would make the maps of a pass too large raises ValueError instead of running."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.products = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what the function would make, by the sizes of its arguments, then let it run.

        A twin on the device "meta" would tell as well, but brings TorchDynamo and SymPy: a second for every command.
        """
        kwargs = kwargs or {}
        if cost := _COSTS.get(getattr(func, "__name__", "")):
            with suppress(RuntimeError, ArithmeticError, LookupError, TypeError, ValueError):  # the real one says it
                named = dict(kwargs)
                first = [named.pop(name) for name in ("input", "tensors", "query") if name in named]
                values, products = cost(*first, *args, **named)
                self.values += values
                self.products += products
            if self.values > MAX_VALUES or self.products > MAX_PRODUCTS:
                raise ValueError("its maps are too large; make channels, kernels or scales smaller")
        return func(*args, **kwargs)


def _each(value: Any, count: int) -> list[Any]:
    """A number for every side, where one stands for all."""
    return list(value) if isinstance(value, (tuple, list)) else [value] * count


def _convolved(x: Tensor, weight: Tensor, bias: Any = None, *numbers: Any, **named: Any) -> tuple[int, int]:
    given = dict(zip(("stride", "padding", "dilation"), numbers, strict=False)) | named
    sides, kernel, padding = x.shape[2:], weight.shape[2:], given.get("padding", 0)
    steps, gaps = (_each(given.get(name, 1), len(sides)) for name in ("stride", "dilation"))
    reach = [gap * (k - 1) for gap, k in zip(gaps, kernel, strict=True)]
    added = {"same": reach, "valid": [0] * len(sides)}.get(str(padding)) or [2 * p for p in _each(padding, len(sides))]
    rows = zip(sides, added, reach, steps, strict=True)
    made = len(x) * len(weight) * math.prod((side + more - less - 1) // step + 1 for side, more, less, step in rows)
    return made, made * weight.shape[1:].numel()


def _transposed(x: Tensor, weight: Tensor, bias: Any = None, *numbers: Any, **named: Any) -> tuple[int, int]:
    usual = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    given, sides = usual | dict(zip(usual, numbers, strict=False)) | named, x.shape[2:]
    rows = zip(sides, weight.shape[2:], *(_each(given[name], len(sides)) for name in usual), strict=True)
    grown = ((side - 1) * step - 2 * cut + gap * (k - 1) + extra + 1 for side, k, step, cut, extra, _, gap in rows)
    return len(x) * weight.shape[1] * given["groups"] * math.prod(grown), x.numel() * weight.shape[1:].numel()


def _pooled(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *_: Any, **__: Any) -> tuple[int, int]:
    """Looking for the largest takes some sixty times as long as multiplying."""
    sides, kernel = x.shape[-2:], _each(kernel_size, 2)
    rows = zip(sides, kernel, _each(stride or kernel, 2), _each(padding, 2), strict=True)
    made = x.shape[:-2].numel() * math.prod((side + 2 * more - k) // step + 1 for side, k, step, more in rows)
    return made, 64 * x.numel() * math.prod(map(min, kernel, sides))


def _resized(x: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any) -> tuple[int, int]:
    """Up to sixteen neighbours make a number."""
    sides = x.shape[2:]
    wanted = [old if new is None else new for old, new in zip(sides, _each(size, len(sides)), strict=True)]
    scales = _each(scale_factor or 1, len(sides))
    made = x.shape[:2].numel() * math.prod(int(side * scale) for side, scale in zip(wanted, scales, strict=True))
    return made, 16 * made


def _padded(x: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> tuple[int, int]:
    """`pad` names what comes before and after, from the last dimension on."""
    grown = [sum(pair) for pair in zip(pad[::2], pad[1::2], strict=True)][::-1]
    kept = x.ndim - len(grown)
    return x.shape[:kept].numel() * math.prod(map(sum, zip(x.shape[kept:], grown, strict=True))), 0


def _multiplied(a: Tensor, other: Tensor, *_: Any, **__: Any) -> tuple[int, int]:
    # numpy's, as torch.broadcast_shapes imports SymPy
    made = math.prod(np.broadcast_shapes(a.shape[:-2], other.shape[:-2])) * a.shape[-2:-1].numel()
    made *= other.shape[-1] if other.ndim > 1 else 1
    return made, made * a.shape[-1]


# By the name of a function: its arguments -> numbers that are made, multiplications
_COSTS: dict[str, Callable[..., tuple[int, int]]] = {
    **dict.fromkeys(("conv2d", "conv3d"), _convolved),
    **dict.fromkeys(("conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(
        ("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices", "interpolate"), _resized
    ),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), _pooled),
    "lp_pool2d": lambda x, norm_type, kernel_size, *_, **__: _pooled(x, kernel_size),
    "local_response_norm": lambda x, size, *_, **__: (x.numel(), 16 * x.numel() * size),
    "linear": lambda x, weight, *_, **__: (x.shape[:-1].numel() * len(weight), x.numel() * len(weight)),
    "pad": _padded,
    "unfold": lambda x, kernel_size, dilation=1, padding=0, stride=1: (
        _pooled(x, kernel_size, stride, padding)[0] * math.prod(_each(kernel_size, 2)), 0,
    ),
    "cat": lambda parts, *_, **__: (sum(part.numel() for part in parts), 0),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), _multiplied),
    "scaled_dot_product_attention": lambda q, key, *_, **__: (q.numel(), 2 * q.numel() * key.shape[-2]),
    "multi_head_attention_forward": lambda q, k, v, width, heads, *_, **__: (  # scores of all pairs
        len(q) * q.shape[:-1].numel() * heads, 2 * len(q) * q.shape[:-1].numel() * width,
    ),
}  # fmt: skip
