"""Bayesian matrix factorisation with side information: a Gibbs sampler, and new people in closed form.

A value is mean + user bias + item bias + ⟨user factors, item factors⟩ + noise. The coefficients of an item, its bias
and factors, have a Gaussian prior whose mean is a linear function of the item's features, those of a user likewise;
both functions (links), both precisions and the noise are sampled with the coefficients. Salakhutdinov and Mnih,
Bayesian Probabilistic Matrix Factorization using Markov Chain Monte Carlo, 2008, doi 10.1145/1390156.1390267; the links
are those of Simm et al., Macau: Scalable Bayesian Multi-relational Factorization with Side Information using MCMC,
2015, arXiv:1509.04610.

A new person needs no sampling: given the items and the prior of one sample, the posterior of their coefficients is a
ridge regression. The prediction is the mean of these over the samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from palate.errors import ConfigError, DataError, NumericalError

_INTERCEPT_RIDGE = 0.1
_BIAS_VARIANCE, _FACTOR_VARIANCE = 0.01, 0.25
"""Prior variances of the coefficients, held with the weight of a few rows; the users carry the factors' scale."""
_ITEM_SHRINK = 5.0
"""Events by which the first item biases are shrunk."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler."""

    dim: int = 12
    """Factors beside the bias."""
    num_burn_in: int = 40
    """Sweeps that are thrown away."""
    num_samples: int = 40
    """Sweeps that are kept."""
    most_people: int = 2000
    """People whose ratings are sampled, at most: drawn at random from all."""
    most_items: int = 2048
    """Items that have factors, at most: the most rated."""
    item_feature_ridge: float = 5.0
    """Prior precision of the link from item features, in units of the coefficients' precision."""
    user_feature_ridge: float = 20.0
    """Prior precision of the link from user features."""

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("num_burn_in", 0), ("num_samples", 1), ("most_people", 2), ("most_items", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"sampler.{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("item_feature_ridge", "user_feature_ridge"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"sampler.{name} is {getattr(self, name)}; expected above 0")


class Prior(NamedTuple):
    """Coefficients ~ N(features · link, precision⁻¹)."""

    link: Float[np.ndarray, "feature coefficient"]
    precision: Float[np.ndarray, "coefficient coefficient"]


class SampledFactors(NamedTuple):
    """A fitted model: what each sweep that was kept leaves for people whom it has not seen."""

    mean: float
    items: Float32[np.ndarray, "sample item coefficient"]
    """Bias, then factors."""
    link: Float[np.ndarray, "sample feature coefficient"]
    """From features of people to their prior mean, with that of the intercept first."""
    precision: Float[np.ndarray, "sample coefficient coefficient"]
    """Of the people's prior."""
    noise_precision: Float[np.ndarray, "sample"]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {name: np.asarray(value) for name, value in self._asdict().items()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "SampledFactors":
        """The model that `to_arrays` took apart."""
        return SampledFactors(mean=float(arrays["mean"]), **{k: v for k, v in arrays.items() if k != "mean"})


def sample_factors(
    values: Float[np.ndarray, "user item"],
    weight: Float[np.ndarray, "user item"],
    user_features: Float[np.ndarray, "user user_feature"],
    item_features: Float[np.ndarray, "item item_feature"],
    config: SamplerConfig,
    *,
    rng: np.random.Generator,
    name: str = "Bayesian factors",
    on_step: Callable[[int, int, float], None] | None = None,
) -> SampledFactors:
    """Run the Gibbs sampler.

    Args:
        values: read where the weight is above 0.
        weight: 0 where there is no value; else the value's noise variance is divided by it.
        user_features: of each row, without a column of ones.
        item_features: of each column, without a column of ones.
        config: settings.
        rng: source of every draw.
        name: how errors call the model.
        on_step: called after each sweep as (sweep, of, standard deviation of the noise).

    Raises:
        DataError: no value has weight, or all that have are equal.
        NumericalError: a draw is not finite, or a precision is not positive definite; names the sweep.
    """
    total = weight.sum()
    if not total > 0:
        raise DataError(f"{name}: no value has a weight above 0; expected at least two different values")
    mean = float((np.where(weight > 0, values, 0.0) * weight).sum() / total)
    residual = np.where(weight > 0, values - mean, 0.0)
    if not (weight * residual**2).sum() > 1e-12 * total:
        raise DataError(f"{name}: all values are {mean:.4g}; expected at least two different ones")
    user_features, item_features = with_one(user_features), with_one(item_features)
    user_ridge, item_ridge = (
        np.r_[_INTERCEPT_RIDGE, np.full(features.shape[1] - 1, ridge)]
        for features, ridge in (
            (user_features, config.user_feature_ridge),
            (item_features, config.item_feature_ridge),
        )
    )
    weight_of_belief = config.dim + 2
    user_scatter = np.diag(np.r_[_BIAS_VARIANCE, np.full(config.dim, _FACTOR_VARIANCE)]) * weight_of_belief
    item_scatter = np.eye(config.dim + 1) * _BIAS_VARIANCE * weight_of_belief

    users = np.c_[np.zeros(len(values)), 0.3 * rng.standard_normal((len(values), config.dim))]
    biases = (residual * weight).sum(0) / (weight.sum(0) + _ITEM_SHRINK)
    items = np.c_[biases, 0.1 * rng.standard_normal((len(biases), config.dim))]
    noise_precision = float(total / (weight * residual**2).sum())
    rated = np.any(weight > 0, axis=0)[:, None]
    samples: list[tuple[Float[np.ndarray, "item coefficient"], Prior, float]] = []
    num_sweeps = config.num_burn_in + config.num_samples
    for sweep in range(1, num_sweeps + 1):
        try:
            prior = sample_prior(items, item_features, item_ridge, item_scatter, rng)
            item_means = item_features @ prior.link
            without_bias = (residual - users[:, :1]).T
            items = sample_gaussian(
                *conditional(without_bias, weight.T, with_slope(users), item_means, prior.precision, noise_precision),
                rng,
            )
            prior = sample_prior(users, user_features, user_ridge, user_scatter, rng)
            user_means = user_features @ prior.link
            without_bias = residual - items[:, 0]
            users = sample_gaussian(
                *conditional(without_bias, weight, with_slope(items), user_means, prior.precision, noise_precision), rng
            )
        except np.linalg.LinAlgError:
            raise NumericalError(
                f"{name}: a precision was not positive definite at sweep {sweep}; check the scale of the features"
            ) from None
        errors = residual - fitted(users, items)
        noise_precision = float(rng.gamma((total + 1) / 2, 2 / ((weight * errors**2).sum() + 1e-3)))
        if not (np.isfinite(noise_precision) and np.isfinite(items).all() and np.isfinite(users).all()):
            raise NumericalError(f"{name}: a draw was not finite at sweep {sweep}; check the scale of the features")
        if sweep > config.num_burn_in:
            # Nobody rated these items, so that their draw is the prior's noise about its mean. The mean predicts the
            # same without the noise, and scores items of equal content equally.
            samples.append((np.where(rated, items, item_means), prior, noise_precision))
        if on_step is not None:
            on_step(sweep, num_sweeps, noise_precision**-0.5)
    return SampledFactors(
        mean,
        np.stack([sample for sample, _, _ in samples]).astype(np.float32),
        np.stack([prior.link for _, prior, _ in samples]),
        np.stack([prior.precision for _, prior, _ in samples]),
        np.array([noise for *_, noise in samples]),
    )


def predict(
    factors: SampledFactors,
    support: Float[np.ndarray, "sample event coefficient"],
    values: Float[np.ndarray, "event"],
    weight: Float[np.ndarray, "event"],
    features: Float[np.ndarray, "feature"],
    query: Float[np.ndarray, "sample query coefficient"],
) -> Float[np.ndarray, "query"]:
    """Score items for one person: the posterior mean, over the samples; no support leaves the prior.

    Args:
        factors: the model.
        support: rows of its `items` for what the person has said something of.
        values: what they said.
        weight: each value's noise variance is divided by it.
        features: of the person, without a one.
        query: rows of `items` to score.
    """
    design, bias = with_slope(support), support[..., 0]
    scaled = (factors.noise_precision[:, None] * weight).astype(support.dtype)
    weighted = (design * scaled[..., None]).swapaxes(1, 2)
    left = (values - factors.mean - bias).astype(support.dtype)
    prior = np.concatenate([np.ones(1), features]) @ factors.link
    shift = factors.precision @ prior[..., None] + weighted @ left[..., None]
    person = np.linalg.solve(factors.precision + weighted @ design, shift)[..., 0].astype(query.dtype)
    own = person[:, :1].copy()
    person[:, 0] = 1  # of the item's bias
    scores: Float[np.ndarray, "sample query"] = (query @ person[..., None])[..., 0] + own
    return np.asarray(factors.mean + scores.mean(0), np.float64)


def conditional(
    residual: Float[np.ndarray, "row column"],
    weight: Float[np.ndarray, "row column"],
    design: Float[np.ndarray, "column coefficient"],
    prior_mean: Float[np.ndarray, "row coefficient"],
    prior_precision: Float[np.ndarray, "coefficient coefficient"],
    noise_precision: float,
) -> tuple[Float[np.ndarray, "row coefficient coefficient"], Float[np.ndarray, "row coefficient"]]:
    """Each row's precision Λ and shift Λ · mean given the other side (Salakhutdinov and Mnih, eq. 12 and 13)."""
    dim = design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), dim * dim)
    precision = prior_precision + noise_precision * (weight @ squares).reshape(-1, dim, dim)
    shift = noise_precision * ((residual * weight) @ design) + prior_mean @ prior_precision
    return precision, shift


