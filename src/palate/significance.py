"""Confidence intervals over people and paired comparisons, by the percentile bootstrap.

Bradley Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, doi 10.1214/aos/1176344552. The
person is the unit that is resampled: two events of one person are not independent, two people are.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import ConfigError, DataError, NumericalError

CELLS_AT_ONCE = 1 << 20
"""Resampled values held in memory at a time (8 MiB of them)."""


class Interval(NamedTuple):
    """A mean over people with its bootstrap interval, in the unit of the values."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """How far `a` lies above `b` on the same people."""

    mean: float
    """mean(a) − mean(b)."""
    low: float
    high: float
    p_value: float
    """Two-sided: twice the smaller share of resamples at or beyond zero, never below 2 / (resamples + 1)."""
    significant: bool
    """The interval excludes zero."""
    relative: Interval | None
    """mean(a) / mean(b) − 1 (0.05 is five per cent better); None unless b's means are above zero."""


def bootstrap_interval(
    values: Float[np.ndarray, "user"], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Give the mean of one value per user and its percentile bootstrap interval.

    Raises:
        ConfigError: `level` is not inside (0, 1) or `num_resamples` is below 1.
        DataError: there are no values.
        NumericalError: a value is NaN or infinite.
    """
    resampled = _resampled_means(values[:, None], level, num_resamples, seed)[:, 0]
    return _interval(float(values.mean(dtype=np.float64)), resampled, level)


def clustered_interval(
    values: Float[np.ndarray, "task"],
    people: Int64[np.ndarray, "task"],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Give the mean over tasks and its interval where one person has several tasks: people are resampled whole.

    Raises: as `bootstrap_interval`.
    """
    _resampled_means(values[:1, None], level, 1, seed)  # the same checks of the settings
    if not np.isfinite(values).all():
        raise NumericalError("significance: a value is NaN or infinite; expected numbers; check the model")
    _, person = np.unique(people, return_inverse=True)
    totals, counts = np.bincount(person, values), np.bincount(person)
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for place in range(num_resamples):
        drawn = rng.integers(0, len(totals), len(totals))
        means[place] = totals[drawn].sum() / counts[drawn].sum()
    return _interval(float(values.mean(dtype=np.float64)), means, level)


def paired_difference(
    a: Float[np.ndarray, "user"],
    b: Float[np.ndarray, "user"],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two methods on the same users: row i of `a` and of `b` must be the same person.

    Both are resampled together, so what makes a person easy or hard for both cancels out.

    Raises:
        ConfigError: `level` is not inside (0, 1) or `num_resamples` is below 1.
        DataError: there are no values.
        NumericalError: a value is NaN or infinite.
    """
    # Differences are taken before averaging: two equal methods then differ by exactly zero, not by rounding.
    columns = np.stack([np.subtract(a, b, dtype=np.float64), a, b], axis=1)
    mean_difference, mean_a, mean_b = (float(mean) for mean in columns.mean(axis=0))
    resampled = _resampled_means(columns, level, num_resamples, seed)
    differences, means_a, means_b = resampled.T
    mean, low, high = _interval(mean_difference, differences, level)
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    relative = None
    if mean_b > 0 and (means_b > 0).all():
        relative = _interval(mean_a / mean_b - 1, means_a / means_b - 1, level)
    return PairedDifference(
        mean=mean,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (beyond + 1) / (num_resamples + 1)),
        significant=low > 0 or high < 0,
        relative=relative,
    )


def _interval(mean: float, resampled: Float[np.ndarray, "resample"], level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _resampled_means(
    values: Float[np.ndarray, "user column"], level: float, num_resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Column means over people drawn with replacement; one seed draws the same people for every column."""
    if not 0 < level < 1:
        raise ConfigError(f"level: the confidence level is {level}; expected a share between 0 and 1, such as 0.95")
    if num_resamples < 1:
        raise ConfigError(f"num_resamples: got {num_resamples}; expected at least 1; 2000 is a good number")
    num_users, num_columns = values.shape
    if num_users == 0:
        raise DataError("values: there is no user to average over; expected at least one; check the split")
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise NumericalError(f"values: user row {int(broken.argmax())} holds NaN or infinity; expected numbers")
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, num_columns), dtype=np.float64)
    chunk = max(1, CELLS_AT_ONCE // num_users)
    for start in range(0, num_resamples, chunk):
        stop = min(start + chunk, num_resamples)
        drawn = rng.integers(num_users, size=(stop - start, num_users))
        for column in range(num_columns):
            means[start:stop, column] = values[:, column][drawn].mean(axis=1, dtype=np.float64)
    return means
