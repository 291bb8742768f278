"""Fewer keys and values per region: fractional pooling cell by cell, and the grid that costs least."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.bra.modes import DOWNSAMPLE_MODES, FractionalKV, KVDownsample, best_side, make_downsample

POOLS = st.tuples(st.integers(1, 24), st.integers(2, 6), st.sampled_from([None, 1, 2, 3, 5, 9]))


def make(mode: str, ratio: int = 2, kernel: int | None = None) -> KVDownsample:
    return make_downsample(mode, channels=3, per_win=2, ratio=ratio, kernel=kernel)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", DOWNSAMPLE_MODES)
def test_no_regions(mode: str, training: bool) -> None:
    cells, kept = make(mode).train(training)(torch.zeros(0, 3, 6, 5), torch.zeros(0, 1, 6, 5, dtype=torch.bool))
    assert cells.shape[:2] == (0, 3)
    assert kept.shape == (0, 1, *cells.shape[2:])


def test_convolution_begins_as_average() -> None:
    cells = torch.randn(9, 3, 4, 4)
    torch.testing.assert_close(make("conv")(cells)[0], F.avg_pool2d(cells, 2))


# ---- fractional pooling
def test_fractional_pooling_draws_one_grid_for_keys_and_values() -> None:
    pool = make_downsample("fracpool", channels=32, per_win=None, ratio=2, kernel=None)
    position = torch.arange(81.0).view(1, 1, 9, 9).expand(1, 32, 9, 9)
    draws = [pool(position)[0] for _ in range(20)]
    assert all((d == d[:, :1]).all() for d in draws)
    assert len({tuple(d[0, 0].flatten().tolist()) for d in draws}) > 1
    assert all(d.shape == (1, 32, 4, 4) for d in draws)
    pool.eval()
    assert torch.equal(pool(position)[0], pool(position)[0])


def cells_by_hand(side: int, ratio: int, kernel: int | None, chance: float) -> list[range]:
    """The paper's sequence in fractions; a cell that would leave tokens out reaches to the next, or to the end."""
    count = max(1, round(side / ratio))
    length = min(kernel or ratio, side - count + 1)
    pace, shift = Fraction(side - length, max(1, count - 1)), Fraction(chance)
    starts = [math.floor(pace * (i + shift)) - math.floor(pace * shift) for i in range(count)]
    return [range(a, max(a + length, b)) for a, b in zip(starts, [*starts[1:], side], strict=True)]


@settings(max_examples=60, deadline=None)
@given(pool=POOLS, step=st.integers(0, 1023))
def test_cells_are_those_of_the_paper(pool: tuple[int, int, int | None], step: int) -> None:
    side, ratio, kernel = pool
    chance = step / 1024  # times a whole number without rounding, as fractions are
    tokens, seen = FractionalKV(ratio, kernel).windows(side, torch.tensor([chance, 0.5], dtype=torch.float64))
    for region, drawn in enumerate((chance, 0.5)):
        found = [tokens[i][seen[region, i]].tolist() for i in range(len(tokens))]
        assert found == [list(cell) for cell in cells_by_hand(side, ratio, kernel, drawn)]
        assert {token for cell in found for token in cell} == set(range(side))
        assert found[0][0] == 0  # where the real tokens are, if any are


@settings(max_examples=40, deadline=None)
@given(height=POOLS, width=st.integers(1, 24), seed=st.integers(0, 99))
def test_where_no_token_is_left_out_it_is_what_pytorch_computes(
    height: tuple[int, int, int | None], width: int, seed: int
) -> None:
    """With gradients. PyTorch takes the chance of columns first."""
    tall, ratio, kernel = height
    pool, sides = FractionalKV(ratio, kernel), (tall, width)
    counts = [max(1, round(side / ratio)) for side in sides]
    lengths = [min(pool.kernel, side - count + 1) for side, count in zip(sides, counts, strict=True)]
    gaps = [side - length > (count - 1) * length for side, length, count in zip(sides, lengths, counts, strict=True)]
    torch.manual_seed(seed)
    chance = torch.rand(5, 2)
    ours, theirs = (noise(5, 3, *sides).requires_grad_() for _ in range(2))
    torch.manual_seed(seed)
    found = pool.pool(ours)
    samples = chance.double().flip(1)[:, None].expand(-1, 3, -1)
    expected = F.fractional_max_pool2d(theirs, lengths, output_size=counts, _random_samples=samples)
    assert found.shape == expected.shape
    if any(gaps):
        assert (found >= expected).all() or 1 in counts  # more is looked at
        return
    assert torch.equal(found, expected)
    probe = torch.rand_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, x, probe) for y, x in ((found, ours), (expected, theirs))), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_a_ratio_that_divides_the_side_leaves_nothing_to_chance(ratio: int) -> None:
    x, pool = noise(20, 3, 4 * ratio, 3 * ratio), FractionalKV(ratio, None).train()
    assert torch.equal(pool(x)[0], F.max_pool2d(x, ratio))
    overlapping = FractionalKV(ratio, ratio + 1).train()(noise(1, 3, 8 * ratio, 8 * ratio).expand(50, -1, -1, -1))[0]
    assert len(overlapping.unique(dim=0)) > 1


@settings(max_examples=60, deadline=None)
@given(pool=POOLS, real=st.tuples(st.integers(1, 24), st.integers(1, 24)), training=st.booleans())
def test_padding_is_left_out_and_whatever_is_real_is_seen(
    pool: tuple[int, int, int | None], real: tuple[int, int], training: bool
) -> None:
    side, ratio, kernel = pool
    rows, cols = (min(part, side) for part in real)
    inside = torch.zeros(7, 1, side, side, dtype=torch.bool)
    inside[..., :rows, :cols] = True
    x = noise(7, 3, side, side)
    cells, kept = FractionalKV(ratio, kernel).train(training)(x.where(inside, 1e9), inside)
    assert kept[:, 0, 0, 0].all()
    assert (cells[~kept.expand_as(cells)] == 0).all()
    assert torch.equal(cells.where(kept, -1e9).amax((2, 3)), x[..., :rows, :cols].amax((2, 3)))


# ---- the number of regions
@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), dim=st.sampled_from([8, 64, 512]), topk=st.integers(1, 16))
def test_no_other_number_of_regions_costs_less(height: int, width: int, dim: int, topk: int) -> None:
    costs = {}
    for side in range(1, min(height, width) + 1):
        area = math.ceil(height / side) * math.ceil(width / side)  # tokens of a region
        regions = side * side
        attention = 2 * regions * area * min(topk, regions) * area * dim
        costs[side] = 4 * regions * area * dim**2 + 2 * regions**2 * dim + attention
    assert costs[best_side(height, width, dim, topk)] == min(costs.values())
