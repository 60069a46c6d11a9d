"""Linear assignment: which row goes with which column at the least total cost (Jonker and Volgenant, 1987)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.intp]


def solve(cost: NDArray[Any]) -> tuple[Index, Index]:
    """Return the rows and columns of the cheapest matching of an (n, m) cost matrix of finite numbers.

    min(n, m) pairs come back, rows ascending: the answer of `scipy.optimize.linear_sum_assignment`. Rows take their
    cheapest column while it is free, the rest are placed by shortest augmenting paths; O(n^3) at worst.
    """
    work = np.asarray(cost, np.float64)
    if work.size == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    if work.shape[0] > work.shape[1]:
        columns, rows = solve(work.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    n, m = work.shape
    u, v = work.min(axis=1), np.zeros(m)
    row_of, column_of = np.full(m, -1, np.intp), np.full(n, -1, np.intp)
    for row, column in enumerate(work.argmin(axis=1).tolist()):
        if row_of[column] < 0:
            row_of[column], column_of[row] = row, column
    for row in np.flatnonzero(column_of < 0).tolist():
        _augment(work, row, (u, v), row_of, column_of)
    return np.arange(n, dtype=np.intp), column_of


def _augment(cost: NDArray[np.float64], start: int, duals: tuple[Any, Any], row_of: Index, column_of: Index) -> None:
    """Give row `start` a column along the shortest path of reduced costs; the duals stay feasible."""
    u, v = duals
    m = cost.shape[1]
    distance = np.full(m, np.inf)
    before = np.full(m, -1, np.intp)
    left = np.ones(m, bool)
    row, base = start, 0.0
    while True:
        reached = cost[row] - v
        reached += base - u[row]
        closer = (reached < distance) & left
        distance[closer] = reached[closer]
        before[closer] = row
        column = int(np.where(left, distance, np.inf).argmin())
        base = float(distance[column])
        if row_of[column] < 0:
            break
        left[column] = False
        row = int(row_of[column])
    done = np.flatnonzero(~left)
    slack = base - distance[done]
    u[row_of[done]] += slack
    u[start] += base
    v[done] -= slack
    row = -1
    while row != start:
        row = int(before[column])
        row_of[column] = row
        column_of[row], column = column, int(column_of[row])


def assign(cost: NDArray[Any], limit: float) -> tuple[Index, Index]:
    """Match rows and columns of a cost matrix, leaving unmatched what would cost more than `limit`.

    A pair is worth `limit - cost`, an unmatched row or column nothing; the total worth is the largest possible. This is
    `lap.lapjv(cost, extend_cost=True, cost_limit=limit)`. Pairs that compete with no other are taken at once.
    """
    gain = np.minimum(np.asarray(cost, np.float64) - limit, 0.0)
    edges = gain < 0
    per_row, per_column = edges.sum(axis=1), edges.sum(axis=0)
    lone = edges & (per_row == 1)[:, None] & (per_column == 1)
    rows, columns = np.nonzero(lone)
    if len(rows) == int(edges.sum()):
        return rows, columns
    per_row[rows], per_column[columns] = 0, 0
    hard_rows, hard_columns = np.flatnonzero(per_row), np.flatnonzero(per_column)
    part = gain[np.ix_(hard_rows, hard_columns)]
    r, c = solve(part)
    keep = part[r, c] < 0
    rows = np.concatenate([rows, hard_rows[r[keep]]])
    columns = np.concatenate([columns, hard_columns[c[keep]]])
    order = np.argsort(rows)
    return rows[order], columns[order]
