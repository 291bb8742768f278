"""The cheapest pairs, against trying all of them."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.predict.assignment import cheapest_pairs


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_pair(shape):
    rows, columns = cheapest_pairs(np.zeros(shape))
    assert len(rows) == len(columns) == 0


def least_cost(cost):
    """By trying every choice of columns."""
    wide = cost if cost.shape[0] <= cost.shape[1] else cost.T
    chosen = permutations(range(wide.shape[1]), len(wide))
    return min(sum(wide[row, column] for row, column in enumerate(columns)) for columns in chosen)


tables = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-4, 4) | st.floats(-1e3, 1e3))
)


@given(tables)
def test_no_other_pairing_costs_less(cost):
    before = cost.copy()
    rows, columns = cheapest_pairs(cost)
    assert len(rows) == len(columns) == min(cost.shape)
    assert len(set(columns)) == len(columns) and np.array_equal(rows, np.unique(rows))
    assert cost[rows, columns].sum() == pytest.approx(least_cost(cost), abs=1e-6)
    assert np.array_equal(cost, before)


def test_as_scipy_does_on_larger_tables():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for shape in ((40, 60), (60, 40), (50, 50)):
        cost = rng.random(shape)
        assert np.array_equal(cheapest_pairs(cost), optimize.linear_sum_assignment(cost))


@pytest.mark.parametrize("cost", [np.zeros(3), np.zeros((1, 2, 3)), np.array([[np.nan]]), np.array([[0, np.inf]])])
def test_what_is_no_cost_table(cost):
    with pytest.raises(ValueError, match="cost table"):
        cheapest_pairs(cost)
