"""What a model description may cost, known before it is paid: a short file can ask for more than any machine has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

MAX_PARAMETERS = 500_000_000  # YOLOv5's largest model has 144 million
MAX_LAYERS = 500  # rows, repeated ones as often as they are repeated
MAX_NUMBER = 1_000_000  # in the arguments of a row
MAX_VALUES = 1 << 28  # numbers in all maps that are made in one pass over a blank image of 256 x 256 pixels
MAX_PRODUCTS = 200_000_000_000  # multiplications of that pass, ten times those of the largest model

Cost = tuple[int, int]  # numbers that come out, multiplications
Sides = int | Sequence[int]  # one number for all directions, or one for each


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
        """Count what the function would make, then let it run."""
        cost = _COSTS.get(getattr(func, "__name__", ""))
        if cost is not None:
            values, products = cost(*args, **(kwargs or {}))
            self.values += values
            self.products += products
            if self.values > MAX_VALUES or self.products > MAX_PRODUCTS:
                raise ValueError("its maps are too large; make channels, kernels or scales smaller")
        return func(*args, **(kwargs or {}))


def _each(value: Sides, count: int) -> list[int]:
    return [value] * count if isinstance(value, (int, float)) else list(value)


def _area(sides: Sequence[float]) -> int:
    return math.prod(max(int(side), 0) for side in sides)


def _places(sides: Sequence[int], kernel: Sequence[int], stride: Sides, padding: Sides, dilation: Sides) -> int:
    """How many places a kernel has that slides over sides of this length."""
    each = zip(sides, kernel, *(_each(value, len(kernel)) for value in (stride, padding, dilation)), strict=True)
    return _area([(side + 2 * p - d * (k - 1) - 1) // max(s, 1) + 1 for side, k, s, p, d in each])


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Sides = 1,
    padding: Any = 0,
    dilation: Sides = 1,
    *_: Any,
    **__: Any,
) -> Cost:
    kernel = weight.shape[2:]
    padding = kernel if isinstance(padding, str) else padding  # 'same' needs less
    out = _places(x.shape[-len(kernel) :], kernel, stride, padding, dilation) * len(weight)
    return out, out * weight.shape[1:].numel()


def _transposed(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Cost:
    names = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
    given = {
        "stride": 1,
        "output_padding": 0,
        "groups": 1,
        "dilation": 1,
        **dict(zip(names, rest, strict=False)),
        **named,
    }
    kernel = weight.shape[2:]
    more = (_each(given[name], len(kernel)) for name in ("stride", "output_padding", "dilation"))
    each = zip(x.shape[-len(kernel) :], kernel, *more, strict=True)
    out = _area([(side - 1) * s + d * (k - 1) + extra + 1 for side, k, s, extra, d in each])
    return out * weight.shape[1] * given["groups"], x.numel() * weight.shape[1:].numel()


def _resized(x: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any) -> Cost:
    """Up to sixteen neighbours make a number."""
    sides = x.shape[2:]
    scaled = zip(sides, _each(1 if scale_factor is None else scale_factor, len(sides)), strict=False)
    wanted = [side * scale for side, scale in scaled] if size is None else [s or 0 for s in _each(size, len(sides))]
    values = x.shape[:2].numel() * _area(wanted)
    return values, 16 * values


def _padded(x: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> Cost:
    """By pairs, the last dimension first."""
    sides = list(x.shape)
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=False), start=1):
        sides[-number] += before + after
    return _area(sides), 0


def _pooled(x: Tensor, kernel_size: Sides, *_: Any, **__: Any) -> Cost:
    """Looking for the largest takes some sixty times as long as multiplying."""
    kernel = _each(kernel_size, 2)[-2:]
    return x.numel(), 64 * x.numel() * _area([min(k, side) for k, side in zip(kernel, x.shape[-2:], strict=False)])


def _unfolded(x: Tensor, kernel_size: Sides, dilation: Sides = 1, padding: Sides = 0, stride: Sides = 1) -> Cost:
    kernel = _each(kernel_size, 2)
    return x.shape[:-2].numel() * _area(kernel) * _places(x.shape[-2:], kernel, stride, padding, dilation), 0


def _product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Cost:
    """(..., n, k) with (..., k, m)."""
    values = max(a.shape[:-1].numel(), b.shape[:-2].numel()) * b.shape[-1]
    return values, values * a.shape[-1]


def _all_heads(query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *_: Any, **__: Any) -> Cost:
    """Tokens first; every head has a score for each pair of them."""
    pairs = len(query) * query.shape[:-1].numel()
    return pairs * heads, 2 * pairs * width


_COSTS: dict[str, Callable[..., Cost]] = {
    **dict.fromkeys(("conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"), _resized),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), _pooled),
    "lp_pool2d": lambda x, norm_type, kernel_size, *_, **__: _pooled(x, kernel_size),
    "local_response_norm": lambda x, size, *_, **__: (x.numel(), 16 * x.numel() * size),
    "pad": _padded,
    "unfold": _unfolded,
    "linear": lambda x, weight, *_, **__: (x.shape[:-1].numel() * len(weight), x.numel() * len(weight)),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), _product),
    "scaled_dot_product_attention": lambda q, k, *_, **__: (q.numel(), 2 * q.numel() * k.shape[-2]),
    "multi_head_attention_forward": _all_heads,
    "cat": lambda parts, *_, **__: (sum(part.numel() for part in parts), 0),
}
