"""Descriptions that ask for more than any machine has are refused at once, and those of real models are not."""

from __future__ import annotations

import copy
import resource
import time
from typing import Any

import pytest
import torch
from torch import nn

from models.description import budget
from models.description.budget import CostGuard
from models.yolo import Model

PLAIN: dict[str, Any] = {
    "nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[10, 10]],
    "backbone": [[-1, 1, "Conv", [8, 3, 8]]], "head": [[[-1], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip


def described(row: list | None = None, **changes: Any) -> dict[str, Any]:
    """PLAIN with another first row, or other values."""
    description = copy.deepcopy(PLAIN) | changes
    if row is not None:
        description["backbone"] = [row]
    return description


def refused(description: dict[str, Any]) -> str:
    """What is said of it, soon and for little memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError) as caught:
        Model(description, verbose=False)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 600_000 and time.process_time() - began < 15, f"{more} KiB, {time.process_time() - began:.1f} s"
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("key, value", [
    ("nc", 10**9), ("nc", 100_001), ("nc", 10**400), ("ch", 10**9), ("depth_multiple", 1e9), ("width_multiple", 1e9),
    ("width_multiple", float("nan")), ("depth_multiple", float("inf")), ("depth_multiple", 10**400),
    ("depth_multiple", 0), ("anchors", 10**9), ("anchors", [[float("inf"), 1]]), ("anchors", [[1] * 400]),
])  # fmt: skip
def test_values_for_the_whole_model(key: str, value: Any) -> None:
    assert refused(described(**{key: value})).startswith(f"model description: {key}")


ROWS = {
    "channels": ([-1, 1, "Conv", [10**9, 3]], "a number is larger"),
    "channels that are numbers": ([-1, 1, "Conv", [float("nan"), 3]], "a number is larger"),
    "a wide layer": ([-1, 1, "Conv", [900_000, 99]], "parameters up to here"),
    "a wide map": ([-1, 1, "Conv", [20_000, 1]], "maps are too large"),
    "a large kernel": ([-1, 1, "Conv", [64, 5000]], "parameters up to here"),
    "many places": ([-1, 1, "Conv", [64, 301]], "maps are too large"),
    "repeats": ([-1, 10**9, "Conv", [8]], "more than 500 layers"),
    "depth": ([-1, 501, "C3", [8]], "more than 500 layers"),
    "negative channels": ([-1, 1, "Conv", [-64, 3]], "negative dimension"),
    "negative strides": ([-1, 1, "Conv", [64, 3, -1]], "non-positive stride"),
    "no strides": ([-1, 1, "Conv", [64, 3, 0]], "non-positive stride"),
    "a matrix": ([-1, 1, "nn.Linear", [256, 399_999]], "maps are too large"),
    "a table": ([-1, 1, "nn.Embedding", [1_000_000, 1000]], "parameters up to here"),
    "enlarged": ([-1, 1, "nn.Upsample", [None, 1000, "nearest"]], "maps are too large"),
    "enlarged to": ([-1, 1, "nn.Upsample", [[100_000, 100_000]]], "maps are too large"),
    "a border": ([-1, 1, "nn.ZeroPad2d", [100_000]], "maps are too large"),
    "averages": ([-1, 1, "nn.AdaptiveAvgPool2d", [100_000]], "maps are too large"),
    "largest of many": ([-1, 1, "nn.MaxPool2d", [255, 1, 127]], "maps are too large"),
    "neighbours": ([-1, 1, "nn.Unfold", [90]], "maps are too large"),
    "transposed": ([-1, 1, "nn.ConvTranspose2d", [3, 8, 2, 1000]], "maps are too large"),
    "all pairs of pixels": ([-1, 1, "C3TR", [64]], "maps are too large"),
    "sequences": ([-1, 1, "nn.Transformer", [8, 8, 999_999]], "works on sequences"),
    "memory": ([-1, 1, "nn.LSTM", [8, 8, 999_999]], "works on sequences"),
    "another device": ([-1, 1, "nn.Conv2d", [3, 8, 3, {"device": "cuda"}]], "device is not for a description"),
    "another type": ([-1, 1, "nn.Conv2d", [3, 8, 3, {"dtype": 1}]], "dtype is not for a description"),
    "text for a number": ([-1, 1, "Conv", ["(" * 5000]], "number of output channels"),
    "an assertion": ([-1, 1, "nn.MultiheadAttention", [3, 2]], "embed_dim must be divisible"),
    "a name without end": (["x" * 9999, 1, "Conv", [8]], "'from' must be"),
    "a row without end": ("x" * 9999, "expected [from"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ROWS)
def test_rows(case: str) -> None:
    row, says = ROWS[case]
    assert says in (said := refused(described(row))) and "layer 0 " in said


def test_layers_are_counted_over_all_rows() -> None:
    rows = [[-1, 100, "nn.Identity", []]] * 6
    assert "layer 5 " in (said := refused(described(backbone=[*rows, *PLAIN["backbone"]]))) and "500 layers" in said


def test_parameters_are_counted_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_PARAMETERS", 1000)
    rows = [[-1, 1, "Conv", [8, 3, 8]], [-1, 1, "Conv", [8, 3]], [-1, 1, "Conv", [8, 3]]]
    assert "layer 2 " in refused(described(backbone=rows)), "232 + 592 fit, 592 more do not"


@pytest.mark.parametrize(
    "run, values, products",
    [
        (nn.Conv2d(4, 6, 3, 2, 1), 6 * 8 * 8, 6 * 8 * 8 * 4 * 9),
        (nn.Conv2d(4, 6, (3, 1), (2, 1), groups=2), 6 * 7 * 16, 6 * 7 * 16 * 2 * 3),
        (nn.Conv2d(4, 6, 3, dilation=2), 6 * 12 * 12, 6 * 12 * 12 * 4 * 9),
        (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), 6 * 16 * 16, 6 * 16 * 16 * 4 * 15),
        (nn.Conv2d(4, 6, 3, padding="valid"), 6 * 14 * 14, 6 * 14 * 14 * 4 * 9),
        (lambda x: nn.functional.conv2d(weight=torch.zeros(6, 4, 3, 3), input=x), 6 * 14 * 14, 6 * 14 * 14 * 4 * 9),
        (nn.MaxPool2d(5, 2, 2), 4 * 8 * 8, 64 * 4 * 16 * 16 * 25),
        (nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), dilation=2, groups=2), 6 * 34 * 50, 4 * 16 * 16 * 3 * 9),
        (nn.ConvTranspose2d(4, 6, 2, 2), 6 * 32 * 32, 4 * 16 * 16 * 6 * 4),
        (nn.Linear(16, 5), 4 * 16 * 5, 4 * 16 * 5 * 16),
        (nn.Upsample(scale_factor=2), 4 * 32 * 32, None),
        (nn.Upsample(size=(5, 7), mode="bilinear"), 4 * 5 * 7, None),
        (nn.AdaptiveAvgPool2d((3, None)), None, None),
        (nn.ZeroPad2d((1, 2, 3, 4)), 4 * 23 * 19, 0),
        (nn.Unfold(3), 4 * 9 * 14 * 14, 0),
        (nn.Unfold((3, 2), padding=1, stride=2), 4 * 6 * 8 * 9, 0),
        (lambda x: torch.cat((x, x), 1), 8 * 16 * 16, 0),
        (lambda x: torch.cat(tensors=(x, x), dim=1), 8 * 16 * 16, 0),
        (lambda x: torch.matmul(x, other=x), 4 * 16 * 16, 4 * 16**3),
        (lambda x: x @ x.transpose(-1, -2), 4 * 16 * 16, 4 * 16**3),
        (lambda x: torch.matmul(x, torch.zeros(3, 1, 16, 5)), 3 * 4 * 16 * 5, 3 * 4 * 16 * 5 * 16),
        (lambda x: x @ torch.zeros(16), 4 * 16, 4 * 16 * 16),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_the_watch_counts_what_comes_out(run: Any, values: int | None, products: int | None) -> None:
    with torch.no_grad(), CostGuard() as watch:
        out = run(torch.zeros(1, 4, 16, 16))
    if values is not None:
        assert watch.values == values == out.numel()
    if products is not None:
        assert watch.products == products
