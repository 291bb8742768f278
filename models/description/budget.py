"""What a model description may cost, known before it is paid: a short file can ask for more than any machine has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

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
        """Count what the function would make, as its twin on the device "meta" tells for nothing, then let it run."""
        kwargs = kwargs or {}
        if cost := _COSTS.get(getattr(func, "__name__", "")):
            shapes = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
            with suppress(RuntimeError, ArithmeticError):  # the real one says it plainer
                made = func(*shapes[0], **shapes[1])
                values, products = cost(made[0] if isinstance(made, tuple) else made, *args, **kwargs)
                self.values += values
                self.products += products
            if self.values > MAX_VALUES or self.products > MAX_PRODUCTS:
                raise ValueError("its maps are too large; make channels, kernels or scales smaller")
        return func(*args, **kwargs)


def _pooled(made: Tensor, x: Tensor, kernel_size: Any, *_: Any, **__: Any) -> tuple[int, int]:
    """Looking for the largest takes some sixty times as long as multiplying."""
    sides = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
    seen = (min(kernel, side) for kernel, side in zip(sides, x.shape[-2:], strict=False))
    return made.numel(), 64 * x.numel() * math.prod(seen)


# By the name of a function: (what it made, its arguments) -> numbers that are made, multiplications
_COSTS: dict[str, Callable[..., tuple[int, int]]] = {
    **dict.fromkeys(
        ("conv2d", "conv3d"), lambda made, x, w, *_, **__: (made.numel(), made.numel() * w.shape[1:].numel())
    ),
    **dict.fromkeys(
        ("conv_transpose2d", "conv_transpose3d"),
        lambda made, x, w, *_, **__: (made.numel(), x.numel() * w.shape[1:].numel()),
    ),
    **dict.fromkeys(  # up to sixteen neighbours make a number
        ("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices", "interpolate"),
        lambda made, *_, **__: (made.numel(), 16 * made.numel()),
    ),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), _pooled),
    "lp_pool2d": lambda made, x, norm_type, kernel_size, *_, **__: _pooled(made, x, kernel_size),
    "local_response_norm": lambda made, x, size, *_, **__: (x.numel(), 16 * x.numel() * size),
    "linear": lambda made, x, weight, *_, **__: (made.numel(), x.numel() * len(weight)),
    **dict.fromkeys(("pad", "unfold", "cat"), lambda made, *_, **__: (made.numel(), 0)),
    **dict.fromkeys(
        ("matmul", "__matmul__", "bmm", "mm"), lambda made, a, b, *_, **__: (made.numel(), made.numel() * a.shape[-1])
    ),
    "scaled_dot_product_attention": lambda made, q, k, *_, **__: (q.numel(), 2 * q.numel() * k.shape[-2]),
    "multi_head_attention_forward": lambda made, q, k, v, width, heads, *_, **__: (  # scores of all pairs
        len(q) * q.shape[:-1].numel() * heads, 2 * len(q) * q.shape[:-1].numel() * width,
    ),
}  # fmt: skip
