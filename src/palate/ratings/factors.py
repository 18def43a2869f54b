"""Variational Bayesian factor analysis of ratings: vectors and biases of items with their posterior covariance.

Model: rating = mean + item bias + ⟨user, (1, item vector)⟩ + noise, users ~ N(0, diag), items ~ N(0, diag), every
variance estimated. Users and items are independent in the approximate posterior, and each is a full Gaussian, so that
an item with three ratings says how little is known of it. Lim & Teh, Variational Bayesian approach to movie rating
prediction, KDD Cup and Workshop 2007; probabilistic PCA with missing values: Ilin & Raiko, Practical approaches to
principal component analysis in the presence of missing values, JMLR 11, 2010. A variance a factor and side, learned,
switches off what the data does not carry: Bishop, Variational principal components, 1999, doi 10.1049/cp:19991160.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from jaxtyping import Float, Int64

from palate.errors import ConfigError, DataError, NumericalError
from palate.ratings.tasks import Ratings

_NOISE_SAMPLE = 20_000  # events that estimate the noise; all of them would need a covariance an event
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class FactorConfig:
    """Settings of the factor analysis. Starting variances are for ratings whose range is about 4, as one to five."""

    num_factors: int = 16
    """Length of an item's vector."""
    num_sweeps: int = 20
    """Rounds of users, then items, then variances."""

    def __post_init__(self) -> None:
        for name in ("num_factors", "num_sweeps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"factors.{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Factors:
    """The posterior of the items. An entry is the bias, then the vector; users have unit prior variance in a factor."""

    mean: float
    """Mean of all ratings."""
    items: Float[np.ndarray, "item entry"]
    """Posterior mean."""
    covariance: Float[np.ndarray, "item entry entry"]
    """Posterior covariance."""
    prior_variance: Float[np.ndarray, "entry"]
    """Variance of the items before any rating; their prior mean is 0."""
    user_bias_variance: float
    """Prior variance of the users' biases."""
    noise: float
    """Variance of a rating about its expectation."""
    counts: Int64[np.ndarray, "item"]
    """Ratings of each item."""

    @property
    def variance(self) -> Float[np.ndarray, "item entry"]:
        """Posterior variance of each entry."""
        return np.diagonal(self.covariance, axis1=1, axis2=2).copy()


class Log(NamedTuple):
    """Centred ratings as sparse matrices, users numbered without gaps."""

    users: Int64[np.ndarray, "event"]
    items: Int64[np.ndarray, "event"]
    values: Float[np.ndarray, "event"]
    rated: Any
    """(item, user) 1 where rated."""
    ratings: Any
    """(item, user) the centred rating."""


class Gaussians(NamedTuple):
    """One Gaussian a row."""

    mean: Float[np.ndarray, "row entry"]
    covariance: Float[np.ndarray, "row entry entry"]


def fit_factors(
    ratings: Ratings, num_items: int, config: FactorConfig, *, seed: int, start: Factors | None = None
) -> Factors:
    """Sweep until `config.num_sweeps`; with `start`, from its vectors instead of random ones.

    Raises:
        DataError: no rating, or a value that is not finite, or an item out of range.
        NumericalError: the fit became infinite or NaN; names the sweep.
    """
    check_ratings(ratings, num_items)
    rng = np.random.default_rng(seed)
    entries = config.num_factors + 1
    mean = float(ratings.values.mean())
    log = _log(ratings, num_items, mean)
    counts = np.bincount(log.items, minlength=num_items).astype(np.int64)
    if start is None:
        bias = np.bincount(log.items, log.values, minlength=num_items) / (counts + 10)
        means = np.c_[bias, rng.normal(0, 0.1, (num_items, config.num_factors))]
    else:
        means = start.items.copy()
    items = Gaussians(means, np.tile(1e-3 * np.eye(entries), (num_items, 1, 1)))
    user_variance = np.r_[0.15, np.full(config.num_factors, 0.5)]
    item_variance = np.r_[0.3, np.full(config.num_factors, 0.15)]
    noise = 0.9
    for sweep in range(1, config.num_sweeps + 1):
        users = user_posterior(log, items, user_variance, noise)
        user_variance = (users.mean**2 + _diagonal(users.covariance)).mean(0)
        items = item_posterior(log, users, item_variance, noise)
        second = items.mean**2 + _diagonal(items.covariance)
        item_variance = np.maximum(second[counts > 0].mean(0), _LEAST_VARIANCE)
        # The scale of a factor is free between users and items; users take 1.
        scale = np.r_[1.0, np.sqrt(user_variance[1:])]
        items, users = _scaled(items, scale), _scaled(users, 1 / scale)
        item_variance = item_variance * scale**2
        user_variance = np.r_[user_variance[0], np.ones(config.num_factors)]
        noise = _expected_noise(log, users, items, rng)
        if not (np.isfinite(noise) and np.isfinite(items.mean).all()):
            raise NumericalError(f"factor analysis: not finite at sweep {sweep}; check the scale of the ratings")
    return Factors(mean, items.mean, items.covariance, item_variance, float(user_variance[0]), float(noise), counts)


def check_ratings(ratings: Ratings, num_items: int) -> None:
    """Refuse ratings that nothing can be fitted on.

    Raises:
        DataError: no rating, a value that is not finite, or a row number out of range.
    """
    if not len(ratings.values):
        raise DataError("training ratings: there are none; check the split")
    if not np.isfinite(ratings.values).all():
        event = int(np.flatnonzero(~np.isfinite(ratings.values))[0])
        raise DataError(f"training ratings, event {event}: the value is {ratings.values[event]}; drop it")
    if not 0 <= ratings.items.min() <= ratings.items.max() < num_items or ratings.users.min() < 0:
        raise DataError(
            f"training ratings name items {ratings.items.min()} to {ratings.items.max()} and users from "
            f"{ratings.users.min()}; expected items below {num_items} and no negative row"
        )


def user_posterior(log: Log, items: Gaussians, variance: Float[np.ndarray, "entry"], noise: float) -> Gaussians:
    """Posterior of each user's bias and taste, given the Gaussians of the items."""
    seen = items.mean.copy()
    seen[:, 0] = 1  # a user reads 1 where the item has its bias
    second = seen[:, :, None] * seen[:, None, :]
    second[:, 1:, 1:] += items.covariance[:, 1:, 1:]
    with_bias = seen * items.mean[:, :1]
    with_bias[:, 1:] += items.covariance[:, 0, 1:]
    precision = _summed(log.rated.T, second) / noise + np.diag(1 / variance)
    moment = log.ratings.T @ seen - log.rated.T @ with_bias
    return _gaussians(precision, moment / noise)


def item_posterior(log: Log, users: Gaussians, variance: Float[np.ndarray, "entry"], noise: float) -> Gaussians:
    """Posterior of each item's bias and vector, given the Gaussians of the users; the prior where nobody rated it."""
    seen = users.mean.copy()
    seen[:, 0] = 1
    second = _second_moment(users)
    with_bias = second[:, 0, :].copy()
    with_bias[:, 0] = users.mean[:, 0]
    precision = _summed(log.rated, _with_one(users, second)) / noise + np.diag(1 / variance)
    moment = log.ratings @ seen - log.rated @ with_bias
    return _gaussians(precision, moment / noise)


def rotated(factors: Factors) -> Factors:
    """The same model with the axes in order of decreasing energy in the ratings."""
    weighted = np.sqrt(factors.counts)[:, None] * factors.items[:, 1:]
    return _turned(factors, np.linalg.svd(weighted, full_matrices=False)[2].T)


def aligned(factors: Factors, reference: Factors) -> Factors:
    """The same model, turned to be nearest to another one: orthogonal Procrustes (Schönemann, 1966)."""
    weight = np.sqrt(factors.counts)[:, None]
    left, _, right = np.linalg.svd((weight * factors.items[:, 1:]).T @ (weight * reference.items[:, 1:]))
    return _turned(factors, left @ right)


def expected_ratings(
    factors: Factors,
    support_items: Int64[np.ndarray, "event"],
    support_values: Float[np.ndarray, "event"],
    query_items: Int64[np.ndarray, "query"],
) -> Float[np.ndarray, "query"]:
    """Posterior mean of a new user's ratings, what is unknown of the support items taken into account."""
    entries = factors.items.shape[1]
    seen = factors.items[support_items].copy()
    seen[:, 0] = 1
    covariance = factors.covariance[support_items]
    second = seen.T @ seen
    second[1:, 1:] += covariance[:, 1:, 1:].sum(0)
    moment = seen.T @ (support_values - factors.mean - factors.items[support_items, 0])
    moment[1:] -= covariance[:, 0, 1:].sum(0)
    precision = np.diag(np.r_[1 / factors.user_bias_variance, np.ones(entries - 1)])
    taste = np.linalg.solve(second / factors.noise + precision, moment / factors.noise)
    vectors = factors.items[query_items]
    return np.asarray(factors.mean + vectors[:, 0] + taste[0] + vectors[:, 1:] @ taste[1:])


def _log(ratings: Ratings, num_items: int, mean: float) -> Log:
    distinct, users = np.unique(ratings.users, return_inverse=True)
    values, shape = ratings.values - mean, (num_items, len(distinct))
    rated = sp.csr_matrix((np.ones(len(values)), (ratings.items, users)), shape=shape)
    return Log(users, ratings.items, values, rated, sp.csr_matrix((values, (ratings.items, users)), shape=shape))


def _summed(rated: Any, each: Float[np.ndarray, "row entry entry"]) -> Float[np.ndarray, "other entry entry"]:
    """Sum of a matrix a row over the rows that each other row has met."""
    return np.asarray(rated @ each.reshape(len(each), -1)).reshape(-1, *each.shape[1:])


def _gaussians(precision: Float[np.ndarray, "row entry entry"], moment: Float[np.ndarray, "row entry"]) -> Gaussians:
    covariance = np.linalg.inv(precision)
    return Gaussians(np.einsum("nab,nb->na", covariance, moment), covariance)


def _diagonal(matrices: Float[np.ndarray, "row entry entry"]) -> Float[np.ndarray, "row entry"]:
    return np.asarray(np.diagonal(matrices, axis1=1, axis2=2))


def _second_moment(each: Gaussians) -> Float[np.ndarray, "row entry entry"]:
    return np.asarray(each.covariance + each.mean[:, :, None] * each.mean[:, None, :])


def _with_one(users: Gaussians, second: Float[np.ndarray, "row entry entry"]) -> Float[np.ndarray, "row entry entry"]:
    """Second moment of (1, taste): what an item meets of a user."""
    changed = second.copy()
    changed[:, 0, :] = users.mean
    changed[:, :, 0] = users.mean
    changed[:, 0, 0] = 1
    return changed


def _scaled(each: Gaussians, scale: Float[np.ndarray, "entry"]) -> Gaussians:
    return Gaussians(each.mean * scale, each.covariance * scale[:, None] * scale)


def _expected_noise(log: Log, users: Gaussians, items: Gaussians, rng: np.random.Generator) -> float:
    """Expected squared error of a rating: that of the means, plus what both posteriors add, on a sample."""
    seen = items.mean.copy()
    seen[:, 0] = 1
    error = log.values - items.mean[log.items, 0] - (users.mean[log.users] * seen[log.items]).sum(1)
    sample = rng.integers(0, len(log.values), _NOISE_SAMPLE)
    vectors = seen[log.items[sample]]
    people = Gaussians(users.mean[log.users[sample]], users.covariance[log.users[sample]])
    of_users = np.einsum("na,nab,nb->n", vectors, people.covariance, vectors)
    of_items = (items.covariance[log.items[sample]] * _with_one(people, _second_moment(people))).sum((1, 2))
    return float((error**2).mean() + (of_users + of_items).mean())


def _turned(factors: Factors, turn: Float[np.ndarray, "factor factor"]) -> Factors:
    full = np.eye(len(turn) + 1)
    full[1:, 1:] = turn
    covariance = np.einsum("ba,nbc,cd->nad", full, factors.covariance, full, optimize=True)
    # Only the diagonal of the turned prior is kept.
    prior = np.diag(full.T @ np.diag(factors.prior_variance) @ full).copy()
    return replace(factors, items=factors.items @ full, covariance=covariance, prior_variance=prior)
