"""What training ratings and content say of each item, cross-fitted over users.

A table holds the bias and vector of every item, with variances: "warm" from its ratings and its content together,
"cold" from its content alone, for a rated item from the other items. Table 0 is from all training users; table f is
from all but the users of fold f. A training user is shown the table that has not seen that user, so that a network
above meets items exactly as uncertain as a new user will. Without this it learns to trust vectors that its own
training ratings made. Cross-fitting: Chernozhukov et al., Double/debiased machine learning for treatment and
structural parameters, 2018, arXiv:1608.00060. Vectors from content: Gaussian process (`gaussian_process`).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from palate.errors import ConfigError, DataError
from palate.ratings.factors import FactorConfig, Factors, aligned, check_ratings, fit_factors, rotated
from palate.ratings.gaussian_process import KernelWeights, fit_weights, predict
from palate.ratings.likeness import Likeness
from palate.ratings.tasks import Ratings

_WEIGHED_FACTORS = 8  # the factors of most energy choose the kernel weights of all
_SPAN = 4.0  # of one to five stars; starting variances and step sizes everywhere are for it
_FLOOR = 1e-4


@dataclass(frozen=True)
class KnowledgeConfig:
    """Settings of the item tables."""

    factors: FactorConfig = field(default_factory=FactorConfig)
    """Of the fit to all users."""
    num_folds: int = 5
    """Groups of users; each is left out of one table."""
    num_fold_sweeps: int = 8
    """Sweeps of a table without a fold, which starts from that of all users."""
    min_ratings: int = 3
    """Ratings that an item needs for the process to learn from it."""
    most_items: int = 4096
    """Items that the process learns from, at most: the most rated. It costs the cube of them, once a table."""

    def __post_init__(self) -> None:
        for name, least in (("num_folds", 2), ("num_fold_sweeps", 1), ("min_ratings", 1), ("most_items", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"knowledge.{name} is {getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True)
class Knowledge:
    """Item tables, with 0 from all training users and f without those of fold f; an entry is the bias or a factor.

    Values are on a scale from 0 for the least training rating to 4 for the greatest.
    """

    warm: Float[Tensor, "table item entry"]
    """From ratings and content; from content alone where nobody rated the item."""
    cold: Float[Tensor, "table item entry"]
    """From content alone."""
    warm_variance: Float[Tensor, "table item entry"]
    """Of each entry of `warm`."""
    cold_variance: Float[Tensor, "table item entry"]
    """Of each entry of `cold`."""
    rated: Bool[Tensor, "item"]
    """Which items have training ratings."""
    fold: Int64[np.ndarray, "user"]
    """Fold of each user, from 1; 0 for one who has no training rating."""
    mean: float
    """Mean training rating, on the scale from 0 to 4."""
    user_bias_variance: float
    """Prior variance of the users' biases."""
    noise: float
    """Variance of a rating about its expectation."""
    least: float
    """The rating that is 0 on the scale."""
    unit: float
    """What 1 on the scale is in ratings."""

    def scaled(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Ratings on the scale from 0 to 4."""
        return (values - self.least) / self.unit


def fit_knowledge(
    ratings: Ratings,
    num_items: int,
    likeness: Likeness,
    config: KnowledgeConfig | None = None,
    *,
    seed: int = 0,
) -> Knowledge:
    """Factors of all users and without each fold, each joined with what content says.

    Args:
        ratings: of the training users; no query of a task that will be judged.
        num_items: rows of the catalogue; those without ratings are read from content.
        likeness: of the items' content.
        config: settings; the defaults if left out.
        seed: of the folds, the start and the rows that weigh the kernels.

    Raises:
        DataError: unusable ratings or kernels, or too few users or items for the settings.
        NumericalError: a fit failed; names it and its step.
    """
    config = config or KnowledgeConfig()
    check_ratings(ratings, num_items)
    if likeness.num_items != num_items or not likeness.num_kernels:
        raise DataError(
            f"likeness: {likeness.num_kernels} kernels of {likeness.num_items:,} items; "
            f"expected at least 1 of {num_items:,}"
        )
    least, greatest = float(ratings.values.min()), float(ratings.values.max())
    if least == greatest:
        raise DataError(f"all training ratings are {least}; there is no taste to learn from them")
    unit = (greatest - least) / _SPAN
    ratings = ratings._replace(values=(ratings.values - least) / unit)
    fold = _folds(ratings, config.num_folds, np.random.default_rng(seed))
    everyone = rotated(fit_factors(ratings, num_items, config.factors, seed=seed))
    rows = np.flatnonzero(everyone.counts >= config.min_ratings)
    if len(rows) > config.most_items:
        rows = np.sort(rows[np.argsort(-everyone.counts[rows], kind="stable")[: config.most_items]])
    if len(rows) < 2:
        raise DataError(f"{len(rows)} items have {config.min_ratings} ratings or more; expected at least 2")
    weights = _kernel_weights(likeness, rows, everyone, seed)
    again = FactorConfig(config.factors.num_factors, config.num_fold_sweeps)
    tables = [_tables(likeness, rows, everyone, weights)]
    for left_out in range(1, config.num_folds + 1):
        kept = fold[ratings.users] != left_out
        part = Ratings(ratings.users[kept], ratings.items[kept], ratings.values[kept])
        factors = aligned(fit_factors(part, num_items, again, seed=seed, start=everyone), everyone)
        tables.append(_tables(likeness, rows, factors, weights))
    warm, warm_variance, cold, cold_variance = (
        torch.from_numpy(np.stack(parts)).float() for parts in zip(*tables, strict=True)
    )
    # An item that only the users of one fold rated is a rated item in every table: content fills it in there.
    rated = torch.from_numpy(everyone.counts > 0)
    start = (everyone.mean, everyone.user_bias_variance, everyone.noise)
    return Knowledge(warm, cold, warm_variance, cold_variance, rated, fold, *start, least, unit)


def joined(
    mean: Float[np.ndarray, "item entry"],
    variance: Float[np.ndarray, "item entry"],
    prior_variance: Float[np.ndarray, "entry"],
    content_mean: Float[np.ndarray, "item entry"],
    content_variance: Float[np.ndarray, "item entry"],
) -> tuple[Float[np.ndarray, "item entry"], Float[np.ndarray, "item entry"]]:
    """A posterior under a prior of mean 0, with what content says put in that prior's place, an entry at a time."""
    evidence = np.maximum(1 / variance - 1 / prior_variance, 0)
    from_ratings = mean / np.maximum(1 - variance / prior_variance, 1e-3)
    precision = 1 / np.maximum(content_variance, _FLOOR)
    total = evidence + precision
    return (evidence * from_ratings + precision * content_mean) / total, 1 / total


def _folds(ratings: Ratings, num_folds: int, rng: np.random.Generator) -> Int64[np.ndarray, "user"]:
    """Folds of near equal size, from 1; the row of a user without ratings stays 0."""
    users = np.unique(ratings.users)
    if len(users) < 2 * num_folds:
        raise DataError(f"{len(users)} training users are too few for {num_folds} folds; lower knowledge.num_folds")
    fold = np.zeros(users.max() + 1, dtype=np.int64)
    fold[rng.permutation(users)] = np.arange(len(users)) % num_folds + 1
    return fold


def _relative_variance(
    rows: Int64[np.ndarray, "row"], factors: Factors
) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
    """Posterior variance of the biases and of the vectors, in units of the spread of their means."""
    mean, variance = factors.items[rows], factors.variance[rows]
    spread = np.maximum(mean.var(0), _FLOOR**2)
    return variance[:, 0] / spread[0], variance[:, 1:].mean(1) / spread[1:].mean()


def _kernel_weights(
    likeness: Likeness, rows: Int64[np.ndarray, "row"], factors: Factors, seed: int
) -> tuple[KernelWeights, KernelWeights]:
    """One set of weights for the biases and one for the vectors."""
    bias, vectors = _relative_variance(rows, factors)
    strongest = factors.items[rows, 1 : 1 + _WEIGHED_FACTORS]
    return (
        fit_weights(likeness, rows, factors.items[rows, :1], bias, seed=seed),
        fit_weights(likeness, rows, strongest, vectors, seed=seed),
    )


def _tables(
    likeness: Likeness,
    rows: Int64[np.ndarray, "row"],
    factors: Factors,
    weights: tuple[KernelWeights, KernelWeights],
) -> tuple[Float[np.ndarray, "item entry"], ...]:
    """Warm mean and variance, cold mean and variance, of one fit."""
    bias, vectors = _relative_variance(rows, factors)
    of_bias = predict(likeness, rows, factors.items[rows, :1], bias, weights[0])
    of_vectors = predict(likeness, rows, factors.items[rows, 1:], vectors, weights[1])
    cold, cold_variance = (np.concatenate(pair, 1) for pair in zip(of_bias, of_vectors, strict=True))
    warm, variance = joined(factors.items, factors.variance, factors.prior_variance, cold, cold_variance)
    rated = factors.counts[:, None] > 0
    return np.where(rated, warm, cold), np.where(rated, variance, cold_variance), cold, cold_variance
