"""What may be given to the attention: every kind of argument, with values that fit and values that do not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from models.bra import arguments as check

NO_NUMBERS = (None, "4", "four", True, False, [4], 4j, torch.ones(2, 3), float("nan"))


def refusal(function: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -3, 2.5, float("inf"), np.float32(4)])
def test_not_a_whole_number(value: Any) -> None:
    message = refusal(check.whole_number, "topk", value)
    assert re.fullmatch(r"topk=.*: give a whole number of at least 1(; write 4)?", message)


def test_whole_numbers() -> None:
    found = check.whole_number("topk", np.int64(4))
    assert found == 4
    assert type(found) is int
    assert check.whole_number("num_classes", 0, least=0) == 0
    assert refusal(check.whole_number, "topk", 4.0, note=" or so") == (
        "topk=4.0: give a whole number of at least 1 or so; write 4"
    )


def test_a_long_value_is_cut_short() -> None:
    assert len(refusal(check.whole_number, "topk", "seven" * 100)) < 150


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, float("inf")])
def test_not_a_positive_number(value: Any) -> None:
    assert refusal(check.positive_number, "mlp_ratio", value).startswith("mlp_ratio=")


def test_numbers() -> None:
    assert check.positive_number("mlp_ratio", 3) == 3
    assert check.positive_number("mlp_ratio", np.float32(0.5)) == 0.5
    assert check.finite_number("layer_scale_init_value", -1) == -1
    for value in (*NO_NUMBERS, float("inf")):
        assert "give a number" in refusal(check.finite_number, "layer_scale_init_value", value)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, None, []])
def test_text_and_numbers_are_neither_true_nor_false(value: Any) -> None:
    assert "auto_pad=" in refusal(check.true_or_false, pre_norm=True, auto_pad=value)


def test_words() -> None:
    check.true_or_false(pre_norm=True, auto_pad=False)
    assert check.one_of("mode", "b", ("a", "b")) == "b"
    for value in ("c", None, 1, ["a"]):
        assert refusal(check.one_of, "mode", value, ("a", "b")) == f"mode={value!r}: allowed are a, b"


def test_kernels() -> None:
    assert [check.odd_kernel("side_dwconv", side) for side in (0, 1, np.int32(7))] == [0, 1, 7]
    for value in (*NO_NUMBERS, 2, -1, 3.0):
        assert "odd whole number, or 0" in refusal(check.odd_kernel, "side_dwconv", value)


def test_widths_and_heads() -> None:
    assert check.head_widths(16, None, 2) == (16, 16, 2)
    assert check.head_widths(np.int64(16), 8, 4) == (16, 8, 4)
    assert refusal(check.head_widths, 16, 6, 4) == (
        "qk_dim=6 does not divide into num_heads=4 heads; give a multiple of it"
    )
    for args in ((0, None, 1), (16, 0, 1), (16, True, 1), (16, 16, 0), (16.0, 16, 1)):
        assert "give a whole number of at least 1" in refusal(check.head_widths, *args)


def test_scales() -> None:
    assert check.logit_scale(None, 16) == check.logit_scale(0.25, 99) == 0.25
    assert check.logit_scale("head", 16, 4) == 0.5
    for value in (0, -1, True, "tail", float("nan")):
        assert "give a number above 0, 'head', or nothing" in refusal(check.logit_scale, value, 16)


def test_regions() -> None:
    assert check.region_layout("auto", None) == ("auto", None)
    assert check.region_layout(7, 3) == (7, (3, 3))
    assert check.region_layout(np.int64(7), [np.int64(3), 4]) == (7, (3, 4))
    for value in (0, -1, 2.5, 4.0, True, None, "8x8", [8]):
        assert "'auto'" in refusal(check.region_layout, value, None)
    for value in (0, 2.5, 4.0, True, "33", [3], (3, 4, 5), (3, True), {3, 4}):
        assert "height and width" in refusal(check.region_layout, 7, value)


def test_rates() -> None:
    assert [check.drop_rate(rate) for rate in (0, 0.5, np.float64(0.25))] == [0, 0.5, 0.25]
    for value in (*NO_NUMBERS, -0.1, 1, 1.0):
        assert "from 0 to below 1" in refusal(check.drop_rate, value)