def sample_gaussian(
    precision: Float[np.ndarray, "row coefficient coefficient"],
    shift: Float[np.ndarray, "row coefficient"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "row coefficient"]:
    """Draw each row from N(precision⁻¹ shift, precision⁻¹)."""
    root = np.linalg.cholesky(precision)
    noise = rng.standard_normal(shift.shape)[..., None]
    mean = np.linalg.solve(precision, shift[..., None])
    draw: Float[np.ndarray, "row coefficient"] = (mean + np.linalg.solve(np.swapaxes(root, -1, -2), noise))[..., 0]
    return draw


def sample_prior(
    coefficients: Float[np.ndarray, "row coefficient"],
    features: Float[np.ndarray, "row feature"],
    ridge: Float[np.ndarray, "feature"],
    scatter: Float[np.ndarray, "coefficient coefficient"],
    rng: np.random.Generator,
) -> Prior:
    """Draw link and precision from their joint posterior given the coefficients.

    Before: precision ~ Wishart(coefficients + 2, scatter⁻¹), link ~ N(0, ridge⁻¹ ⊗ precision⁻¹). The link is
    integrated out of the precision's draw (the multivariate regression of Gelman et al., Bayesian Data Analysis).
    """
    num_rows, dim = coefficients.shape
    gram = features.T @ features + np.diag(ridge)
    mean = np.linalg.solve(gram, features.T @ coefficients)
    left = coefficients - features @ mean
    scatter = scatter + left.T @ left + mean.T @ (ridge[:, None] * mean)
    precision = sample_wishart(dim + 2 + num_rows, np.linalg.inv((scatter + scatter.T) / 2), rng)
    noise = np.linalg.solve(np.linalg.cholesky(gram).T, rng.standard_normal(mean.shape))
    return Prior(mean + noise @ np.linalg.inv(np.linalg.cholesky(precision)), precision)


def sample_wishart(
    degrees: int, scale: Float[np.ndarray, "row row"], rng: np.random.Generator
) -> Float[np.ndarray, "row row"]:
    """Draw of mean degrees · scale, by Bartlett's decomposition."""
    dim = len(scale)
    below = np.tril(rng.standard_normal((dim, dim)), -1)
    root = np.linalg.cholesky(scale) @ (below + np.diag(np.sqrt(rng.chisquare(degrees - np.arange(dim)))))
    draw: Float[np.ndarray, "row row"] = root @ root.T
    return draw


def fitted(
    users: Float[np.ndarray, "user coefficient"], items: Float[np.ndarray, "item coefficient"]
) -> Float[np.ndarray, "user item"]:
    """User bias + item bias + ⟨user factors, item factors⟩."""
    values: Float[np.ndarray, "user item"] = users @ with_slope(items).T + items[:, 0]
    return values


def with_one(features: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row _"]:
    """Put a column of ones before the features."""
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)


def with_slope(coefficients: Float[np.ndarray, "*rows coefficient"]) -> Float[np.ndarray, "*rows coefficient"]:
    """What the other side's coefficients multiply: 1 for its bias, these factors for its factors."""
    sloped = coefficients.copy()
    sloped[..., 0] = 1
    return sloped


def places_among(column: Int64[np.ndarray, "item"], items: Int64[np.ndarray, "event"]) -> Int64[np.ndarray, "event"]:
    """Places of items among those that a fit covers; −1 for one not covered, and for one that came after the fit."""
    return np.where(items < len(column), column[np.minimum(items, len(column) - 1)], -1)
