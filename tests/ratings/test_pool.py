"""The pool: what it is at its ends, and that it finds who is to be trusted."""

import numpy as np
import pytest
import scipy.optimize

from palate.ratings.pool import Pool, fit_pool

LEVELS = 4


def a_world(rng: np.random.Generator, size: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers that depend on two features, and probabilities that know the first of them."""
    features = rng.standard_normal((size, 2)) * [1.0, 50.0]
    places = np.linspace(0, 1, LEVELS)

    def probabilities(score: np.ndarray) -> np.ndarray:
        weights = np.exp(score[:, None] * places)
        return weights / weights.sum(1, keepdims=True)

    truth = probabilities(3 * features[:, 0] + 2 * features[:, 1] / 50)
    level = (rng.random((size, 1)) > truth.cumsum(1)).sum(1)
    return probabilities(3 * features[:, 0]), features[:, 1:], level


def log_loss(probabilities: np.ndarray, level: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(level)), level]).mean())


def test_with_full_trust_and_no_weights_the_networks_speak_alone() -> None:
    rng = np.random.default_rng(0)
    said, features, _ = a_world(rng, 50)
    pool = Pool(1.0, np.zeros(1), np.zeros(LEVELS))
    np.testing.assert_allclose(pool.mix(said, features), said, rtol=1e-6)


def test_without_trust_the_order_is_that_of_the_features() -> None:
    rng = np.random.default_rng(0)
    said, features, _ = a_world(rng, 50)
    mixed = Pool(0.0, np.ones(1), rng.standard_normal(LEVELS)).mix(said, features)
    for gain in (np.arange(LEVELS), 2.0 ** np.arange(LEVELS)):
        np.testing.assert_array_equal(np.argsort(mixed @ gain), np.argsort(features[:, 0]))


def test_both_together_are_better_than_either() -> None:
    rng = np.random.default_rng(1)
    pool = fit_pool(*a_world(rng), np.ones(3000))
    said, features, level = a_world(rng)
    alone = log_loss(Pool(0.0, pool.weights, pool.bias).mix(said, features), level)
    assert log_loss(pool.mix(said, features), level) < log_loss(said, level) - 0.02 < alone
    assert 0.9 < pool.trust < 1.1
    assert pool.weights[0] * 50 == pytest.approx(2, abs=0.3)


def test_networks_that_know_nothing_lose_their_say() -> None:
    rng = np.random.default_rng(2)
    said, features, level = a_world(rng)
    pool = fit_pool(rng.permutation(said), features, level, np.ones(len(level)))
    assert pool.trust < 0.1


def test_without_an_answer_the_networks_stay_alone() -> None:
    said, features, level = a_world(np.random.default_rng(3), 20)
    nothing = fit_pool(said, features, level, np.zeros(20))
    np.testing.assert_allclose(nothing.mix(said, features), said, rtol=1e-6)


def test_a_feature_without_spread_changes_nothing() -> None:
    said, features, level = a_world(np.random.default_rng(4), 200)
    pool = fit_pool(said, np.c_[features, np.full(200, 7.0)], level, np.ones(200))
    assert pool.weights[1] == 0


def test_the_fit_is_at_the_minimum_of_its_loss() -> None:
    said, features, level = a_world(np.random.default_rng(5), 300)
    standard = (features - features.mean(0)) / features.std(0)

    def loss(parameters: np.ndarray) -> float:
        mixed = Pool(parameters[0], parameters[1:2], parameters[2:]).mix(said, standard)
        away = parameters - np.r_[1, np.zeros(len(parameters) - 1)]
        return log_loss(mixed, level) * 300 + float(away @ away)

    pool = fit_pool(said, standard, level, np.ones(300))
    found = np.r_[pool.trust, pool.weights, pool.bias]
    best = scipy.optimize.minimize(loss, np.r_[1, np.zeros(1 + LEVELS)]).fun
    assert loss(found) == pytest.approx(best, abs=1e-2)
