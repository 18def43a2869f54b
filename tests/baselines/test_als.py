"""ALS: fold-in against the dense normal equations, the objective at every half-step, padding, batching."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from palate.baselines.als import Group, group_rows, solve_side
from palate.baselines.base import at_decay, weigh_events
from palate.baselines.explicit_als import rated
from palate.baselines.implicit_als import (
    ImplicitALSConfig,
    confident,
    fit_implicit_als,
    fit_item_factors,
    penalised_gram,
)
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError


def matrix_of(seed: int, num_users: int = 60, num_items: int = 25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = (rng.random((num_users, num_items)) < np.linspace(0.7, 0.05, num_items)).astype(np.float32)
    matrix[0] = 0
    matrix[:, -1] = 0
    return matrix


def log_of(matrix: np.ndarray) -> EventLog:
    return from_sequences([np.flatnonzero(row) for row in matrix])


def dense_fold_in(items: np.ndarray, counts: np.ndarray, config: ImplicitALSConfig) -> np.ndarray:
    """One person's normal equations as in the paper, (YᵀCY + λI) x = YᵀC p, in float64."""
    y = items.astype(np.float64)
    confidence = np.diag(1 + config.alpha * counts)
    normal = y.T @ confidence @ y + config.regularisation * np.eye(y.shape[1])
    return np.linalg.solve(normal, y.T @ confidence @ (counts > 0))


# With 40 factors every person has fewer events than factors (the small system), with 3 most have more.
@pytest.mark.parametrize("num_factors", [3, 10, 40])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_fold_in_equals_the_dense_normal_equations(num_factors: int, alpha: float, decay: float) -> None:
    config = ImplicitALSConfig(num_factors=num_factors, regularisation=1.0, alpha=alpha)
    log = log_of(matrix_of(0))
    items = fit_item_factors(log, 25, config)
    shown = weigh_events(log, 25, decay)
    folded = solve_side(items, penalised_gram(items, config), confident(shown, alpha), log.num_users)
    expected = np.array([dense_fold_in(items, row, config) for row in shown.toarray().astype(np.float64)])
    np.testing.assert_allclose(folded, expected, rtol=1e-3, atol=1e-5)
    assert not folded[0].any(), "no events, no vector"
    scores = at_decay(fit_implicit_als(log, 25, config), 25, decay)(log)
    np.testing.assert_allclose(scores[1:], expected[1:] @ items.T, rtol=1e-3, atol=1e-5)


def objective(matrix: np.ndarray, users: np.ndarray, items: np.ndarray, config: ImplicitALSConfig) -> float:
    users, items = users.astype(np.float64), items.astype(np.float64)
    squared = (1 + config.alpha * matrix) * (matrix - users @ items.T) ** 2
    return float(squared.sum() + config.regularisation * ((users**2).sum() + (items**2).sum()))


@pytest.mark.parametrize("num_factors", [4, 30])
def test_every_half_step_lowers_the_objective(num_factors: int) -> None:
    config = ImplicitALSConfig(num_factors=num_factors, regularisation=2.0, alpha=5.0)
    matrix = matrix_of(1)
    had = csr_array(matrix)
    by_user, by_item = confident(had, config.alpha), confident(had.T.tocsr(), config.alpha)
    items = np.random.default_rng(0).standard_normal((25, num_factors), dtype=np.float32)
    users = np.zeros((60, num_factors), dtype=np.float32)
    values = [objective(matrix, users, items, config)]
    for _ in range(4):
        users = solve_side(items, penalised_gram(items, config), by_user, 60)
        values.append(objective(matrix, users, items, config))
        items = solve_side(users, penalised_gram(users, config), by_item, 25)
        values.append(objective(matrix, users, items, config))
    assert (np.diff(values) < 0).all(), values


