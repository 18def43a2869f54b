"""Alternating least squares: one side's vectors solved exactly while the other side's are fixed.

Yifan Hu, Yehuda Koren, Chris Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008,
doi 10.1109/ICDM.2008.22. Which cells of the matrix count, how much, and what they should be is the caller's: implicit
feedback counts every cell (`implicit_als.py`), ratings only those that were rated (`explicit_als.py`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CELLS_AT_ONCE = 1 << 14
"""Cells solved in one batch: with 128 factors, 8 MB of gathered vectors."""


class Group(NamedTuple):
    """Rows with about as many cells, solved as one batch."""

    rows: Int[np.ndarray, "row"]
    members: Int[np.ndarray, "row place"]
    """The columns of each row's cells, padded by -1."""
    weights: Float[np.ndarray, "row place"]
    """What each cell adds to how much its square counts; 0 for padding."""
    targets: Float[np.ndarray, "row place"]
    """How much each cell counts in all, times what it should be; 0 for padding."""


def group_rows(
    starts: Int[np.ndarray, "row_and_one"],
    columns: Int[np.ndarray, "cell"],
    weights: Float[np.ndarray, "cell"],
    targets: Float[np.ndarray, "cell"],
) -> tuple[Group, ...]:
    """Batch rows by length, so that little is spent on padding; empty ones are left out.

    Row u has the cells starts[u] to starts[u + 1]; `weights` and `targets` are those of `Group`.
    """
    lengths = np.diff(starts)
    rows = np.argsort(lengths, kind="stable")
    rows = rows[lengths[rows] > 0]
    groups = []
    start = 0
    while start < len(rows):
        shortest = lengths[rows[start]]
        stop = start + 1
        while stop < len(rows):
            longest = lengths[rows[stop]]
            if longest > 1.25 * shortest + 4 or longest * (stop + 1 - start) > CELLS_AT_ONCE:
                break
            stop += 1
        batch = rows[start:stop]
        places = np.arange(lengths[batch[-1]])
        real = places < lengths[batch][:, None]
        places = np.where(real, starts[batch][:, None] + places, 0)
        groups.append(
            Group(
                batch,
                np.where(real, columns[places], -1),
                np.where(real, weights[places], weights.dtype.type(0)),
                np.where(real, targets[places], targets.dtype.type(0)),
            )
        )
        start = stop
    return tuple(groups)


def solve_side(
    fixed: Float[np.ndarray, "member factor"],
    shared: Float[np.ndarray, "factor factor"],
    groups: tuple[Group, ...],
    num_rows: int,
    *,
    growth: float = 0.0,
) -> Float[np.ndarray, "row factor"]:
    """Solve ((1 + growth · n) S + Yᵤᵀ diag(weights) Yᵤ) x = Yᵤᵀ targets for every row u of n cells (eq. 4).

    Y is the fixed side and S, `shared`, what all rows have in common: the penalty λI, of implicit feedback with YᵀY.
    With LLᵀ = S and Z = Y L⁻ᵀ, row u is x = L⁻ᵀ w where w solves ((1 + growth · n) I + Zᵤᵀ diag(weights) Zᵤ) w =
    Zᵤᵀ targets. Where a row has fewer cells than factors, the same w comes from the smaller system
    w = Zᵤᵀ ((1 + growth · n) I + diag(weights) Zᵤ Zᵤᵀ)⁻¹ targets: exact as well, and 4 times as fast with 128 factors.
    A row without cells is 0.
    """
    num_factors = fixed.shape[1]
    whiten = np.linalg.inv(np.linalg.cholesky(shared))
    # The last row is what padding (-1) reads: a zero vector changes neither system's answer.
    whitened = np.concatenate([fixed @ whiten.T, np.zeros((1, num_factors), fixed.dtype)])
    solved = np.zeros((num_rows, num_factors), fixed.dtype)
    for rows, members, weights, targets in groups:
        z = whitened[members]
        size = min(members.shape[1], num_factors)
        small = size < num_factors
        system = weights[:, :, None] * (z @ z.mT) if small else z.mT @ (weights[:, :, None] * z)
        diagonal = np.arange(size)
        system[:, diagonal, diagonal] += (1 + growth * (members >= 0).sum(1, keepdims=True)).astype(fixed.dtype)
        right = targets[:, :, None]
        found = z.mT @ np.linalg.solve(system, right) if small else np.linalg.solve(system, z.mT @ right)
        solved[rows] = found[:, :, 0]
    return np.asarray(solved @ whiten)
