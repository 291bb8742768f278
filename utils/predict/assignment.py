"""The cheapest way to pair rows with columns, when each may be used once."""

from __future__ import annotations

import numpy as np

FREE = -1  # a row or column without a partner


def cheapest_pairs(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows and columns of a finite cost table (n, m) so that the sum of costs is least.

    Returns the row and the column of each of the min(n, m) pairs, by rising row. Raises ValueError for what is no table
    and for costs that are not finite.
    """
    table = np.asarray(cost, np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"a cost table has two dimensions and finite numbers; this one has shape {table.shape}")
    if table.shape[0] > table.shape[1]:
        columns, rows = cheapest_pairs(table.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    rows = np.arange(len(table))
    return rows, _columns_of_rows(table)


def _columns_of_rows(cost: np.ndarray) -> np.ndarray:
    """The column of each row of a table that is no higher than wide.

    One row after the other finds its place by the cheapest chain of changes to the places given so far. Costs are seen
    through prices of rows and columns, which keep them non-negative, so that Dijkstra's algorithm finds the chain
    (D. F. Crouse, "On implementing 2D rectangular assignment algorithms", 2016).
    """
    height, width = cost.shape
    row_price, column_price = np.zeros(height), np.zeros(width)
    column_of, row_of = np.full(height, FREE), np.full(width, FREE)
    for start in range(height):
        distance, came_from = np.full(width, np.inf), np.full(width, FREE)
        visited = np.zeros(width, bool)
        row, so_far, column = start, 0.0, FREE
        while row != FREE:
            step = so_far + cost[row] - row_price[row] - column_price
            nearer = ~visited & (step < distance)
            distance[nearer], came_from[nearer] = step[nearer], row
            column = int(np.where(visited, np.inf, distance).argmin())
            so_far, visited[column] = distance[column], True
            row = row_of[column]
        passed = np.flatnonzero(visited & (row_of != FREE))
        row_price[start] += so_far
        row_price[row_of[passed]] += so_far - distance[passed]
        column_price[passed] -= so_far - distance[passed]
        while row != start:  # the end of the chain is free: everyone on it moves up
            row = came_from[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]
    return column_of
