from dataclasses import replace

import numpy as np
import pytest

from palate.errors import ConfigError, DataError
from palate.ratings.factors import (
    FactorConfig,
    Factors,
    Gaussians,
    Log,
    _expected_noise,
    _log,
    aligned,
    expected_ratings,
    fit_factors,
    item_posterior,
    rotated,
    user_posterior,
)
from palate.ratings.tasks import Ratings

USERS, ITEMS, TRUE = 150, 30, 2


def world(seed: int = 0, share: float = 0.6) -> tuple[Ratings, np.ndarray]:
    """Ratings of two planted factors; item 0 has none, item 1 two."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(USERS, TRUE)) @ rng.normal(0, 0.7, (TRUE, ITEMS)) + rng.normal(0, 0.5, ITEMS) + 3
    rated = rng.random(truth.shape) < share
    rated[:, 0], rated[2:, 1] = False, False
    users, items = np.nonzero(rated)
    return Ratings(users, items, (truth + rng.normal(0, 0.3, truth.shape))[rated]), truth


@pytest.fixture(scope="module")
def fitted() -> Factors:
    return fit_factors(world()[0], ITEMS, FactorConfig(3, 15), seed=0)


def some_gaussians(rows: int, entries: int, seed: int) -> Gaussians:
    rng = np.random.default_rng(seed)
    roots = rng.normal(0, 0.4, (rows, entries, entries))
    return Gaussians(rng.normal(size=(rows, entries)), roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(entries))


def small_log() -> Log:
    rng = np.random.default_rng(3)
    users, items = np.nonzero(rng.random((7, 5)) < 0.6)
    kept = items != 4  # an item that nobody rated
    return _log(Ratings(users[kept], items[kept], rng.normal(size=kept.sum())), 5, 0.0)


def test_a_users_posterior_is_that_of_an_event_after_the_other() -> None:
    log, items, variance, noise = small_log(), some_gaussians(5, 4, 0), np.array([0.3, 1.0, 1.0, 2.0]), 0.7
    found = user_posterior(log, items, variance, noise)
    for user in range(7):
        precision, moment = np.diag(1 / variance), np.zeros(4)
        for event in np.flatnonzero(log.users == user):
            mean, covariance = items.mean[log.items[event]], items.covariance[log.items[event]]
            seen = np.r_[1, mean[1:]]
            blurred = covariance.copy()
            blurred[0], blurred[:, 0] = 0, 0
            precision = precision + (np.outer(seen, seen) + blurred) / noise
            # E[(y − b) φ]: bias and vector of an item are correlated.
            moment = moment + ((log.values[event] - mean[0]) * seen - np.r_[0, covariance[0, 1:]]) / noise
        np.testing.assert_allclose(found.covariance[user], np.linalg.inv(precision), rtol=1e-9)
        np.testing.assert_allclose(found.mean[user], np.linalg.inv(precision) @ moment, rtol=1e-9)


def test_an_items_posterior_is_that_of_an_event_after_the_other() -> None:
    log, users, variance, noise = small_log(), some_gaussians(7, 4, 1), np.array([0.2, 0.5, 1.0, 2.0]), 0.7
    found = item_posterior(log, users, variance, noise)
    for item in range(5):
        precision, moment = np.diag(1 / variance), np.zeros(4)
        for event in np.flatnonzero(log.items == item):
            mean, covariance = users.mean[log.users[event]], users.covariance[log.users[event]]
            seen = np.r_[1, mean[1:]]
            blurred = covariance.copy()
            blurred[0], blurred[:, 0] = 0, 0
            precision = precision + (np.outer(seen, seen) + blurred) / noise
            moment = moment + ((log.values[event] - mean[0]) * seen - np.r_[0, covariance[0, 1:]]) / noise
        np.testing.assert_allclose(found.covariance[item], np.linalg.inv(precision), rtol=1e-9)
        np.testing.assert_allclose(found.mean[item], np.linalg.inv(precision) @ moment, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance[4], np.diag(variance), atol=1e-12)


def test_the_noise_is_the_expected_squared_error_of_draws_from_both_posteriors() -> None:
    log, users, items = small_log(), some_gaussians(7, 4, 4), some_gaussians(5, 4, 5)
    rng = np.random.default_rng(0)
    drawn = []
    for event in range(len(log.values)):
        user = rng.multivariate_normal(users.mean[log.users[event]], users.covariance[log.users[event]], 40_000)
        item = rng.multivariate_normal(items.mean[log.items[event]], items.covariance[log.items[event]], 40_000)
        rating = user[:, 0] + item[:, 0] + (user[:, 1:] * item[:, 1:]).sum(1)
        drawn.append(((log.values[event] - rating) ** 2).mean())
    assert _expected_noise(log, users, items, rng) == pytest.approx(np.mean(drawn), rel=0.05)


def test_planted_factors_and_noise_are_found(fitted: Factors) -> None:
    ratings, truth = world()
    assert fitted.noise == pytest.approx(0.3**2, rel=0.4)
    energy = (rotated(fitted).items[:, 1:] ** 2).sum(0)
    assert energy[2] < 0.05 * energy[1]  # three factors were allowed, two are there
    rng = np.random.default_rng(1)
    errors = []
    for user in range(20):  # a third of each person's items, read as if the person were new
        support = rng.permutation(np.arange(2, ITEMS))[:10]
        query = np.setdiff1d(np.arange(2, ITEMS), support)
        told = truth[user, support] + rng.normal(0, 0.3, 10)
        errors.append(expected_ratings(fitted, support, told, query) - truth[user, query])
    assert np.sqrt(np.mean(np.square(errors))) < 0.35 < truth[:, 2:].std(0).mean()
    assert len(ratings.values) > 1000


def test_a_new_user_is_read_as_a_user_of_the_fit() -> None:
    items, variance, noise = some_gaussians(5, 4, 6), np.array([0.3, 1.0, 1.0, 1.0]), 0.7
    factors = Factors(2.5, items.mean, items.covariance, variance, 0.3, noise, np.ones(5, np.int64))
    rated, values = np.array([0, 3, 1]), np.array([4.0, 1.0, 2.0])
    log = _log(Ratings(np.zeros(3, np.int64), rated, values), 5, 2.5)
    taste = user_posterior(log, items, variance, noise).mean[0]
    expected = 2.5 + items.mean[:, 0] + taste[0] + items.mean[:, 1:] @ taste[1:]
    np.testing.assert_allclose(expected_ratings(factors, rated, values, np.arange(5)), expected)


def test_little_rated_items_are_less_certain(fitted: Factors) -> None:
    variance = fitted.variance.sum(1)
    np.testing.assert_allclose(fitted.items[0], 0, atol=1e-12)
    np.testing.assert_allclose(fitted.variance[0], fitted.prior_variance, rtol=0.02)
    assert variance[0] > variance[1] > 5 * variance[2:].max()
    fewer = fit_factors(world(share=0.2)[0], ITEMS, FactorConfig(3, 15), seed=0)
    assert fewer.variance[2:].mean() > fitted.variance[2:].mean()


def test_axes_are_free(fitted: Factors) -> None:
    support, values, query = np.array([2, 5, 9, 11]), np.array([4.0, 2.0, 3.5, 1.0]), np.arange(12, ITEMS)
    expected = expected_ratings(fitted, support, values, query)
    ordered = rotated(fitted)
    energy = (ordered.counts[:, None] * ordered.items[:, 1:] ** 2).sum(0)
    assert (np.diff(energy) < 0).all()
    other = fit_factors(world(seed=0)[0], ITEMS, FactorConfig(3, 15), seed=9)
    near = aligned(other, ordered)
    assert np.abs(near.items - ordered.items).mean() < 0.5 * np.abs(other.items - ordered.items).mean()
    for turned in (ordered, aligned(fitted, other)):
        np.testing.assert_allclose(expected_ratings(turned, support, values, query), expected)
        for item in (1, 7):
            np.testing.assert_allclose(
                np.linalg.eigvalsh(turned.covariance[item]), np.linalg.eigvalsh(fitted.covariance[item])
            )


def test_nothing_said_gives_the_items_means(fitted: Factors) -> None:
    none = np.array([], dtype=np.int64)
    found = expected_ratings(fitted, none, np.array([]), np.arange(ITEMS))
    np.testing.assert_allclose(found, fitted.mean + fitted.items[:, 0])


def test_the_order_of_the_log_and_of_users_changes_little_and_a_seed_repeats(fitted: Factors) -> None:
    ratings, _ = world()
    again = fit_factors(ratings, ITEMS, FactorConfig(3, 15), seed=0)
    assert again.items.tobytes() == fitted.items.tobytes()
    assert again.noise == fitted.noise
    order = np.random.default_rng(0).permutation(len(ratings.values))
    shuffled = Ratings(ratings.users[order] + 5, ratings.items[order], ratings.values[order])
    other = fit_factors(shuffled, ITEMS, FactorConfig(3, 15), seed=0)
    np.testing.assert_allclose(other.items, fitted.items, atol=0.05)  # the noise is estimated on a sample


def test_it_starts_where_it_is_told(fitted: Factors) -> None:
    ratings, _ = world()
    warm = fit_factors(ratings, ITEMS, FactorConfig(3, 1), seed=1, start=fitted)
    cold = fit_factors(ratings, ITEMS, FactorConfig(3, 1), seed=1)
    assert np.abs(warm.items - fitted.items).mean() < 0.2 * np.abs(cold.items - fitted.items).mean()


def test_unusable_ratings_are_refused() -> None:
    ratings, _ = world()
    for changed, match in (
        (Ratings(ratings.users[:0], ratings.items[:0], ratings.values[:0]), "there are none"),
        (replace_value(ratings, np.nan), "event 4: the value is nan"),
        (ratings._replace(items=ratings.items + ITEMS), "expected items below 30"),
        (ratings._replace(users=ratings.users - 9), "users from -9"),
    ):
        with pytest.raises(DataError, match=match):
            fit_factors(changed, ITEMS, FactorConfig(2, 1), seed=0)
    with pytest.raises(ConfigError, match=r"factors\.num_factors is 0; expected at least 1"):
        FactorConfig(num_factors=0)
    assert replace(FactorConfig(), num_sweeps=2).num_sweeps == 2


def replace_value(ratings: Ratings, value: float) -> Ratings:
    values = ratings.values.copy()
    values[4] = value
    return ratings._replace(values=values)