@pytest.mark.parametrize("growth", [0.0, 0.1])
def test_padding_is_inert(growth: float) -> None:
    rng = np.random.default_rng(3)
    items = rng.standard_normal((25, 6))
    shared = items.T @ items + np.eye(6)
    for support in ([4, 9], [1, 2, 3, 5, 8, 13, 21]):
        weights, targets = rng.uniform(0.5, 2, (2, 1, len(support)))
        bare = Group(np.array([0]), np.array([support]), weights, targets)
        for padding in (1, 10):
            nothing = np.zeros((1, padding))
            padded = Group(
                np.array([0]), np.array([support + [-1] * padding]), np.c_[weights, nothing], np.c_[targets, nothing]
            )
            np.testing.assert_allclose(
                solve_side(items, shared, (padded,), 1, growth=growth),
                solve_side(items, shared, (bare,), 1, growth=growth),
                rtol=1e-9,
            )


def test_groups_hold_every_cell_once_with_little_padding() -> None:
    rng = np.random.default_rng(4)
    lists = [np.sort(rng.choice(500, rng.integers(0, 400), replace=False)) for _ in range(300)]
    cells = weigh_events(from_sequences(lists), 500, 1.0)
    weights, targets = rng.uniform(1, 2, (2, cells.nnz))
    groups = group_rows(cells.indptr, cells.indices, weights, targets)
    seen, read = {}, []
    for group in groups:
        for row, members, *values in zip(group.rows.tolist(), *group[1:], strict=True):
            assert row not in seen
            seen[row] = members[members >= 0].tolist()
            assert not np.array(values)[:, members < 0].any()
            read += [(row, *pair) for pair in np.array(values)[:, members >= 0].T.tolist()]
    assert seen == {row: items.tolist() for row, items in enumerate(lists) if len(items)}
    rows = np.repeat(np.arange(300), [len(items) for items in lists])
    assert sorted(read) == sorted(zip(rows.tolist(), weights.tolist(), targets.tolist(), strict=True))
    assert sum(group.members.size for group in groups) < 1.3 * sum(map(len, lists))


def test_a_row_longer_than_a_batch_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.baselines.als.CELLS_AT_ONCE", 10)
    cells = weigh_events(from_sequences([np.arange(12), np.arange(12), np.arange(5), np.arange(5)]), 12, 1.0)
    groups = group_rows(cells.indptr, cells.indices, cells.data, cells.data)
    assert [group.members.shape for group in groups] == [(2, 5), (1, 12), (1, 12)]


# With 30 factors every row has fewer ratings than factors, with 3 most have more.
@pytest.mark.parametrize("num_factors", [3, 30])
@pytest.mark.parametrize("growth", [0.0, 0.05])
def test_ratings_are_solved_as_one_ridge_regression_a_row(num_factors: int, growth: float) -> None:
    rng = np.random.default_rng(5)
    fixed = rng.normal(size=(20, num_factors))
    rows, columns, values = rng.integers(0, 12, 150), rng.integers(0, 20, 150), rng.normal(size=150)
    rows[rows == 4] = 3
    found = solve_side(fixed, 2.0 * np.eye(num_factors), rated(rows, columns, values, 13), 13, growth=growth)
    for row in range(13):
        features = fixed[columns[rows == row]]
        penalty = 2.0 * (1 + growth * len(features)) * np.eye(num_factors)
        expected = np.linalg.solve(features.T @ features + penalty, features.T @ values[rows == row])
        np.testing.assert_allclose(found[row], expected, rtol=1e-8, atol=1e-12)
    assert not found[4].any()
    assert not found[12].any()


def test_seed_decides_the_model() -> None:
    shown = weigh_events(from_sequences([[3, 4]]), 25, 1.0)
    one, same, other = (
        fit_implicit_als(
            log_of(matrix_of(2)), 25, ImplicitALSConfig(num_factors=4, regularisation=1.0, num_iterations=1, seed=seed)
        )(shown)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("num_factors", 0), ("num_iterations", 0), ("regularisation", 0.0), ("alpha", 0.0)]
)
def test_refuses_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"als\.{name}: got 0"):
        ImplicitALSConfig(**{name: value})
    with pytest.raises(ConfigError, match=r"als\.seed: got -1"):
        ImplicitALSConfig(seed=-1)
