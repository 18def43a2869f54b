"""Popularity, item-kNN, EASE and the trivial baselines against slow-but-obvious references."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from palate.baselines import NEWCOMER_BASELINES, EASEConfig, ItemKNNConfig, NoSettings, RandomConfig
from palate.data.event_log import from_sequences
from palate.errors import ConfigError

HAND_MATRIX = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=np.float32)


def matrix_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = (rng.random((40, 15)) < np.linspace(0.5, 0.1, 15)).astype(np.float32)
    matrix[:, -1] = 0
    return matrix


def one_at_a_time(num_items: int) -> list[np.ndarray]:
    return [np.array([item]) for item in range(num_items)]


def fit(name: str, matrix: np.ndarray, config: Any = None) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A baseline of newcomers on a purchase matrix; reads supports."""
    entry = NEWCOMER_BASELINES[name]
    log = from_sequences([np.flatnonzero(row) for row in matrix])
    scorer = entry.fit(log, matrix.shape[1], config or entry.configs[0], 1.0)
    return lambda supports: scorer(from_sequences(supports))


def test_popularity_is_the_share_of_buyers() -> None:
    scores = fit("popularity", HAND_MATRIX)([np.array([3]), np.array([0, 1])])
    np.testing.assert_allclose(scores, np.tile([1, 2 / 3, 1 / 3, 0], (2, 1)), rtol=1e-6)


def test_constant_scores_all_alike() -> None:
    assert not fit("constant", HAND_MATRIX, NoSettings())([np.array([1]), np.array([2])]).any()


def test_random_depends_on_seed_and_row_only() -> None:
    supports = one_at_a_time(4)
    scores = fit("random", HAND_MATRIX, RandomConfig(seed=1))(supports)
    np.testing.assert_array_equal(scores[:2], fit("random", HAND_MATRIX, RandomConfig(seed=1))(supports[2:]))
    assert not np.array_equal(scores, fit("random", HAND_MATRIX, RandomConfig(seed=2))(supports))
    assert len({row.tobytes() for row in scores}) == 4


def test_item_knn_by_hand() -> None:
    # Items 0 and 1 share two buyers, of three and two: 2 / (√6 + 1); items 0 and 2 share one: 1 / (√3 + 1).
    scores = fit("item_knn", HAND_MATRIX, ItemKNNConfig(shrink=1.0))([np.array([0])])
    np.testing.assert_allclose(scores[0, 1:3], [2 / (np.sqrt(6) + 1), 1 / (np.sqrt(3) + 1)], rtol=1e-6)
    assert scores[0, 0] < 1e-6, "an item is no neighbour of itself"
    assert scores[0, 3] == 0


@pytest.mark.parametrize("top_k", [None, 1, 3, 100])
def test_item_knn_equals_loops(top_k: int | None) -> None:
    matrix = matrix_of(0)
    num_items = matrix.shape[1]
    similarity = np.zeros((num_items, num_items))
    for one in range(num_items):
        for other in range(num_items):
            if one != other:
                both = sum(row[one] * row[other] for row in matrix)
                similarity[one, other] = both / (np.sqrt(matrix[:, one].sum() * matrix[:, other].sum()) + 10)
        if top_k is not None and top_k < num_items:
            last = sorted(similarity[one], reverse=True)[top_k - 1]
            # The same sum may be rounded two ways, so a tie is what agrees to nine digits.
            similarity[one] = [value if value > last - 1e-9 else 0 for value in similarity[one]]
    supports = [np.array([0]), np.array([2, 5, 9]), np.array([14])]
    expected = [similarity[support].sum(axis=0) for support in supports[:2]]
    scores = fit("item_knn", matrix, ItemKNNConfig(shrink=10.0, top_k=top_k))(supports)
    np.testing.assert_allclose(scores[:2], expected, rtol=1e-5, atol=1e-6)
    # Nobody bought item 14, so it says nothing: popularity.
    np.testing.assert_allclose(scores[2], matrix.mean(axis=0), rtol=1e-6)


def test_more_shrinkage_favours_what_many_bought() -> None:
    # Item 1 goes with item 0 for 9 of its 12 buyers; item 2 for its only buyer.
    matrix = np.zeros((13, 3), dtype=np.float32)
    matrix[:10, 0] = 1
    matrix[1:13, 1] = 1
    matrix[0, 2] = 1
    trusting, careful = (
        fit("item_knn", matrix, ItemKNNConfig(shrink=shrink))([np.array([0])])[0] for shrink in (0.01, 100.0)
    )
    assert trusting[1] / trusting[2] < careful[1] / careful[2]


@pytest.mark.parametrize("regularisation", [0.5, 20.0])
def test_ease_equals_ridge_regressions_that_leave_the_item_itself_out(regularisation: float) -> None:
    matrix = matrix_of(1)
    num_items = matrix.shape[1]
    weights = np.zeros((num_items, num_items))
    for target in range(num_items):
        others = [item for item in range(num_items) if item != target]
        inputs = matrix[:, others].astype(np.float64)
        normal = inputs.T @ inputs + regularisation * np.eye(num_items - 1)
        weights[others, target] = np.linalg.solve(normal, inputs.T @ matrix[:, target])
    scorer = fit("ease", matrix, EASEConfig(regularisation=regularisation))
    np.testing.assert_allclose(scorer(one_at_a_time(num_items - 1)), weights[:-1], rtol=1e-4, atol=1e-6)
    support = np.array([1, 4, 8])
    np.testing.assert_allclose(scorer([support])[0], weights[support].sum(axis=0), rtol=1e-4, atol=1e-6)


def test_one_persons_scores_do_not_depend_on_the_batch() -> None:
    for scorer in (fit("ease", matrix_of(2)), fit("item_knn", matrix_of(2))):
        together = scorer(one_at_a_time(15))
        for item in range(15):
            np.testing.assert_array_equal(together[item : item + 1], scorer([np.array([item])]))


def test_refuses_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"item_knn\.shrink: got 0"):
        ItemKNNConfig(shrink=0.0)
    with pytest.raises(ConfigError, match=r"item_knn\.top_k: got 0"):
        ItemKNNConfig(top_k=0)
    with pytest.raises(ConfigError, match=r"ease\.regularisation: got 0"):
        EASEConfig(regularisation=0.0)
    with pytest.raises(ConfigError, match=r"random\.seed: got -1"):
        RandomConfig(seed=-1)
