"""ALS: fold-in against the dense normal equations, the objective at every half-step, padding, batching."""

import numpy as np
import pytest

from palate.baselines.als import (
    ALSConfig,
    Group,
    als_scorer,
    fit_als,
    fit_item_factors,
    group_by_length,
    list_purchases,
    solve_side,
)
from palate.errors import ConfigError


def matrix_of(seed: int, num_users: int = 60, num_items: int = 25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = (rng.random((num_users, num_items)) < np.linspace(0.7, 0.05, num_items)).astype(np.float32)
    matrix[0] = 0
    matrix[:, -1] = 0
    return matrix


def dense_fold_in(items: np.ndarray, bought: np.ndarray, config: ALSConfig) -> np.ndarray:
    """One person's normal equations as in the paper, (YᵀCY + λI) x = YᵀC p, in float64."""
    y = items.astype(np.float64)
    preference = np.zeros(len(y))
    preference[bought] = 1
    confidence = np.diag(1 + config.alpha * preference)
    normal = y.T @ confidence @ y + config.regularisation * np.eye(y.shape[1])
    return np.linalg.solve(normal, y.T @ confidence @ preference)


# With 40 factors every person has fewer purchases than factors (the small system), with 3 most have more.
@pytest.mark.parametrize("num_factors", [3, 10, 40])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_fold_in_equals_the_dense_normal_equations(num_factors: int, alpha: float) -> None:
    config = ALSConfig(num_factors=num_factors, regularisation=1.0, alpha=alpha)
    matrix = matrix_of(0)
    items = fit_item_factors(list_purchases(matrix), config)
    supports = [np.flatnonzero(row) for row in matrix]
    folded = solve_side(items, group_by_length(supports), len(supports), config)
    expected = np.array([dense_fold_in(items, support, config) for support in supports])
    np.testing.assert_allclose(folded, expected, rtol=1e-3, atol=1e-5)
    assert not folded[0].any(), "no purchases, no vector"
    scores = als_scorer(list_purchases(matrix), config)(supports[1:])
    np.testing.assert_allclose(scores, expected[1:] @ items.T, rtol=1e-3, atol=1e-5)


def objective(matrix: np.ndarray, users: np.ndarray, items: np.ndarray, config: ALSConfig) -> float:
    users, items = users.astype(np.float64), items.astype(np.float64)
    squared = (1 + config.alpha * matrix) * (matrix - users @ items.T) ** 2
    return float(squared.sum() + config.regularisation * ((users**2).sum() + (items**2).sum()))


@pytest.mark.parametrize("num_factors", [4, 30])
def test_every_half_step_lowers_the_objective(num_factors: int) -> None:
    config = ALSConfig(num_factors=num_factors, regularisation=2.0, alpha=5.0)
    matrix = matrix_of(1)
    purchases = list_purchases(matrix)
    items = np.random.default_rng(0).standard_normal((25, num_factors), dtype=np.float32)
    users = np.zeros((60, num_factors), dtype=np.float32)
    values = [objective(matrix, users, items, config)]
    for _ in range(4):
        users = solve_side(items, purchases.by_user, 60, config)
        values.append(objective(matrix, users, items, config))
        items = solve_side(users, purchases.by_item, 25, config)
        values.append(objective(matrix, users, items, config))
    assert (np.diff(values) < 0).all(), values


def test_padding_is_inert() -> None:
    items = np.random.default_rng(3).standard_normal((25, 6), dtype=np.float32)
    config = ALSConfig(num_factors=6)
    for support in ([4, 9], [1, 2, 3, 5, 8, 13, 21]):
        bare = Group(np.array([0]), np.array([support]))
        for padding in (1, 10):
            padded = Group(np.array([0]), np.array([support + [-1] * padding]))
            np.testing.assert_allclose(
                solve_side(items, (padded,), 1, config),
                solve_side(items, (bare,), 1, config),
                rtol=1e-4,
                atol=1e-6,
            )


def test_groups_hold_every_list_once_with_little_padding() -> None:
    rng = np.random.default_rng(4)
    lists = [np.sort(rng.choice(500, rng.integers(0, 400), replace=False)) for _ in range(300)]
    groups = group_by_length(lists)
    seen = {}
    for group in groups:
        for row, members in zip(group.rows.tolist(), group.members, strict=True):
            assert row not in seen
            seen[row] = members[members >= 0].tolist()
    assert seen == {row: items.tolist() for row, items in enumerate(lists) if len(items)}
    assert sum(group.members.size for group in groups) < 1.3 * sum(map(len, lists))


def test_a_list_longer_than_a_batch_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.baselines.als.CELLS_AT_ONCE", 10)
    groups = group_by_length([np.arange(12), np.arange(12), np.arange(5), np.arange(5)])
    assert [group.members.shape for group in groups] == [(2, 5), (1, 12), (1, 12)]


def test_seed_decides_the_model() -> None:
    support = [np.array([3, 4])]
    one, same, other = (
        fit_als(matrix_of(2), ALSConfig(num_factors=4, regularisation=1.0, num_iterations=1, seed=seed))(support)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("num_factors", 0), ("num_iterations", 0), ("regularisation", 0.0), ("alpha", 0.0)]
)
def test_refuses_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"als\.{name}: got 0"):
        ALSConfig(**{name: value})
    with pytest.raises(ConfigError, match=r"als\.seed: got -1"):
        ALSConfig(seed=-1)
